"""The check before anything is built: each mistake is named with its key, and good files pass."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import yaml
from basicsr.utils.options import ordered_yaml

from qmambair_basicsr import preflight, schema
from qmambair_basicsr.recipes.option_contents import OPTIONS

FILES = sorted(OPTIONS.glob("*.yml"))


def read(path: Path) -> dict:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=ordered_yaml()[0])


@pytest.fixture
def opt(tmp_path, monkeypatch):
    """Options of the main job with every folder and file in place."""
    monkeypatch.chdir(tmp_path)
    opt = read(OPTIONS / "train_QMambaIR_lightSRx2_w2a2.yml")
    for section in opt["datasets"].values():
        for key in ("dataroot_gt", "dataroot_lq"):
            folder = tmp_path / section[key]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "a.png").touch()
    weights = tmp_path / opt["path"]["pretrain_network_g"]
    weights.parent.mkdir(parents=True)
    weights.touch()
    return opt


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_shipped_files_lack_nothing_but_data_and_weights(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for problem in schema.problems(read(path), path.stem.startswith("train")):
        assert "does not exist" in problem.text, problem


def test_complete_options_pass(opt):
    assert schema.problems(opt, True) == []
    schema.check(opt, training=True)


def change(opt, where, value):
    node = opt
    *parents, last = where.split(".")
    for key in parents:
        node = node[key]
    node[last] = value


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("quant_trian", {}, "quant_trian: unknown key (did you mean 'quant_train'?)"),
        ("path.pretrain_netwrk_g", "x", "path.pretrain_netwrk_g: unknown key (did you mean 'pretrain_network_g'?)"),
        ("train.total_iters", 5, "train.total_iters: unknown key (did you mean 'total_iter'?)"),
        ("val.val_frequency", 5, "val.val_frequency: unknown key"),
        ("model_type", "QATModell", "model_type: no model is called 'QATModell'"),
        ("network_g.type", "QMambIR", "network_g.type: no arch is called 'QMambIR' (did you mean 'QMambaIR'?)"),
        ("network_g.embed_dims", 60, "network_g.embed_dims: unknown key (did you mean 'embed_dim'?)"),
        ("network_g.quant.weight.bits", 0, "network_g.quant.weight.bits"),
        ("network_g.quant.weight.type", "RFAA", "network_g.quant.weight.type: unknown quantizer 'RFAA'"),
        ("network_g.quant.wieght", {}, "network_g.quant"),
        ("quant_train.calibration.batchs", 3, "quant_train.calibration.batchs: unknown key (did you mean 'batches'?)"),
        ("datasets.train.type", "PairedDataset", "datasets.train.type: no dataset is called 'PairedDataset'"),
        ("datasets.train.dataroot_gt", "datasets/gone/HR", "datasets.train.dataroot_gt: folder datasets/gone/HR does"),
        ("datasets.val.dataroot_lq", "datasets/gone/LR", "datasets.val.dataroot_lq: folder datasets/gone/LR does not"),
        ("datasets.train.meta_info_file", "list.txt", "datasets.train.meta_info_file: file list.txt does not exist"),
        ("path.pretrain_network_g", "gone.pth", "path.pretrain_network_g: file gone.pth does not exist"),
        ("path.resume_state", "gone.state", "path.resume_state: file gone.state does not exist"),
        ("datasets", None, "datasets: must be a section with one section per data set"),
        ("train.optim_g.lr", "5e-4", "train.optim_g.lr: YAML reads '5e-4' as text; write the number as 0.0005"),
        ("train.scheduler.milestones", [5, "1e3"], "train.scheduler.milestones[1]: YAML reads '1e3' as text"),
    ],
)
def test_mistake_is_named(opt, where, value, message):
    change(opt, where, value)
    with pytest.raises(schema.OptionError) as caught:
        schema.check(opt, "options/file.yml", True)
    text = str(caught.value)
    assert text.startswith("options/file.yml cannot run from ")
    assert message in text
    assert len(text.splitlines()) == 2, f"more than the one mistake is reported:\n{text}"
    if "does not exist" in message and "resume" not in where:
        assert "README, section" in text


def test_all_mistakes_are_reported_at_once(opt):
    change(opt, "network_g.embed_dims", 60)
    change(opt, "path.pretrain_network_g", "gone.pth")
    assert len(schema.problems(opt, True)) == 2


def test_empty_folder_is_a_mistake(opt, tmp_path):
    (tmp_path / "empty").mkdir()
    change(opt, "datasets.train.dataroot_gt", "empty")
    assert "folder empty is empty" in str(schema.problems(opt, True)[0])


def test_readme_has_the_sections_that_messages_name():
    readme = (OPTIONS.parent / "README.md").read_text(encoding="utf-8")
    for help_text in (schema.DATA_HELP, schema.WEIGHTS_HELP):
        section = help_text.split('"')[1]
        assert f"\n## {section}\n" in readme


def test_resuming_needs_no_pretrained_weights(opt, tmp_path):
    change(opt, "path.pretrain_network_g", "gone.pth")
    states = tmp_path / "states"
    states.mkdir()
    opt["path"]["training_states"], opt["auto_resume"] = str(states), True
    assert "gone.pth" in str(schema.problems(opt, True)[0])
    (states / "10.state").touch()
    assert schema.problems(opt, True) == []


def test_a_missing_file_that_can_be_made_is_said_how(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["test.py", "-opt", "options/test_MambaIR_SRx3.yml"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(preflight.OptionError, match=r"make it: .*tools\.make_options test_MambaIR_SRx3$"):
        preflight.checked(lambda root_path, is_train: None)(".")


def test_other_projects_options_are_left_alone():
    assert not preflight.concerns_us({"model_type": "SRModel", "network_g": {"type": "EDSR"}})
    assert preflight.concerns_us({"model_type": "SRModel", "network_g": {"type": "MambaIR"}})
    assert preflight.concerns_us({"model_type": "QATModel"})


class TestParsing:
    """What goes wrong inside ``parse_options`` is reported in the same way."""

    @pytest.fixture
    def parse(self, tmp_path, monkeypatch):
        from basicsr.utils import options

        def run(opt, *arguments):
            file = tmp_path / "file.yml"
            if opt is not None:
                file.write_text(opt if isinstance(opt, str) else yaml.safe_dump(opt), encoding="utf-8")
            monkeypatch.setattr(sys, "argv", ["train.py", "-opt", str(file), *arguments])
            return options.parse_options(str(tmp_path), is_train=True)

        return run

    def plain(self, opt):
        """Without OrderedDict, which only BasicSR's own dumper writes."""
        return {k: self.plain(v) if isinstance(v, dict) else copy.copy(v) for k, v in opt.items()}

    def test_good_file(self, parse, opt):
        assert parse(self.plain(opt))[0]["is_train"] is True

    def test_missing_folder(self, parse, opt):
        change(opt, "datasets.train.dataroot_gt", "gone")
        with pytest.raises(schema.OptionError, match=r"file\.yml cannot run[^\n]*\n  datasets\.train\.dataroot_gt"):
            parse(self.plain(opt))

    def test_missing_file(self, parse):
        with pytest.raises(schema.OptionError, match=r"there is no file .*file\.yml; give an option file"):
            parse(None)

    def test_broken_yaml(self, parse):
        with pytest.raises(schema.OptionError, match="not valid YAML"):
            parse("name: [1, 2\nscale: 2\n")

    def test_forced_key_that_does_not_exist(self, parse, opt):
        with pytest.raises(schema.OptionError, match=r"force_yml.*no key 'trian'"):
            parse(self.plain(opt), "--force_yml", "trian:total_iter=3")

    def test_launcher_without_torchrun(self, parse, opt, monkeypatch):
        monkeypatch.delenv("RANK", raising=False)
        with pytest.raises(schema.OptionError, match="torchrun"):
            parse(self.plain(opt), "--launcher", "pytorch")

    def test_stock_modules_use_the_checked_parser(self):
        from basicsr import test, train
        from basicsr.utils import options

        assert train.parse_options is test.parse_options is options.parse_options
        before = options.parse_options
        preflight.install()
        assert options.parse_options is before


