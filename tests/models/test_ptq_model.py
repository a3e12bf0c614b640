"""PTQModel in the stock loop: what it saves is an ordinary network, and a killed run goes on to the same bits."""

from __future__ import annotations

import copy

import pytest
import torch
from basicsr.archs import build_network
from basicsr.models import build_model

from qmambair_basicsr import checkpoints, schema
from qmambair_basicsr.layers.merging import merge
from qmambair_basicsr.layers.sites import uncalibrated
from qmambair_basicsr.layers.transforms import transforms_of
from qmambair_basicsr.models.qat_model import QATModel
from qmambair_basicsr.ptq import PTQ_METHODS
from qmambair_basicsr.ptq.method import require_ordinary
from qmambair_basicsr.quantizers import SpecError

PLAIN = {"type": "MinMax", "bits": 4}
ROWS = {**PLAIN, "granularity": "channel"}
QUICK = {
    "SPR2Q": {"routing": 2, "rank": 2, "rectifiers": 2},
    "FIMAQ": {"images": 1, "rank": 2},
    "APHQViT": {"images": 1},
}
TRAINED = sorted(name for name, method in PTQ_METHODS.items() if method.trains)


@pytest.fixture
def ptq_options(train_options, tmp_path):
    """Options of a run with the given method; one block, so that it takes a second."""

    def make(method: str, total: int = 8, **options):
        opt = copy.deepcopy(train_options)
        opt["network_g"] |= {"type": "QMambaIR", "depths": [1], "drop_path_rate": 0.0}
        opt["network_g"]["quant"] = {"weight": ROWS, "act": PLAIN, "scan": PLAIN}
        opt["model_type"], opt["name"] = "PTQModel", f"ptq_{method}"
        opt["datasets"]["train"]["num_worker_per_gpu"] = 0
        plain = {k: v for k, v in opt["network_g"].items() if k != "quant"} | {"type": "MambaIR"}
        torch.manual_seed(5)
        path = tmp_path / "fp.pth"
        torch.save({"params": build_network(plain).state_dict()}, path)
        opt["path"]["pretrain_network_g"] = str(path)
        opt["ptq"] = {"method": {"type": method, **QUICK.get(method, {}), **options}, "calibration": {"batches": 2}}
        opt["train"] = {"total_iter": total}
        opt["logger"]["save_checkpoint_freq"] = 3
        opt["val"] = None
        return opt

    return make


def same(a, b):
    assert a.keys() == b.keys()
    return [key for key in a if not torch.equal(a[key], b[key])]


def test_increments_of_training_are_refused_and_rotations_kept(ptq_options, parsed):
    opt = ptq_options("MinMax", total=1)
    opt["network_g"]["quant"]["transforms"] = {"LowRank": {"rank": 2}}
    with pytest.raises(ValueError, match=r"LowRank is trained by QATModel; leave it out"):
        build_model(parsed(opt))
    opt["network_g"]["quant"]["transforms"] = {"Hadamard": {"block": 8}}
    model = build_model(parsed(opt))
    assert uncalibrated(model.net_g) == [] and transforms_of(model.net_g)
    saved = checkpoints.read_file(f"{model.opt['path']['models']}/net_g_calibrated.pth")["params"]
    again = build_network(copy.deepcopy(opt["network_g"])).eval()
    checkpoints.load_state(again, saved, "saved")
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(again(x), model.net_g.eval()(x))
    merge(model.net_g)
    with pytest.raises(ValueError, match="MinMax has merged the rotations"):
        require_ordinary(model.net_g, "MinMax", model.shapes)


SCAN = {"scan": {"type": "PTQ4VM", "iterations": 2, "samples": 1000}}


@pytest.mark.parametrize(
    ("method", "more"),
    [*((name, {}) for name in TRAINED), ("TwoDQuant", SCAN)],
    ids=[*TRAINED, "TwoDQuant_scan"],
)
def test_run_resumes_to_the_same_bits(loop, ptq_options, method, more):
    """And it trains something, leaves full-precision weights alone where it should, and saves ordinary networks."""
    opt = ptq_options(method, **more)
    loop.here(opt)
    folder = loop.models(opt["name"])
    wanted, start = (checkpoints.read_file(folder / f"net_g_{i}.pth")["params"] for i in ("latest", "calibrated"))
    assert same(wanted, start), "eight iterations changed nothing"
    net = build_network(copy.deepcopy(opt["network_g"]))
    net.load_state_dict(wanted, strict=True)
    assert not uncalibrated(net) and net.eval()(torch.rand(1, 3, 9, 7)).isfinite().all()
    (folder / "net_g_latest.pth").unlink()
    opt["path"]["resume_state"] = str(folder.parent / "training_states" / "3.state")
    loop.here(opt)
    assert same(checkpoints.read_file(folder / "net_g_latest.pth")["params"], wanted) == []


