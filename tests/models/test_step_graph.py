"""Training steps that are recorded once and replayed: equal to eager ones, and nothing is missed."""

from __future__ import annotations

import copy
import logging
import weakref
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils import get_root_logger
from recorded_operations import RecordedOperations
from training_runs import batch, built, equal_states, run

from qmambair_basicsr.archs.blocks import ChannelAttention
from qmambair_basicsr.archs.routing import NoiseTape, RoutingNoise, shared_routing_noise, taped_noise
from qmambair_basicsr.layers.sites import quantizers_of
from qmambair_basicsr.models import cuda_graph, step_graph
from qmambair_basicsr.models.non_finite import NonFiniteError
from qmambair_basicsr.models.step_options import StepOptions
from qmambair_basicsr.ops.backend import ENV
from qmambair_basicsr.schema import cross


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setitem(cuda_graph.RECORDERS, "cpu", RecordedOperations)
    monkeypatch.setenv(ENV, "reference")  # the stand-in sees PyTorch's operators
    monkeypatch.setattr(get_root_logger(), "propagate", True)  # to caplog


@pytest.fixture
def options(train_options):
    train_options["train"] |= {"grad_clip": 0.1, "warmup_iter": 4}
    train_options["train"]["scheduler"] |= {"milestones": [7], "gamma": 0.5}
    return train_options


def step_only(model, iteration) -> None:
    model.feed_data(batch(iteration))
    model.optimize_parameters(iteration)


def compared(parsed, options, iterations=range(1, 11), change=None, **train):
    eager, graph = (built(parsed, options, cuda_graph=flag, **train) for flag in (False, True))
    logs = [run(m, iterations, change) for m in (eager, graph)]
    assert logs[0] == logs[1]
    assert equal_states(eager, graph)
    return graph


def test_replayed_steps_are_eager_ones(parsed, options):
    """DropPath, average, warm-up and a milestone of the learning rate, clipping; on other batches every time."""
    model = compared(parsed, options)
    recorder = model.step_graph._recorder
    assert recorder.recordings == 1
    assert recorder.replays >= 6
    assert [type(rate) for rate in model.get_current_learning_rate()] == [float]


@pytest.mark.parametrize("train", [{"accumulate": 2}, {"amp": "bf16"}, {"amp": "fp16"}], ids=str)
def test_other_kinds_of_steps(parsed, options, train):
    options["network_g"]["depths"] = [1]
    model = compared(parsed, options, range(1, 8), **train)
    assert model.step_graph._recorder.replays >= 2


def test_activations_quantized_again(parsed, qat_options):
    qat_options["network_g"]["depths"] = [1]
    qat_options["path"]["pretrain_network_g"] = None
    model = compared(parsed, qat_options, range(1, 8), requantize=True)
    assert model.step_graph._recorder.replays >= 2


@pytest.fixture
def taught_v2(qat_options, tmp_path):
    """QMambaIRv2Light with its teacher, a feature loss, and routing noise that both share."""
    network = {
        "type": "MambaIRv2Light",
        "upscale": 2,
        "embed_dim": 24,
        "d_state": 2,
        "depths": [1],
        "num_heads": [2],
        "window_size": 4,
        "inner_rank": 4,
        "num_tokens": 8,
        "convffn_kernel_size": 3,
        "mlp_ratio": 1.0,
        "upsampler": "pixelshuffledirect",
    }
    path = tmp_path / "v2.pth"
    torch.manual_seed(1)
    torch.save({"params": build_network(network).state_dict()}, path)
    qat_options["network_g"] = {**network, "type": "QMambaIRv2Light", "quant": qat_options["network_g"]["quant"]}
    qat_options["path"]["pretrain_network_g"] = str(path)
    qat_options["quant_train"]["teacher"] = {"path": str(path)}
    qat_options["quant_train"]["health_freq"] = 6
    qat_options["train"] |= {
        "distill_opt": {"type": "PixelDistillationLoss", "loss_weight": 0.5},
        "feature_opt": {"type": "FeatureAlignmentLoss", "loss_weight": 0.1},
    }
    return qat_options


