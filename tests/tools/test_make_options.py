"""options/*.yml: one source, no drift, only registered types."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import qmambair_basicsr
from qmambair_basicsr import schema
from qmambair_basicsr.ptq import PTQ_METHODS
from qmambair_basicsr.quantizers import QUANTIZER_REGISTRY
from qmambair_basicsr.recipes import option_contents, option_names, ptq_contents
from qmambair_basicsr.recipes.option_table import PAIRS
from qmambair_basicsr.tools import make_options

FILES = [option_contents.OPTIONS / f"{row.name}.yml" for row in option_names.published()]


def read(path):
    """The file as BasicSR's own loader gives it."""
    from basicsr.utils.options import ordered_yaml

    return yaml.load(path.read_text(encoding="utf-8"), Loader=ordered_yaml()[0])


def leaves(node, path=()):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def test_committed_files_are_the_published_ones_and_as_they_are_made():
    names = [row.name for row in option_names.published()]
    assert len(names) == len(set(names)) <= 45
    assert "train_QMambaIR_SRx2_w2a2" in names
    assert option_names.drifted(option_contents.OPTIONS) == []


def test_check_notices_a_changed_and_a_missing_file_and_leaves_others_alone(tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    assert make_options.main(out) == 0
    assert make_options.main([*out, "test_QMambaIR_CARq10_w3a6"]) == 0
    (tmp_path / "mine.yml").write_text("name: mine\n")
    assert make_options.main([*out, "--check"]) == 0
    assert len(list(tmp_path.iterdir())) == len(option_names.published()) + 2
    changed, missing, made = "train_MambaIR_SRx2", "test_MambaIR_SRx2", "test_QMambaIR_CARq10_w3a6"
    for name in (changed, made):
        (tmp_path / f"{name}.yml").write_text("name: other\n")
    (tmp_path / f"{missing}.yml").unlink()
    capsys.readouterr()
    assert make_options.main([*out, "--check"]) == 1
    said = capsys.readouterr().err
    assert [Path(line.split(":")[0]).stem for line in said.splitlines()] == sorted([changed, missing, made])


def test_a_file_with_other_contents_is_replaced_only_when_asked(tmp_path, capsys):
    file = tmp_path / "train_QMambaIR_SRx3_w2a2.yml"
    file.write_text("name: mine\n")
    command = [file.stem, "--out", str(tmp_path)]
    assert make_options.main(command) == 2
    assert "--overwrite" in capsys.readouterr().err and file.read_text() == "name: mine\n"
    assert make_options.main([*command, "--overwrite"]) == 0
    assert read(file)["name"] == file.stem


def test_names_are_relative_to_the_working_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert make_options.main(["options/test_MambaIRv2_SRx3.yml"]) == 0
    assert [p.name for p in (tmp_path / "options").iterdir()] == ["test_MambaIRv2_SRx3.yml"]


def test_list_names_everything_that_can_be_made(capsys):
    assert make_options.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line for line in lines if not line.startswith("#")]
    assert all(option_names.parse(name).name == name for name in names)
    assert {f"{phase}_Q{family}_{task}_w4a4" for family, task in PAIRS for phase in ("train", "test")} <= set(names)
    methods = lines[-1].partition(": ")[2].split(", ")
    assert set(methods) == {
        f"{a}{b}"
        for a in ("", "distill_")
        for b in (
            "static",
            *(kind.lower() for kind, quantizer in QUANTIZER_REGISTRY.items() if "act" in quantizer.roles),
        )
        if b != "identity"
    } | {"distill", "plus", "distill_plus"}
    (line,) = (line for line in lines if line.startswith("# ptq_Q{network}_{task}_w4a4_METHOD"))
    for method in line.rpartition(": ")[2].split(", "):
        for phase in ("ptq", "test"):
            assert option_names.parse(f"{phase}_QMambaIRv2Light_lightSRx2_w4a4_{method}").method == method
    assert {row.method for row in option_names.post_training()} == set(line.rpartition(": ")[2].split(", "))


def test_a_name_means_one_file():
    """Everything that --list promises, without building it."""
    for row in option_names.rows(every=True):
        assert option_names.parse(row.name) == row
        opt = row.options()
        assert opt["name"] == row.name and opt["network_g"]["type"].removeprefix("Q") == row.family


