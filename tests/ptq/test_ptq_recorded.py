"""Post-training steps and test passes that are recorded once and replayed: equal to eager ones, and every reason to stop is told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from recorded_operations import RecordedOperations, remembered
from test_every_method import QUICK, network

from qmambair_basicsr.archs.routing import EvaluationTapes, RoutingNoise, evaluation_noise_on, shared_routing_noise
from qmambair_basicsr.inference.tiling import parse_tile_option, run_tiled
from qmambair_basicsr.models import cuda_graph, ptq_step_graph
from qmambair_basicsr.models.mambair_model import MambaIRModel
from qmambair_basicsr.models.ptq_step_graph import RecordedSteps
from qmambair_basicsr.models.recorded_passes import MOST, OFTEN, recorded, recorded_passes
from qmambair_basicsr.models.step_settings import StepSettings
from qmambair_basicsr.models.turns import Turn
from qmambair_basicsr.ops.backend import ENV
from qmambair_basicsr.ptq import PTQ_METHODS, build_method
from qmambair_basicsr.ptq.training import OptimizedMethod
from qmambair_basicsr.quantizers import ste

CPU = torch.device("cpu")
END_TO_END = sorted(name for name, method in PTQ_METHODS.items() if issubclass(method, OptimizedMethod))
TOTAL = 8


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setitem(cuda_graph.RECORDERS, "cpu", RecordedOperations)
    monkeypatch.setenv(ENV, "reference")  # the stand-in sees PyTorch's operators
    monkeypatch.setattr(ste, "asking_is_free", lambda x: False)  # as on a GPU


def batches(count, size=8):
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(2, 3, size, size, generator=generator) for _ in range(count)]


def opened(name, **more):
    method = build_method({"type": name, "schedule": "cosine", "samples": 64, **QUICK.get(name, {}), **more})
    method.open(network("MambaIRv2Light", name))
    method.calibrate(batches(1))
    method.plan(TOTAL)
    return method


def trained(name, recorder, **more):
    method = opened(name, **more)
    steps = RecordedSteps(method, CPU) if recorder else None
    losses = []
    for i, images in enumerate(batches(TOTAL)):
        if not recorder:
            for optimizer in method.optimizers:
                optimizer.param_groups[0]["fused"] = True
        losses.append(steps.step(i, images) if recorder else method.step(i, images))
    return method, steps, [{key: float(loss) for key, loss in entry.items()} for entry in losses]


@pytest.mark.parametrize("name", END_TO_END)
@pytest.mark.parametrize(
    "more", [{}, {"bound_steps": "relative", "scan": "Quamba", "loss": "formula"}], ids=["own", "scan"]
)
def test_replayed_iterations_are_eager_ones(name, more):
    eager, _, wanted = trained(name, False, **more)
    replayed, steps, found = trained(name, True, **more)
    assert not steps.reason and found == wanted
    stages = 2 if "routing" in eager.settings else 1
    assert steps._recorder.recordings == stages and steps._recorder.replays >= TOTAL - 3 * stages
    first, second = (m.net.state_dict() for m in (eager, replayed))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


class Watched(Turn):
    """Knows who has the turn; its recordings have a stream of their own."""

    recording, has = "a stream", True

    def take(self):
        self.has = True

    def give(self):
        self.has = False


def test_others_have_the_turn_while_replays_run_and_only_then(monkeypatch):
    turn, seen, made = Watched(), [], []

    class OnStream(RecordedOperations):
        def __init__(self, device, stream):
            super().__init__(device)
            made.append(stream)

        def record(self, computation):
            seen.append(("record", turn.has))
            super().record(computation)

        def replay(self):
            seen.append(("replay", turn.has))
            super().replay()

    monkeypatch.setitem(cuda_graph.RECORDERS, "cpu", OnStream)
    _, _, wanted = trained("SPR2Q", False)
    method = opened("SPR2Q")
    real, losses, steps = method.losses, [], RecordedSteps(method, CPU, turn)
    monkeypatch.setattr(method, "losses", lambda *given: (seen.append(("computed", turn.has)), real(*given))[1])
    for i, images in enumerate(batches(TOTAL)):
        losses.append({key: float(loss) for key, loss in steps.step(i, images).items()})
    assert losses == wanted and made == [turn.recording]
    assert set(seen) == {("computed", True), ("record", True), ("replay", False)} and not turn.has
    assert seen.count(("record", True)) == 2 and steps._recorder.replays >= TOTAL - 6


@pytest.mark.parametrize("name", END_TO_END)
def test_iterations_of_a_stage_differ_in_their_rates_alone(name):
    method = opened(name, **({"gating": "network"} if name == "SPR2Q" else {}))
    batch, modules = {"images": batches(1)[0]}, {"net": method.net, "full": method.full}
    known = {}
    for i in range(TOTAL):
        method.schedule(i)
        for stage, settings in known.items():
            assert (settings.difference(batch, method.optimizers[0]) is None) == (stage == method.stage(i)), stage
        if method.stage(i) is not None:
            known.setdefault(method.stage(i), StepSettings(modules, batch, method.optimizers[0]))
    assert len(known) == (2 if name == "SPR2Q" else 1)


def test_within_a_stage_modules_are_looked_at_now_and_then(monkeypatch):
    looks = []
    difference = StepSettings.difference
    monkeypatch.setattr(StepSettings, "difference", lambda *args: looks.append(len(done)) or difference(*args))
    monkeypatch.setattr(ptq_step_graph, "LOOK_EVERY", 3)
    method, done = opened("TwoDQuant"), []
    steps = RecordedSteps(method, CPU)
    for i, images in enumerate(batches(11)):
        if i == 6:
            next(iter(method.net.modules())).training = True
        steps.step(min(i, TOTAL - 1), images)
        done.append(i)
    # 0 and 1 are eager: moments are made; 2 is recorded; what changed at 6 is seen at 8, and 9 is recorded anew
    assert looks == [1, 2, 5, 8, 9]


def test_a_gating_network_is_replayed_too():
    _, _, wanted = trained("SPR2Q", False, gating="network")
    _, steps, found = trained("SPR2Q", True, gating="network")
    assert not steps.reason and found == wanted


def test_without_graphs_steps_are_eager_and_it_is_told(monkeypatch, caplog):
    monkeypatch.delitem(cuda_graph.RECORDERS, "cpu")
    _, steps, found = trained("TwoDQuant", True)
    assert "cpu devices have no graphs" in steps.reason and "steps run eagerly" in caplog.text
    assert len(found) == TOTAL


def test_a_recording_that_fails_leaves_eager_steps(monkeypatch, caplog):
    _, _, wanted = trained("TwoDQuant", False)
    kind = PTQ_METHODS["TwoDQuant"]
    real = kind.losses

    def asks(self, iteration, images):
        losses = real(self, iteration, images)
        losses["l_pix"].item()
        return losses

    monkeypatch.setattr(kind, "losses", asks)
    _, steps, found = trained("TwoDQuant", True)
    assert "not permitted while operations are recorded" in steps.reason and "steps run eagerly" in caplog.text
    assert found == wanted


# -- noise ----------------------------------------------------------------------------------------------------------


def test_noise_of_an_evaluation_on_tapes_is_the_noise_without():
    logits = [torch.zeros(2, 5, 3), torch.zeros(2, 7, 3)]

    def drawn(seed, training=False, routing="gumbel"):
        noise = RoutingNoise(training, routing, seed, CPU)
        return [noise.uniform(entry) for entry in logits]

    plain = {seed: drawn(seed) for seed in (0, 1)}
    tapes = EvaluationTapes()
    with evaluation_noise_on(tapes):
        for _ in range(2):
            for seed, wanted in plain.items():
                assert all(torch.equal(a, b) for a, b in zip(drawn(seed), wanted, strict=True))
        assert drawn(0, routing="argmax") == [None, None]
        torch.manual_seed(0)
        own = drawn(0, training=True)
        with shared_routing_noise(5):
            shared = drawn(0)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(drawn(0, training=True), own, strict=True))
    with shared_routing_noise(5):
        assert all(torch.equal(a, b) for a, b in zip(drawn(0), shared, strict=True))


# -- tests of images ------------------------------------------------------------------------------------------------


@pytest.fixture
def recorders(monkeypatch):
    """Every recorder that is made."""
    return remembered(monkeypatch)


@pytest.fixture
def quantized():
    net = network("MambaIRv2Light", "MinMax")
    build_method({"type": "MinMax"}).apply(net, batches(1))
    return net


def noise_image(seed, height, width):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_tiles_through_recordings_are_those_without(quantized, recorders):
    plan = parse_tile_option({"size": 8, "overlap": 2})
    images = [noise_image(i, 8, 20) for i in range(3)]
    with torch.no_grad():
        wanted = [run_tiled(quantized, image, plan) for image in images]
        assert not recorders
        with recorded_passes():
            found = [run_tiled(recorded(quantized), image, plan) for image in images]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    (recorder,) = recorders
    assert (recorder.recordings, recorder.replays) == (1, 3 * 3 - OFTEN)


def test_recordings_that_are_not_needed_any_more_go(quantized, recorders):
    with torch.no_grad(), recorded_passes():
        run = recorded(quantized)
        for width in (*range(4, 4 * (MOST + 2), 4), 4):
            for _ in range(OFTEN + 1):
                assert torch.equal(run(noise_image(width, 4, width)), quantized(noise_image(width, 4, width)))
    assert len(recorders) == MOST + 2  # the first shape had to be recorded again


def test_with_gradients_or_outside_the_network_itself_runs(quantized, recorders):
    with torch.no_grad():
        assert recorded(quantized) is quantized
    with recorded_passes():
        assert recorded(quantized) is quantized


def test_a_pass_that_cannot_be_recorded_runs_eagerly(quantized, recorders, monkeypatch, caplog):
    handle = quantized.register_forward_hook(lambda net, given, result: result * float(result.mean() > -9))
    x = noise_image(0, 4, 4)
    with torch.no_grad(), recorded_passes():
        results = [recorded(quantized)(x) for _ in range(OFTEN + 3)]
    handle.remove()
    with torch.no_grad():
        assert all(torch.equal(result, quantized(x)) for result in results)
    assert caplog.text.count("passes run eagerly") == 1


def test_models_test_through_recordings(quantized, recorders):
    model = SimpleNamespace(
        net_g=quantized, lq=noise_image(1, 8, 24), tile_plan=parse_tile_option({"size": 8, "overlap": 0}),
        get_bare_model=lambda net: net,
    )  # fmt: skip
    MambaIRModel.test(model)
    wanted = model.output
    with recorded_passes():
        MambaIRModel.test(model)
        MambaIRModel.test(model)
    assert torch.equal(model.output, wanted) and recorders[0].replays == 6 - OFTEN
