"""What changes in the course of a training: widths, weights of losses, what oscillates, the correction at the end, the start."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from basicsr.models import build_model
from basicsr.utils import get_root_logger
from recorded_operations import RecordedOperations
from training_runs import batch, built, equal_states, run

from qmambair_basicsr import checkpoints
from qmambair_basicsr.layers.sites import parameter_sites, quantizers_of
from qmambair_basicsr.models import cuda_graph
from qmambair_basicsr.models.oscillation import Oscillation
from qmambair_basicsr.models.phased_training import PhasedTraining
from qmambair_basicsr.models.quant_options import OscillationOptions, QuantTrainOptions
from qmambair_basicsr.models.ramp import Ramp
from qmambair_basicsr.ops.backend import ENV

LOUD = {"damping": {"from": 0, "to": 0.1}, "freeze": {"from": 0.02, "to": 0.01, "start": 1}, "momentum": 0.3}
STAGES = {"progressive": [{"bits": 8, "iterations": 2}, {"bits": 4, "iterations": 3}]}
EVERYTHING = {
    "oscillation": LOUD,
    "correction": {"iterations": 2, "lr": 1e-3},
    "progressive": [{"bits": 3, "iterations": 2}],
}
LATE = {"type": "L1Loss", "schedule": {"from": 0, "to": 0.5, "start": 3, "end": 6}}


@pytest.fixture
def options(qat_options, fp_checkpoint):
    """One block at two bits, a teacher, an average."""
    qat_options["network_g"]["depths"] = [1]
    teacher = {key: value for key, value in qat_options["network_g"].items() if key != "quant"} | {"type": "MambaIR"}
    torch.manual_seed(2)
    torch.save({"params": build_network_of(teacher)}, fp_checkpoint)
    qat_options["quant_train"] |= {"teacher": {"path": str(fp_checkpoint)}}
    qat_options["train"] |= {"distill_opt": {"type": "PixelDistillationLoss"}}
    return qat_options


def build_network_of(section):
    from basicsr.archs import build_network

    return build_network(section).state_dict()


def resumed(parsed, options, model, iteration):
    """A new model that goes on from the files of another."""
    model.save(0, iteration)
    state = f"{model.opt['path']['training_states']}/{iteration}.state"
    options = copy.deepcopy(options)
    options["path"] |= {
        "resume_state": state,
        "pretrain_network_g": f"{model.opt['path']['models']}/net_g_{iteration}.pth",
    }
    torch.manual_seed(5)
    again = build_model(parsed(options))
    again.resume_training(checkpoints.load_training_state(state))
    return again


@pytest.mark.parametrize(("phases", "stop"), [(EVERYTHING, 4), (STAGES, 3)], ids=["everything", "stages"])
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(parsed, options, phases, stop):
    options["quant_train"] |= phases
    options["train"] |= {"pixel_opt": LATE}
    whole = built(parsed, options)
    logs = run(whole, range(1, 9))
    cut = built(parsed, options)
    first = run(cut, range(1, stop + 1))
    again = resumed(parsed, options, cut, stop)
    assert first + run(again, range(stop + 1, 9)) == logs
    assert equal_states(whole, again)


def test_a_replayed_step_is_an_eager_one(parsed, options, monkeypatch):
    monkeypatch.setitem(cuda_graph.RECORDERS, "cpu", RecordedOperations)
    monkeypatch.setenv(ENV, "reference")
    options["quant_train"] |= EVERYTHING
    options["train"] |= {"total_iter": 10, "pixel_opt": {"type": "L1Loss", "schedule": {"from": 0.1, "to": 1}}}
    eager, graph = (built(parsed, options, cuda_graph=flag) for flag in (False, True))
    assert run(eager, range(1, 11)) == run(graph, range(1, 11))
    assert equal_states(eager, graph)
    assert graph.step_graph._recorder.replays >= 2


# -- losses over the iterations -----------------------------------------------------------------------------------


def test_ramps():
    ramp = Ramp.read({"from": 0, "to": 2, "start": 10, "end": 20}, "x")
    assert [ramp.at(i, 100) for i in (1, 10, 15, 20, 50)] == [0, 0, 1, 2, 2]
    late = Ramp.read({"from": 1, "to": 0, "start": 10, "shape": "cosine"}, "x")
    assert late.at(55, 100) == pytest.approx(0.5)
    assert late.at(32, 100) > 0.8
    assert late.at(100, 100) == 0
    assert Ramp.read(0.5, "x").at(3, 9) == 0.5
    for wrong in ({"from": 1}, {"from": 1, "to": -1}, {"from": 0, "to": 1, "start": 5, "end": 2}, "1", True):
        with pytest.raises(ValueError, match=r"^where: "):
            Ramp.read(wrong, "where")


def test_weights_of_losses_follow_their_schedule(parsed, options):
    options["train"] |= {
        "pixel_opt": LATE,
        "feature_opt": {"type": "FeatureAlignmentLoss", "schedule": {"from": 1, "to": 0, "start": 1, "end": 3}},
    }
    model = built(parsed, options)
    names = [set(log) for log in run(model, range(1, 7))]
    assert names[0] == {"l_distill", "l_feature"}
    assert [("l_pix" in n, "l_feature" in n) for n in names[1:4]] == [(False, True), (False, False), (True, False)]
    model.feed_data(batch(7))
    model._iteration = 7
    model.begin_step()
    with torch.no_grad():
        losses = model.compute_losses()
        expected = 0.5 * (model.output - model.gt).abs().mean()
    assert torch.equal(losses["l_pix"], expected)


def test_a_teacher_that_does_not_count_does_not_run(parsed, options):
    options["train"]["distill_opt"]["schedule"] = {"from": 1, "to": 0, "start": 1, "end": 2}
    model = built(parsed, options)
    calls = []
    model.teacher.register_forward_hook(lambda *given: calls.append(1))
    run(model, range(1, 4))
    assert len(calls) == 1
    options["train"]["pixel_opt"]["schedule"] = {"from": 0, "to": 0}
    model = built(parsed, options)
    with pytest.raises(ValueError, match="every loss has the weight 0 in iteration 2"):
        run(model, range(1, 4))


# -- oscillation ---------------------------------------------------------------------------------------------------


def watched(parsed, options, **section):
    options["network_g"]["quant"]["weight"] = {"type": "LSQ", "bits": 2}
    model = built(parsed, options)
    section = QuantTrainOptions.from_dict({"oscillation": section}).oscillation
    return model.net_g, Oscillation(model.net_g, section, 100)


def test_damping_is_the_distance_to_the_levels_within_the_grid(parsed, options):
    net, oscillation = watched(parsed, options, damping=2.0)
    oscillation.begin(1)
    expected = 0
    for placed in parameter_sites(net):
        if placed.site.role == "weight":
            q, weight = placed.quantizer, placed.tensor()
            scale = q.scale.detach()
            inside = weight.clamp(q.qmin * scale, q.qmax * scale)
            expected += (q(weight).detach() - inside).square().sum()
    loss = oscillation.damping()
    torch.testing.assert_close(loss, 2 * expected)
    loss.backward()
    layer = net.get_submodule("layers.0.residual_group.blocks.0.self_attention.in_proj")
    weight, scale = layer.weight, layer.weight_quantizer.scale
    outside = weight > layer.weight_quantizer.qmax * scale
    assert outside.any()
    assert not weight.grad[outside].any()
    assert layer.weight_quantizer.scale.grad is None  # the levels hold still
    before = loss.item()
    with torch.no_grad():
        weight -= 0.01 * weight.grad
    assert oscillation.damping().item() < before


def test_a_weight_that_jumps_to_and_fro_is_frozen_at_its_usual_level(parsed, options):
    """Element 0 jumps in every step and is most often at code 1, element 1 moves on once, the rest stays."""
    net, oscillation = watched(parsed, options, freeze=0.35, momentum=0.2, sites=["*.in_proj"])
    layer = net.get_submodule("layers.0.residual_group.blocks.0.self_attention.in_proj")
    with torch.no_grad():
        layer.weight_quantizer.scale.fill_(1.0)
        layer.weight.zero_()
    flat = layer.weight.detach().view(-1)
    oscillation.begin(1)
    for iteration in range(1, 9):
        flat[0] = 1.2 if iteration % 4 else 0.1
        if iteration % 2 == 0 and iteration % 4:
            flat[0] = 0.1
        if iteration == 3:
            flat[1] = 0.9
        oscillation.end(iteration)
    (memory,) = oscillation._memory
    assert memory["frozen"].view(-1)[:3].tolist() == [True, False, False]
    frozen = flat[0].item()
    assert frozen in (0.0, 1.0)
    assert flat[1].item() == pytest.approx(0.9)  # not rounded
    assert oscillation.frozen_share() == pytest.approx(1 / flat.numel())
    flat[0] = -1.9
    with torch.no_grad():
        layer.weight_quantizer.scale.fill_(0.5)
    oscillation.end(9)
    assert flat[0].item() == frozen / 2  # in units of the grid
    assert int(memory["code"].view(-1)[0]) == frozen


def test_nothing_is_frozen_before_the_schedule_starts(parsed, options):
    options["quant_train"]["oscillation"] = {"freeze": {"from": 1e-6, "to": 1e-6, "start": 6}, "momentum": 0.5}
    options["train"]["optim_g"]["lr"] = 0.02
    model = built(parsed, options)
    run(model, range(1, 7))
    assert model.oscillation.frozen_share() == 0
    run(model, range(7, 9))
    assert model.oscillation.frozen_share() > 0


def test_weights_that_have_no_steps_are_not_frozen(parsed, options):
    options["network_g"]["quant"]["weight"] = {"type": "AnyOrder", "bits": 2}
    options["quant_train"]["oscillation"] = {"freeze": 0.1}
    with pytest.raises(ValueError, match=r"oscillation: freeze: .*codes of AnyOrder are no multiples"):
        built(parsed, options)
    options["quant_train"]["oscillation"] = {"damping": 0.1, "sites": ["nowhere"]}
    with pytest.raises(ValueError, match="no quantized weight fits"):
        built(parsed, options)


def test_phases_go_with_transforms_but_for_what_is_frozen(parsed, options):
    """Weights are damped where their quantizers see them, rotated and incremented; stages keep what is trained of them."""
    options["network_g"]["quant"]["transforms"] = {"Hadamard": {"block": 2}, "LowRank": {"rank": 2}}
    options["quant_train"] |= {"progressive": [{"bits": 4, "iterations": 2}], "oscillation": {"damping": 0.1}}
    model = built(parsed, options)
    logs = run(model, range(1, 4))
    assert all(log["l_damping"] > 0 for log in logs)
    trained = {name for name, p in model.net_g.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("transform" in name for name in trained)
    options["quant_train"]["oscillation"] = {"freeze": 0.1}
    with pytest.raises(ValueError, match="goes through a transform first; leave it out of `sites`"):
        built(parsed, options)


# -- correction ----------------------------------------------------------------------------------------------------


def test_the_correction_trains_quantizers_and_biases_on_averaged_weights(parsed, options):
    options["quant_train"]["correction"] = {"iterations": 3, "lr": 1e-3}
    model = built(parsed, options)
    run(model, range(1, 6))
    average = copy.deepcopy(model.net_g_ema.state_dict())
    assert any(not torch.equal(average[key], value) for key, value in model.net_g.state_dict().items())
    run(model, range(6, 7))
    rates = [group["lr"] for group in model.optimizer_g.param_groups]
    assert rates == [0.0, 1e-3, 5e-4]
    run(model, range(7, 9))
    state = model.net_g.state_dict()
    own = {id(p) for q in quantizers_of(model.net_g).values() for p in q.parameters()}
    moved = {name for name, p in model.net_g.named_parameters() if not torch.equal(p, average[name])}
    trained = {name for name, p in model.net_g.named_parameters() if id(p) in own or name.endswith("bias")}
    assert moved <= trained
    assert any(name.endswith("scale") for name in moved)
    assert any(name.endswith("bias") for name in moved)
    assert all(torch.equal(state[key], value) for key, value in model.net_g_ema.state_dict().items())


def test_a_correction_needs_an_average_and_iterations_in_front(parsed, options):
    options["quant_train"]["correction"] = {"iterations": 8}
    with pytest.raises(ValueError, match="must be fewer than train: total_iter, 8, got 8"):
        built(parsed, options)
    with pytest.raises(ValueError, match="set train: ema_decay"):
        built(parsed, options, ema_decay=0)


# -- widths one after the other -------------------------------------------------------------------------------------


def widths(net):
    return {quantizer.bits for quantizer in quantizers_of(net).values()}


def test_widths_fall_from_stage_to_stage(parsed, options, monkeypatch):
    options["network_g"]["quant"]["overrides"] = {"*.in_proj": {"weight": {"type": "LSQ", "bits": 6}}}
    options["quant_train"] |= STAGES
    entered = []
    enter = PhasedTraining.enter_stage

    def enters(self, bits):
        before = {name: p.clone() for name, p in self.net_g.named_parameters() if "quantizer" not in name}
        enter(self, bits)
        after = dict(self.net_g.named_parameters())
        entered.append(all(torch.equal(after[name], p) for name, p in before.items()))

    monkeypatch.setattr(PhasedTraining, "enter_stage", enters)
    model = built(parsed, options)
    seen = []
    for iteration in range(1, 9):
        run(model, [iteration])
        seen.append(widths(model.net_g))
        assert widths(model.net_g_ema) == seen[-1]
        assert model.optimizer_g.param_groups[0]["lr"] == (1e-3 if iteration < 6 else 5e-4)  # milestone 5
    assert seen == [{8}] * 2 + [{4, 6}] * 3 + [{2, 6}] * 3
    assert entered == [True, True]
    own = {id(p) for p in model.net_g.parameters()}
    assert {id(p) for group in model.optimizer_g.param_groups for p in group["params"]} == own
    assert model.opt["network_g"] == options["network_g"]


def test_a_network_of_a_wider_stage_is_not_taken_for_the_last(parsed, options):
    options["quant_train"] |= STAGES
    model = built(parsed, options)
    run(model, range(1, 4))
    model.save(0, 3)
    path = f"{model.opt['path']['models']}/net_g_3.pth"
    tested = copy.deepcopy(options)
    tested["path"]["pretrain_network_g"] = path
    with pytest.raises(checkpoints.CheckpointError, match="of a stage with 4 bits"):
        build_model(parsed(tested, is_train=False))
    run(model, range(4, 7))
    model.save(0, 6)
    tested["path"]["pretrain_network_g"] = path.replace("_3", "_6")
    assert widths(build_model(parsed(tested, is_train=False)).net_g) == {2}


# -- start ---------------------------------------------------------------------------------------------------------


def test_a_training_starts_from_a_reconstruction_block_by_block(parsed, options, caplog, monkeypatch):
    monkeypatch.setattr(get_root_logger(), "propagate", True)
    plain = built(parsed, options)
    method = {"type": "BlockAP", "lr": 1e-3, "batch": 2}
    options["quant_train"]["start"] = {"method": method, "iterations": 60}
    with caplog.at_level(logging.INFO, "basicsr"):
        model = built(parsed, options)
    assert len([r for r in caplog.records if "BlockAP: " in r.getMessage()]) >= 10
    teacher = model.teacher
    errors = []
    for one in (plain, model):
        with torch.no_grad():
            lq = batch(99)["lq"]
            errors.append((one.net_g.eval()(lq) - teacher(lq)).abs().mean().item())
        one.net_g.train()
    assert errors[1] < 0.9 * errors[0]
    saved = checkpoints.read_file(f"{model.opt['path']['models']}/net_g_calibrated.pth")["params"]
    assert all(torch.equal(saved[key], value) for key, value in model.net_g.state_dict().items())
    assert all(p.requires_grad for p in model.net_g.parameters())
    run(model, range(1, 3))
    caplog.clear()
    with caplog.at_level(logging.INFO, "basicsr"):
        again = resumed(parsed, options, model, 2)
    assert not [r for r in caplog.records if "BlockAP" in r.getMessage()]  # not repeated
    assert equal_states(model, again)


def test_methods_that_cannot_start_this_network_say_so(parsed, options):
    options["quant_train"]["start"] = {"method": {"type": "BRECQ"}, "iterations": 60}
    with pytest.raises(ValueError, match=r"BRECQ.*MinMax"):
        built(parsed, options)
    for wrong, said in (
        ({"method": {"type": "BREQ"}}, "did you mean .*BRECQ"),
        ({"method": {"type": "MinMax"}, "iterations": 3}, "MinMax has no iterations"),
    ):
        with pytest.raises(ValueError, match=said):
            QuantTrainOptions.from_dict({"start": wrong})


def test_defaults_of_oscillation():
    section = QuantTrainOptions.from_dict({"oscillation": {"damping": 0.1}}).oscillation
    assert section == OscillationOptions(Ramp(0.1, 0.1))
    for wrong in ({}, {"freeze": 2}, {"damping": 0.1, "momentum": 0}, {"damping": 0.1, "sites": "a"}):
        with pytest.raises(ValueError, match=r"^quant_train: oscillation"):
            QuantTrainOptions.from_dict({"oscillation": wrong or {"momentum": 0.1}})
