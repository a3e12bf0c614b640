"""``QATModel`` outside the loop: weights, calibration, parameter groups, teacher, health."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from basicsr.archs import build_network
from basicsr.models import build_model

from qmambair_basicsr import checkpoints
from qmambair_basicsr.layers.sites import quantizer_keys, quantizers_of, uncalibrated
from qmambair_basicsr.layers.transforms import LowRank
from qmambair_basicsr.quantizers import UncalibratedError

FULL = {"type": "LSQ", "bits": 32}
BLOCKS = ["layers.*.residual_group.blocks.*"]


def step(model, iteration=1):
    model.update_learning_rate(iteration)
    model.feed_data({"lq": torch.rand(2, 3, 12, 12), "gt": torch.rand(2, 3, 24, 24)})
    model.optimize_parameters(iteration)
    return model.get_current_log()


def saved_file(model, label="calibrated"):
    return f"{model.opt['path']['models']}/net_g_{label}.pth"


def test_calibrated_from_full_precision_before_optimizer_and_average(parsed, qat_options, fp_checkpoint):
    torch.manual_seed(1)
    model = build_model(parsed(qat_options))
    assert uncalibrated(model.net_g) == []
    state = model.net_g.state_dict()
    for key, value in checkpoints.read_file(fp_checkpoint)["params"].items():
        assert torch.equal(state[key], value)
    for key, value in model.net_g_ema.state_dict().items():
        assert torch.equal(state[key], value)
    saved = checkpoints.read_file(saved_file(model))["params"]
    assert saved.keys() == state.keys()
    assert all(torch.equal(state[key], value) for key, value in saved.items())
    # the same images and crops whatever was drawn before
    torch.manual_seed(2)
    again = build_model(parsed(qat_options)).net_g.state_dict()
    assert all(torch.equal(state[key], value) for key, value in again.items())
    qat_options["quant_train"]["calibration"]["seed"] = 9
    other = build_model(parsed(qat_options)).net_g.state_dict()
    assert any(not torch.equal(state[key], value) for key, value in other.items())


def test_increments_are_trained_and_merged_in_saved_files(parsed, qat_options):
    """A file of a network with increments is one of the network without; with rotations it says so."""
    plain = copy.deepcopy(qat_options)
    qat_options["network_g"]["quant"]["transforms"] = {"LowRank": {"rank": 2}}
    qat_options["train"]["ema_decay"] = 0.5
    model = build_model(parsed(qat_options))
    before = [m.B.clone() for m in model.net_g.modules() if isinstance(m, LowRank)]
    assert len(before) > 3 and not any(b.any() for b in before)
    for iteration in (1, 2):
        step(model, iteration)
    assert any(m.B.any() for m in model.net_g.modules() if isinstance(m, LowRank))
    model.save(0, 2)
    keys = build_network(copy.deepcopy(plain["network_g"])).state_dict().keys()
    for name in ("calibrated", 2):
        assert checkpoints.read_file(saved_file(model, name))["params"].keys() == keys
    image = {"lq": torch.rand(1, 3, 10, 14)}
    model.feed_data(image)
    model.test()
    wanted = model.output.clone()
    for options in (plain, qat_options):  # with and without increments, which then are 0
        options["path"] = {"pretrain_network_g": saved_file(model, 2), "param_key_g": "params_ema"}
        options["path"]["strict_load_g"] = True
        tested = build_model(parsed(options, is_train=False))
        tested.feed_data(image)
        tested.test()
        torch.testing.assert_close(tested.output, wanted, rtol=0, atol=0)
    qat_options["network_g"]["quant"]["transforms"] = {"Hadamard": {}}
    with pytest.raises(checkpoints.CheckpointMismatchError, match=r"transform\.order"):
        build_model(parsed(qat_options, is_train=False))


def test_calibrated_and_trained_files_can_be_tested(parsed, qat_options):
    model = build_model(parsed(qat_options))
    step(model)
    model.save(0, 1)
    image = {"lq": torch.rand(1, 3, 10, 14)}
    for path, key in (
        (saved_file(model), "params"),
        (saved_file(model, 1), "params_ema"),
    ):
        options = copy.deepcopy(qat_options)
        options["path"] |= {"pretrain_network_g": path, "param_key_g": key}
        tested = build_model(parsed(options, is_train=False))
        tested.feed_data(image)
        tested.test()
        if key == "params_ema":
            model.feed_data(image)
            model.test()
            assert torch.equal(tested.output, model.output)


def test_uncalibrated_network_is_not_tested(parsed, qat_options):
    for path in (qat_options["path"]["pretrain_network_g"], None):
        qat_options["path"]["pretrain_network_g"] = path
        with pytest.raises(UncalibratedError, match=r"quantizers were never calibrated: .*quantizer.* and \d+ more"):
            build_model(parsed(qat_options, is_train=False))


def test_quantized_checkpoint_is_not_calibrated_again(parsed, qat_options):
    model = build_model(parsed(qat_options))
    step(model)
    model.save(0, 1)
    expected = model.net_g.state_dict()
    qat_options["path"]["pretrain_network_g"] = saved_file(model, 1)
    qat_options["name"] = "second"
    second = build_model(parsed(qat_options))
    assert all(torch.equal(expected[key], value) for key, value in second.net_g.state_dict().items())
    with pytest.raises(checkpoints.CheckpointError, match="does not exist"):
        checkpoints.read_file(saved_file(second))


def test_quantizers_of_another_kind_start_anew(parsed, qat_options, caplog):
    first = build_model(parsed(qat_options))
    step(first)
    first.save(0, 1)
    qat_options["path"]["pretrain_network_g"] = path = saved_file(first, 1)
    other = {"scan": {"type": "LSQOffset", "bits": 4, "offsets": "channel"}}
    qat_options["network_g"]["quant"]["overrides"] = {"*.u": other}
    with pytest.raises(checkpoints.CheckpointMismatchError, match="missing in the file"):
        build_model(parsed(qat_options))
    qat_options["quant_train"]["calibration"]["changed"] = True
    logger = logging.getLogger("basicsr")
    logger.addHandler(caplog.handler)
    try:
        model = build_model(parsed(qat_options))
    finally:
        logger.removeHandler(caplog.handler)
    assert "of another kind than in the file and start anew" in caplog.text and ".u" in caplog.text
    assert uncalibrated(model.net_g) == []
    kept, state = checkpoints.read_file(path)["params"], model.net_g.state_dict()
    new = {key for key in state if ".u." in key}
    assert new and state.keys() - new == {key for key in kept if ".u." not in key}
    assert all(torch.equal(state[key], kept[key]) for key in state.keys() - new)  # nothing else was calibrated again
    assert step(model)["l_pix"] > 0
    qat_options["quant_train"]["start"] = {"method": {"type": "Percentile"}}
    with pytest.raises(ValueError, match="start sets every quantizer, calibration: changed leaves those of the file"):
        build_model(parsed(qat_options))
    del qat_options["quant_train"]["start"]
    qat_options["quant_train"]["calibration"]["changed"] = "yes"
    with pytest.raises(ValueError, match="calibration: changed must be true or false"):
        build_model(parsed(qat_options))


def test_a_resumed_run_keeps_the_quantizers_of_its_file(parsed, qat_options):
    """Whatever ``calibration: changed`` says: moments and averages are of those."""
    qat_options["quant_train"]["calibration"]["changed"] = True
    qat_options["train"]["ema_decay"] = 0
    first = build_model(parsed(qat_options))
    step(first)
    first.save(0, 1)
    state = f"{first.opt['path']['training_states']}/1.state"
    qat_options["path"] |= {"resume_state": state, "pretrain_network_g": saved_file(first, 1)}
    resumed = build_model(parsed(qat_options))
    assert all(torch.equal(first.net_g.state_dict()[key], t) for key, t in resumed.net_g.state_dict().items())
    other = {"scan": {"type": "LSQOffset", "bits": 4, "offsets": "channel"}}
    qat_options["network_g"]["quant"]["overrides"] = {"*.u": other}
    with pytest.raises(checkpoints.CheckpointMismatchError, match="missing in the file"):
        build_model(parsed(qat_options))


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "some quantizer keys"])
def test_files_that_do_not_fit_are_listed(parsed, qat_options, fp_checkpoint, damage):
    state = checkpoints.read_file(fp_checkpoint)["params"]
    if damage == "missing":
        del state["conv_first.weight"]
    elif damage == "unknown":
        state["conv_zeroth.weight"] = torch.zeros(1)
    elif damage == "shape":
        state["conv_first.weight"] = torch.zeros(30, 1, 3, 3)
    else:
        net = build_network(qat_options["network_g"])
        state[sorted(quantizer_keys(net))[0]] = torch.zeros(())
    checkpoints.write_file({"params": state}, fp_checkpoint)
    key = {"unknown": "conv_zeroth", "some quantizer keys": "quantizers"}.get(damage, "conv_first")
    with pytest.raises(checkpoints.CheckpointMismatchError, match=rf"(?s)fp\.pth.*{key}"):
        build_model(parsed(qat_options))


def test_quantizer_parameters_have_their_own_rate_and_no_decay(parsed, qat_options):
    qat_options["train"]["optim_g"] |= {"weight_decay": 0.1}
    model = build_model(parsed(qat_options))
    weights, quantizers = model.optimizer_g.param_groups
    assert (weights["lr"], weights["weight_decay"]) == (1e-3, 0.1)
    assert (quantizers["lr"], quantizers["weight_decay"]) == (5e-4, 0.0)
    own = {id(p) for q in quantizers_of(model.net_g).values() for p in q.parameters()}
    assert {id(p) for p in quantizers["params"]} == own
    assert len(own) > 0
    everything = [id(p) for group in model.optimizer_g.param_groups for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in model.net_g.parameters())
    before = [p.detach().clone() for p in quantizers["params"]]
    step(model)
    assert sum(not torch.equal(a, b) for a, b in zip(before, quantizers["params"], strict=True)) > len(before) // 2
    for iteration in range(2, 8):  # the milestone at 5 halves both
        model.update_learning_rate(iteration)
    assert model.get_current_learning_rate() == pytest.approx([5e-4, 2.5e-4])


def test_network_without_quantizers_is_refused(parsed, qat_options, train_options):
    qat_options["network_g"] = train_options["network_g"]
    with pytest.raises(ValueError, match="QATModel needs a quantized network; MambaIR has no quantizer"):
        build_model(parsed(qat_options))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (
            {"calibrations": {}},
            r"quant_train: unknown key 'calibrations' \(did you mean 'calibration'\?\); allowed: ",
        ),
        ({"calibration": {"batch": 3}}, "quant_train: calibration: unknown key 'batch'"),
        (
            {"calibration": {"batches": 0}},
            "quant_train: calibration: batches must be a whole number, at least 1, got 0",
        ),
        ({"calibration": 8}, "quant_train: calibration: must be a mapping, got 8"),
        ({"lr_factor": -1}, "quant_train: lr_factor must be a number, at least 0"),
        ({"lr_factor": float("nan")}, "quant_train: lr_factor"),
        ({"health_freq": 1.5}, "quant_train: health_freq must be a whole number"),
        ({"teacher": {"param_key": "params"}}, "quant_train: teacher: .*path"),
        ({"teacher": {"path": None}}, "quant_train: teacher: path must name a checkpoint, got None"),
    ],
    ids=str,
)
def test_options_are_strict(parsed, qat_options, section, words):
    with pytest.raises(ValueError, match=words):
        build_model(parsed(qat_options | {"quant_train": section}))


@pytest.fixture
def taught(qat_options, fp_checkpoint):
    qat_options["quant_train"]["teacher"] = {"path": str(fp_checkpoint)}
    qat_options["train"] |= {
        "distill_opt": {"type": "PixelDistillationLoss"},
        "feature_opt": {"type": "FeatureAlignmentLoss", "layers": BLOCKS},
    }
    return qat_options


def test_teacher_is_the_frozen_full_precision_twin(parsed, taught, fp_checkpoint):
    del taught["train"]["pixel_opt"]
    model = build_model(parsed(taught))
    expected = checkpoints.read_file(fp_checkpoint)["params"]
    assert type(model.teacher).__name__ == "MambaIR"
    before = model.net_g.state_dict()["conv_first.weight"].clone()
    log = step(model)
    assert set(log) == {"l_distill", "l_feature"}
    assert min(log.values()) > 0
    assert not torch.equal(before, model.net_g.state_dict()["conv_first.weight"])
    assert not model.teacher.training
    for key, value in model.teacher.state_dict().items():
        assert torch.equal(value, expected[key])
    assert all(p.grad is None for p in model.teacher.parameters())


def test_unquantized_student_has_nothing_to_learn(parsed, taught):
    taught["network_g"] |= {"quant": {"weight": FULL, "act": FULL, "scan": FULL}, "drop_path_rate": 0.0}
    log = step(build_model(parsed(taught)))
    assert log["l_distill"] == 0
    assert log["l_feature"] == 0
    assert log["l_pix"] > 0


def test_teacher_and_student_route_by_the_same_noise(parsed, taught, tmp_path):
    network = {
        "type": "MambaIRv2Light",
        "upscale": 2,
        "embed_dim": 16,
        "d_state": 2,
        "depths": [1],
        "num_heads": [2],
        "inner_rank": 4,
        "num_tokens": 8,
        "mlp_ratio": 1.0,
        "upsampler": "pixelshuffledirect",
    }
    path = tmp_path / "v2.pth"
    checkpoints.write_file({"params": build_network(network).state_dict()}, path)
    taught["network_g"] = {**network, "type": "QMambaIRv2Light", "quant": {"weight": FULL, "act": FULL, "scan": FULL}}
    taught["path"]["pretrain_network_g"] = taught["quant_train"]["teacher"]["path"] = str(path)
    del taught["train"]["feature_opt"]["layers"]  # the blocks that the network names itself
    model = build_model(parsed(taught))
    assert model.features.names == model.teacher_features.names == ["layers.0.residual_group.layers.0"]
    same_noise = step(model)["l_distill"]
    model.feed_data({"lq": torch.rand(2, 3, 12, 12), "gt": torch.rand(2, 3, 24, 24)})
    with model.step_randomness(), torch.no_grad():
        first = model.teacher(model.lq)
    model._iteration += 1
    with model.step_randomness(), torch.no_grad():
        second = model.teacher(model.lq)
    # attention sums in another order where gradients flow; routing differently would change far more
    assert same_noise < 1e-6 < 1e-5 < (first - second).abs().mean()  # fresh noise every iteration


def test_teacher_and_its_losses_come_together(parsed, taught):
    options = copy.deepcopy(taught)
    del options["quant_train"]["teacher"]
    with pytest.raises(ValueError, match="distill_opt compares with a teacher; set quant_train: teacher: path"):
        build_model(parsed(options))
    del taught["train"]["distill_opt"], taught["train"]["feature_opt"]
    with pytest.raises(ValueError, match="teacher is set but train has neither"):
        build_model(parsed(taught))


def test_features_of_unknown_layers_are_refused(parsed, taught):
    taught["train"]["feature_opt"]["layers"] = ["blocks.*"]
    with pytest.raises(ValueError, match=r"'blocks\.\*' matches no module of QMambaIR"):
        build_model(parsed(taught))


def test_health_of_every_quantizer_reaches_tensorboard(parsed, qat_options, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    qat_options["quant_train"]["health_freq"] = 2
    qat_options["logger"]["use_tb_logger"] = True
    model = build_model(parsed(qat_options))
    for iteration in (1, 2, 3, 4):
        step(model, iteration)
    events = accumulator.EventAccumulator(str(tmp_path / "tb_logger" / "run"))
    events.Reload()
    names = quantizers_of(model.net_g)
    for figure in ("scale", "offset", "clipped", "dead_levels"):
        for name in names:
            values = events.Scalars(f"health/{figure}/{name}")
            assert [v.step for v in values] == [2, 4]
            low, high = {"scale": (1e-12, 1e6), "offset": (-1e6, 1e6), "clipped": (0, 1), "dead_levels": (0, 15)}[
                figure
            ]
            assert all(low <= v.value <= high for v in values)
    assert not any(module._forward_pre_hooks for module in names.values())


def test_stopping_at_nan_names_the_quantizers_layer(parsed, qat_options):
    model = build_model(parsed(qat_options))
    step(model)
    model.save(0, 1)
    quantizer = model.net_g.get_submodule("layers.0.residual_group.blocks.1.self_attention.in_proj.act_quantizer")
    quantizer.quantize = lambda x: x / 0
    with pytest.raises(
        RuntimeError, match=r"iteration 2 .*blocks\.1\.self_attention\.in_proj\.act_quantizer \(LSQOff.*net_g_1"
    ):
        step(model, 2)