@pytest.mark.parametrize(
    ("method", "total", "options", "bits", "message"),
    [
        ("TwoDQuant", 8, {}, 4, "is of SPR2Q, not of TwoDQuant; start the run anew"),
        ("MinMax", 1, {}, 4, "is of a method that trains, MinMax does not"),
        ("SPR2Q", 8, {}, 2, "is of a network with another quant: block"),
        ("SPR2Q", 8, {"lr": 0.5}, 4, None),
    ],
    ids=["method", "static", "bits", "rate"],
)
def test_a_state_of_something_else_is_refused(ptq_options, parsed, caplog, method, total, options, bits, message):
    from qmambair_basicsr.models.ptq_model import PTQModel

    opt = parsed(ptq_options("SPR2Q"))
    written = {}
    model = PTQModel(opt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QATModel, "_write_state", lambda self, path, state: written.update(state))
        model._write_state("state", {"iter": 3})
    other = ptq_options(method, total=total, **options)
    other["network_g"]["quant"]["weight"] = {**ROWS, "bits": bits}
    model = PTQModel(parsed(other))
    with caplog.at_level("WARNING"):
        if message is None:
            model._require_same(written["ptq"], "the state")
            assert "ptq: method: lr is now 0.5, and was 0.01 up to here" in caplog.text
        else:
            with pytest.raises(checkpoints.CheckpointError, match=message):
                model.resume_training(written)


def test_killed_run_goes_on_to_the_same_bits(loop, ptq_options):
    opt = ptq_options("SPR2Q", total=6, gating="network")
    loop.here(opt)
    folder = loop.models(opt["name"])
    wanted = checkpoints.read_file(folder / "net_g_latest.pth")["params"]
    killed = opt | {"name": "killed"}
    loop.run_until(killed, "iter:       4")
    folder = loop.models("killed")
    assert not (folder / "net_g_latest.pth").exists()
    loop.here(killed, "--auto_resume")
    assert same(checkpoints.read_file(folder / "net_g_latest.pth")["params"], wanted) == []


def test_method_without_iterations(loop, ptq_options):
    opt = ptq_options("Percentile", total=1)
    loop.here(opt)
    folder = loop.models(opt["name"])
    a, b = (checkpoints.read_file(folder / f"net_g_{i}.pth")["params"] for i in ("calibrated", "latest"))
    assert same(a, b) == []
    assert not uncalibrated(_loaded(opt, b))


def _loaded(opt, state):
    net = build_network(copy.deepcopy(opt["network_g"]))
    net.load_state_dict(state)
    return net


def test_validation_is_of_what_is_saved(ptq_options, parsed):
    from qmambair_basicsr.models.ptq_model import PTQModel

    model = PTQModel(parsed(ptq_options("FIMAQ", total=6)))
    for i in range(1, 4):
        model.feed_data({"lq": torch.rand(2, 3, 12, 12)})
        model.optimize_parameters(i)
    model.feed_data({"lq": torch.rand(1, 3, 12, 12)})
    model.test()
    model.save_network(model.net_g, "net_g", 3)
    path = f"{model.opt['path']['models']}/net_g_3.pth"
    net = _loaded(model.opt, checkpoints.read_file(path)["params"]).eval()
    with torch.no_grad():
        assert torch.equal(net(model.lq), model.output)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ptq": {"method": {"type": "SPR2Q", "rnk": 4}}}, r"unknown key for SPR2Q 'rnk' \(did you mean 'rank'\?\)"),
        ({"ptq": {"method": {"type": "SPR3Q"}}}, "unknown post-training method 'SPR3Q'"),
        ({"ptq": {"method": {"type": "SPR2Q", "rank": 0}}}, r"ptq\.method\.rank.*number in \[1, 512\], got 0"),
        ({"ptq": {"method": {"type": "MinMax"}, "calibrtion": {}}}, r"ptq.*'calibrtion'|unknown key"),
        ({"ptq": None}, "ptq"),
    ],
    ids=["option", "method", "value", "section", "missing"],
)
def test_mistakes_are_named_by_schema_and_model(ptq_options, parsed, change, message):
    from qmambair_basicsr.models.ptq_model import PTQModel

    opt = ptq_options("SPR2Q") | change
    found = schema.problems({k: v for k, v in opt.items() if v is not None}, True, look_at_files=False)
    assert any("ptq" in problem.where for problem in found), found
    with pytest.raises(SpecError, match=message):
        PTQModel(parsed(opt))


def test_right_options_have_no_problem(ptq_options):
    assert schema.problems(ptq_options("SPR2Q"), True, look_at_files=False) == []
    opt = ptq_options("SPR2Q")
    opt["train"]["optim_g"] = {"type": "Adam", "lr": 1e-3}
    (problem,) = schema.problems(opt, True, look_at_files=False)
    assert problem.where == "train.optim_g"


@pytest.mark.parametrize(
    ("method", "total", "message"),
    [
        ("MinMax", 5, "MinMax has no iterations; write 1, not 5"),
        ("BRECQ", 1, "BRECQ reconstructs 2 blocks"),
        ("SPR2Q", 2, "2 iterations are all taken by routing: 2"),
    ],
    ids=["none", "blocks", "routing"],
)
def test_lengths_that_a_method_cannot_have(ptq_options, parsed, method, total, message):
    from qmambair_basicsr.models.ptq_model import PTQModel

    with pytest.raises(ValueError, match=message):
        PTQModel(parsed(ptq_options(method, total=total)))


def test_other_quantizers_are_refused_by_name(ptq_options, parsed):
    from qmambair_basicsr.models.ptq_model import PTQModel

    opt = ptq_options("MinMax", total=1)
    opt["network_g"]["quant"]["weight"] = {"type": "RFA", "bits": 4}
    with pytest.raises(SpecError, match=r"MinMax sets the bounds of MinMax, but .*weight has RFA; write type"):
        PTQModel(parsed(opt))