class TestPluginLine:
    """A BasicSR script without a word about this package: the file's plugin line imports it, in the middle of reading."""

    STOCK = """
def parse_options(root_path, is_train=True):
    import argparse
    args = argparse.Namespace(opt=FILE, force_yml=None, launcher="none", auto_resume=False, local_rank=0, debug=False)
    importing()
    return "read"
"""

    @pytest.fixture
    def read(self, monkeypatch, tmp_path):
        from basicsr.utils import options

        def run(text: str):
            file = tmp_path / "file.yml"
            file.write_text(text, encoding="utf-8")
            names = {"__name__": "basicsr.utils.options", "FILE": str(file), "importing": preflight.install}
            exec(self.STOCK, names)
            return names["parse_options"](str(tmp_path))

        monkeypatch.setattr(options, "parse_options", options.parse_options.__wrapped__)
        monkeypatch.setattr("basicsr.train.parse_options", options.parse_options)
        monkeypatch.setattr("basicsr.test.parse_options", options.parse_options)
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        return run

    def test_good_file_is_read_on(self, read, opt):
        assert read(yaml.safe_dump(TestParsing().plain(opt))) == "read"

    def test_mistakes_stop_it(self, read, opt, capsys):
        change(opt, "train.optim_g.lr", "x")
        with pytest.raises(schema.OptionError, match=r"train\.optim_g\.lr: must be a number") as caught:
            read(yaml.safe_dump(TestParsing().plain(opt)))
        sys.excepthook(caught.type, caught.value, caught.tb)
        assert capsys.readouterr().err == f"error: {caught.value}\n"