def test_a_teacher_and_noise_that_is_shared_with_it(parsed, taught_v2):
    """The seed of the noise is another one in every step; steps that report health are eager ones."""
    model = compared(parsed, taught_v2, range(1, 9))
    recorder = model.step_graph._recorder
    assert (recorder.recordings, recorder.replays) == (1, 3)
    assert len(model.step_graph._tape._tensors) == 1


def test_a_recorded_run_resumes_as_an_eager_one(parsed, options):
    eager, graph = (built(parsed, options, cuda_graph=flag) for flag in (False, True))
    run(eager, range(1, 12))
    run(graph, range(1, 8))
    assert graph.step_graph._recorder.replays
    graph.save(0, 7)
    opt = copy.deepcopy(options)
    models = graph.opt["path"]["models"]
    opt["path"] |= {"resume_state": "7.state", "pretrain_network_g": f"{models}/net_g_7.pth"}
    again = built(parsed, opt, cuda_graph=True)
    again.resume_training(torch.load(f"{graph.opt['path']['training_states']}/7.state", weights_only=True))
    run(again, range(8, 12))
    assert equal_states(eager, again)
    # within a process, too: the moments are then other tensors
    recorded = graph.step_graph._recorder.recordings
    graph.optimizer_g.load_state_dict(copy.deepcopy(graph.optimizer_g.state_dict()))
    run(graph, range(8, 12))
    assert graph.step_graph._recorder.recordings == recorded + 1
    assert equal_states(eager, graph)


def poisoned(model, iteration) -> None:
    model.feed_data(batch(iteration))
    model.gt[0, 0, 0, 0] = torch.inf
    model.optimize_parameters(iteration)


def test_nan_is_reported_within_ten_steps_and_nothing_bad_is_saved(parsed, options):
    options["train"]["ema_decay"] = 0
    eager, graph = (built(parsed, options, cuda_graph=flag) for flag in (False, True))
    messages = []
    for model in (eager, graph):
        with pytest.raises(NonFiniteError) as caught:
            for iteration in range(1, 30):
                last = iteration
                (poisoned if iteration == 7 else step_only)(model, iteration)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "training stopped at iteration 7" in messages[1]
    assert "gt of the batch is not finite" in messages[1]
    assert 7 < last <= 17
    assert equal_states(eager, graph)


@pytest.mark.parametrize("asked", ["save", "get_current_log"])
def test_who_asks_is_told_at_once(parsed, options, asked):
    model = built(parsed, options, cuda_graph=True)
    for iteration in range(1, 7):
        step_only(model, iteration)
    poisoned(model, 7)
    step_only(model, 8)
    with pytest.raises(NonFiniteError, match="training stopped at iteration 7"):
        model.save(0, 8) if asked == "save" else model.get_current_log()
    assert not list(tmp_files(model))


def tmp_files(model):
    for folder in ("models", "training_states"):
        yield from Path(model.opt["path"][folder]).iterdir()


def test_what_cannot_be_recorded_runs_eagerly_with_one_warning(parsed, options, caplog, monkeypatch):
    forward = ChannelAttention.forward

    broken = []

    def asks(self, x):
        try:
            assert x.sum().item() < 1e9
        except RuntimeError:
            broken.append(weakref.ref(x))
            raise
        return forward(self, x)

    monkeypatch.setattr(ChannelAttention, "forward", asks)
    with caplog.at_level(logging.WARNING, "basicsr"):
        model = compared(parsed, options, range(1, 9))
    model.step_graph._recorder.calls.clear()
    assert [x() for x in broken] == [None]  # nothing of it is kept
    said = [r.getMessage() for r in caplog.records if "cuda_graph" in r.getMessage()]
    assert len(said) == 1
    assert "steps run eagerly" in said[0]
    assert "layers.0.residual_group.blocks.0.conv_blk" in said[0]
    assert "(ChannelAttention)" in said[0]
    assert "_local_scalar_dense" in said[0]
    assert model.step_graph._recorder.replays == 0


def lower_bits(model):
    for quantizer in quantizers_of(model.net_g).values():
        if quantizer.site.role == "act":
            quantizer.qmin, quantizer.qmax = 0, 1


def freeze(model):
    model.net_g.conv_first.requires_grad_(False)


def weigh(model):
    model.cri_pix.loss_weight = 0.5