@pytest.mark.parametrize(
    ("name", "reason", "near"),
    [
        ("train_QMambIR_SRx2_w2a2", "network 'QMambIR' is none of", "train_QMambaIR_SRx2_w2a2"),
        ("train_QMambaIR_SRx5_w2a2", "task 'SRx5' is none of MambaIR's", "train_QMambaIR_SRx"),
        ("train_QMambaIR_RealDN_w2a2", "task 'RealDN' is none of MambaIR's", "train_QMambaIRUNet_RealDN_w2a2"),
        ("test_QMambaIR_SRx2_w2a2_lsqq", "method 'lsqq' is none of", "test_QMambaIR_SRx2_w2a2_lsq"),
        ("test_QEDSR_SRx2_w4a4_convfp", "method 'convfp' is none of", "test_QSwinIR_SRx2_w4a4_convfp"),
        ("test_QVmambaIR_SRx2_w4a4", "task 'SRx2' is none of VmambaIR's", "test_QVmambaIR_SRx4_w4a4"),
        ("test_QMambaIR_SRx2_w1a2", "bits must be one of 2, 3", "test_QMambaIR_SRx2_w2a2"),
        ("test_QMambaIR_SRx2_w32a4", "32 bits is full precision", "test_QMambaIR_SRx2_w4a4"),
        ("test_QMambaIR_SRx2", "network 'QMambaIR' is none of MambaIR", "test_MambaIR_SRx2"),
        ("test_MambaIR_SRx2_w4a4", "network 'MambaIR' is none of QMambaIR", "test_QMambaIR_SRx2_w4a4"),
        ("ptq_QMambaIR_SRx2_w1a1_PTQ4VM", "one symmetric bit has the single level 0", "ptq_QMambaIR_SRx2_w"),
        ("tset_MambaIR_SRx2", "a name is", "test_MambaIR_SRx2"),
    ],
)
def test_a_wrong_name_gets_the_reason_and_the_nearest(tmp_path, capsys, name, reason, near):
    assert make_options.main([name, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert reason in said and f"the nearest is {near}" in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_file_is_named_registered_and_portable(path):
    opt = read(path)
    assert opt["name"] == path.stem
    assert opt["plugin"] == qmambair_basicsr.__version__
    for key, value in leaves(opt):
        assert value is None or isinstance(value, (str, int, float, bool, list)), key
        if key[-1].startswith("dataroot") or (key[0] == "path" and isinstance(value, str)):
            assert not value.startswith(("/", "~", ".")), f"{key}: {value} is not relative to the working directory"
        if key[-1] in {"lr", "eta_min", "gamma", "ema_decay"}:
            assert isinstance(value, float), f"{key}: {value!r} is text to a YAML 1.1 reader"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_rendering_loses_nothing(path):
    """What the reader sees is the table's dictionary, plus the plugin line."""
    opt = read(path)
    opt.pop("plugin")
    assert opt == option_names.parse(path.name).options()


def test_widths_may_differ():
    network = option_names.parse("train_QMambaIR_SRx2_w2a8_pams").options()["network_g"]
    kinds = {
        site: (network["quant"][site]["type"], network["quant"][site]["bits"]) for site in ("weight", "act", "scan")
    }
    assert kinds == {"weight": ("PAMS", 2), "act": ("PAMS", 8), "scan": ("PAMS", 8)}


def quant_of(name):
    return option_names.parse(name).options()["network_g"]["quant"]


def test_networks_without_a_scan_and_swinirs_other_placement():
    act = {"type": "LSQOffset", "bits": 2}
    assert quant_of("train_QEDSR_SRx4_w2a2") == {"weight": {"type": "RFA", "bits": 2}, "act": act}
    assert quant_of("train_QSwinIR_lightSRx2_w2a2") == quant_of("train_QEDSR_SRx4_w2a2")
    others = {"attention": act, "conv": "fp"}
    assert quant_of("train_QSwinIR_lightSRx2_w2a2_convfp") == quant_of("train_QSwinIR_lightSRx2_w2a2") | others
    assert quant_of("test_QSwinIR_SRx4_w4a4_distill_convfp_lsq")["attention"] == {"type": "LSQ", "bits": 4}


@pytest.mark.parametrize("name", sorted({f"train_{family}_{task}" for family, task in PAIRS}))
def test_patches_fit_the_network(name):
    """Windows and halvings: nothing pads a training patch."""
    quantized = f"{name.replace('train_', 'train_Q', 1)}_w4a4"
    for opt in (option_names.parse(n).options() for n in (name, quantized)):
        net = opt["network_g"]
        side = opt["datasets"]["train"]["gt_size"] / opt["scale"]
        multiple = (
            net["window_size"]
            if "SwinIR" in net["type"]
            else 8
            if "dim" in net and "num_refinement_blocks" in net
            else 1
        )
        assert side % multiple == 0, (opt["name"], side, multiple)


def test_published_main_job_has_the_released_recipe():
    """Batch 16 x 2 GPUs, patches of 192, lr 1e-4 (classic) / 2e-4 (light), halved at four steps of 20 k."""
    for task, lr in (("SRx2", 1e-4), ("lightSRx2", 2e-4)):
        opt = read(option_contents.OPTIONS / f"train_QMambaIR_{task}_w2a2.yml")
        train = opt["datasets"]["train"]
        assert (train["batch_size_per_gpu"], train["gt_size"]) == (16, 192)
        assert (opt["train"]["optim_g"]["lr"], opt["train"]["total_iter"]) == (lr, 20_000)
        assert opt["train"]["scheduler"]["milestones"] == [10_000, 15_000, 17_500, 18_750]
        assert list(opt["network_g"]["quant"]["weight"].values()) == ["RFA", 2]


def test_files_of_post_training_methods(tmp_path):
    """Every method of ``ptq`` has a recipe; its files are what the schema and a YAML reader take."""
    assert set(ptq_contents.METHODS) >= set(PTQ_METHODS)
    for row in option_names.post_training():
        assert option_names.parse(row.name) == row
    for method in ptq_contents.METHODS:
        for family, task in (("MambaIRv2Light", "lightSRx2"), ("MambaIR", "lightSRx2")):
            text = option_names.parse(f"ptq_Q{family}_{task}_w4a4_{method}").text()
            found = schema.parse(text)
            assert schema.problems(found.data, True, look_at_files=False) == []
    with pytest.raises(option_names.OptionNameError, match="post-training method 'SPR3Q'"):
        option_names.parse("ptq_QMambaIR_lightSRx2_w4a4_SPR3Q")
    for family, method, lack in (("EDSR", "SPR2Q", "linears"), ("SwinIR", "QuambaScan", "the modules around scans")):
        with pytest.raises(option_names.OptionNameError, match=f"{method} is of {lack}, and {family} has none"):
            option_names.parse(f"ptq_Q{family}_lightSRx2_w4a4_{method}")
    with pytest.raises(option_names.OptionNameError, match="its file begins with ptq_"):
        option_names.parse("train_QMambaIR_lightSRx2_w4a4_SPR2Q")