def decay(model):
    model.optimizer_g.param_groups[0]["weight_decay"] = 0.1


def renew_buffer(model):
    name, buffer = next((n, b) for n, b in model.net_g.named_buffers() if "." not in n)
    setattr(model.net_g, name, buffer + 0.1)


CHANGES = [lower_bits, freeze, weigh, decay, renew_buffer]


def test_what_python_changes_is_honoured(parsed, qat_options):
    """Everything once, in different steps of one run: each is recorded anew."""
    qat_options["network_g"]["depths"] = [1]
    qat_options["path"]["pretrain_network_g"] = None
    when = {6 + 4 * i: change for i, change in enumerate(CHANGES)}
    eager, graph = (built(parsed, qat_options, cuda_graph=flag) for flag in (False, True))
    for iteration in range(1, 6 + 4 * len(CHANGES)):
        for model in (eager, graph):
            if iteration in when:
                when[iteration](model)
            step_only(model, iteration)
        assert equal_states(eager, graph), iteration
    assert graph.step_graph._recorder.recordings == 1 + len(CHANGES)


def test_what_changes_in_every_step_is_never_recorded_and_said_once(parsed, options, caplog, monkeypatch):
    monkeypatch.setattr(step_graph, "RESTLESS", 4)
    options["network_g"]["depths"] = [1]

    def change(model, iteration):
        model.cri_pix.loss_weight = 1 / iteration

    with caplog.at_level(logging.WARNING, "basicsr"):
        model = compared(parsed, options, range(1, 9), change)
    assert model.step_graph._recorder.recordings == 0
    said = [r.getMessage() for r in caplog.records if "cuda_graph" in r.getMessage()]
    assert len(said) == 1
    assert "attributes of cri_pix" in said[0]


def test_a_device_without_graphs_is_said_once(parsed, options, caplog, monkeypatch):
    monkeypatch.setattr(cuda_graph, "RECORDERS", {})
    monkeypatch.setattr(step_graph, "RECORDERS", {})
    with caplog.at_level(logging.WARNING, "basicsr"):
        compared(parsed, options, range(1, 4))
    assert [
        "cpu devices have no graphs" in r.getMessage() for r in caplog.records if "cuda_graph" in r.getMessage()
    ] == [True]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dist": True}, "one process"),
        ({"num_gpu": 2}, "one process with one GPU"),
        ({"train": {"checkpoint": True}}, "checkpoint"),
        ({"train": {"optim_g": {"type": "SGD"}}}, "fused"),
        ({"train": {"optim_g": {"type": "Adam", "foreach": True}}}, "fused"),
        ({"train": {"cuda_graph": 1}}, "must be true or false"),
    ],
    ids=str,
)
def test_refused_by_name(changes, said):
    opt = {"num_gpu": 1, **changes}
    opt["train"] = {"cuda_graph": True, **opt.get("train", {})}
    with pytest.raises(ValueError, match=f"train: cuda_graph: .*{said}"):
        StepOptions.from_options(opt)


def test_a_tape_holds_the_numbers_of_the_seed_where_they_were():
    logits = [torch.zeros(2, 5, 3), torch.zeros(2, 4, 3)]

    def drawn(seed):
        with shared_routing_noise(seed):
            passes = [RoutingNoise(training, "gumbel", 0, logits[0].device) for training in (True, False)]
            return [noise.add_to(x) for noise in passes for x in logits]

    tape, addresses = NoiseTape(), []
    for seed in (3, 4):
        want = drawn(seed)
        with taped_noise(tape):
            got = drawn(seed)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        addresses.append([t.data_ptr() for t in tape._tensors])
    assert addresses[0] == addresses[1]
    with taped_noise(tape), shared_routing_noise(5), pytest.raises(ValueError, match="different shapes"):
        RoutingNoise(True, "gumbel", 0, logits[0].device).add_to(logits[1])


def test_a_check_of_the_option_file_says_the_same(train_options):
    train_options["train"]["cuda_graph"] = True
    assert list(cross.recorded(train_options)) == []
    train_options["train"]["checkpoint"] = True
    assert [problem.where for problem in cross.recorded(train_options)] == ["train.cuda_graph"]
