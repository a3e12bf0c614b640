"""The quantization of one row of ``tools.ptq_rows``: by its method, on a budget of time."""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from collections.abc import Mapping

import torch
from basicsr.archs import build_network
from torch import Tensor, nn

from .. import checkpoints
from ..inference.networks import load_full_precision
from ..models.calibration_data import calibration_batches
from ..models.cuda_graph import RECORDERS
from ..models.ptq_model import cpu_state
from ..models.ptq_step_graph import RecordedSteps
from ..models.turns import ALONE, Turn
from ..ptq import build_method
from ..ptq.blockwise import BlockReconstruction
from ..ptq.method import PTQ_METHODS, PTQMethod, require_ordinary
from ..ptq.training import OptimizedMethod, TrainedMethod
from .ablation_studies import Run
from .ptq_rows_calibrated import load_calibration, save_calibration
from .study_runs import Store, weights_file
from .time_limit import TimeLimit
from .training_patches import shared_patches

__all__ = ["calibrate_row", "clock", "goes_end_to_end", "iterations_that_fit", "quantize_row"]

ROUTING = 500 / 12_500  # of the iterations: SPR2Q's last ones, which train the routing alone, as in its paper
AHEAD = 32  # batches that are drawn before they are needed, while nobody else has the turn
CHECK_EVERY = 10  # recorded iterations between two looks at losses and clock
# seconds of a limit that are left for what comes behind the iterations; half of it more for each other thread
FINISHING = 10.0

logger = logging.getLogger("ptq_rows")


def clock(device: torch.device) -> float:
    """Seconds that budgets count in: of processor time, which other programs do not take; on a GPU, of time."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.current_stream(device).synchronize()  # not the device: another thread may be recording
    return time.monotonic()


def iterations_that_fit(method: TrainedMethod, images: Tensor, seconds: float, most: int) -> int:
    """How many iterations a method can make in a time.

    Two are timed on a copy, in the middle, where a method that goes block by block begins with a block of average cost.

    Args:
        method: calibrated, with a plan.
        images: of one iteration.
        seconds: see :func:`clock`.
        most: not more than these.
    """
    trial = copy.deepcopy(method)
    times = []
    for _ in range(2):
        begun = clock(images.device)
        trial.step(trial.total // 2, images)
        times.append(clock(images.device) - begun)
    units = len(method.units) if isinstance(method, BlockReconstruction) else 1
    at_first = max(0.0, times[0] - times[1]) * units
    return max(least_iterations(method), min(most, int((seconds - at_first) / max(times[1], 1e-9))))


def least_iterations(method: TrainedMethod) -> int:
    """One for each block; end to end, one for each of two stages."""
    return len(method.units) if isinstance(method, BlockReconstruction) else 2


def quantize_row(run: Run, store: Store, limit: TimeLimit, turn: Turn = ALONE) -> dict:
    """Quantize a row's network and write its weights.

    Args:
        run: of ``ptq_rows.options_of``.
        store: see :class:`Store`.
        limit: of the command; iterations end in time.
        turn: of this thread, which has it; others have it meanwhile.

    Returns:
        What its record holds of that: iterations, images, seconds (:func:`clock`), those before the first iteration, options of
        the method, why iterations were not recorded where they could have been.

    Raises:
        ValueError: a loss is not finite.
    """
    opt, device = run.opt, device_of_row(run)
    begun = clock(device)
    net, method, batches = _begin(opt, device)
    shapes = {key: tensor.shape for key, tensor in net.state_dict().items()}
    trained = {"iterations": 0, "losses": {}, "seconds_elsewhere": 0.0}
    if method.trains:
        trained = _train(method, net, batches, run, store, begun, limit, turn)
    else:
        method.apply(net, batches)
    require_ordinary(net, type(method).__name__, shapes)
    end_to_end = isinstance(method, OptimizedMethod)
    checkpoints.write_file({"params": net.cpu().state_dict()}, weights_file(run, store))
    return {
        "method": {"type": type(method).__name__, **method.settings},
        **trained,
        "images": {
            "calibration": sum(map(len, batches)),
            "training": trained["iterations"] * opt["datasets"]["train"]["batch_size_per_gpu"] if end_to_end else 0,
        },
        "seconds": round(clock(device) - begun + trained["seconds_elsewhere"], 3),
        "threads": torch.get_num_threads(),
    }


def device_of_row(run: Run) -> torch.device:
    """Where a row is quantized."""
    return torch.device("cuda" if run.opt["num_gpu"] else "cpu")


def goes_end_to_end(run: Run) -> bool:
    """Whether a row's method trains all of the network at once: one whose starting values can be kept."""
    return issubclass(PTQ_METHODS[run.opt["ptq"]["method"]["type"]], OptimizedMethod)


def calibrate_row(run: Run, store: Store) -> float:
    """Work out where the training of a row begins, and keep it; returns the seconds (:func:`clock`) that took."""
    device = device_of_row(run)
    begun = clock(device)
    net, method, batches = _begin(run.opt, device)
    method.open(net)
    before = cpu_state(net)
    method.calibrate(batches)
    seconds = clock(device) - begun
    save_calibration(method, before, batches, run, store, seconds)
    return seconds


def _begin(opt: Mapping, device: torch.device) -> tuple[nn.Module, PTQMethod, list[Tensor]]:
    """A row's network in full precision, its method, and the images for calibration."""
    net = build_network(copy.deepcopy(opt["network_g"])).eval()
    load_full_precision(net, opt["path"]["pretrain_network_g"]).to(device)
    calibration = opt["ptq"]["calibration"]
    drawn = calibration_batches(
        training_data(opt), calibration["batches"], calibration["batch_size"], opt["manual_seed"]
    )
    return net, build_method(opt["ptq"]["method"]), [batch.to(device) for batch in drawn]


def training_data(opt: Mapping) -> dict:
    """The section as BasicSR hands it to a data set."""
    return {**opt["datasets"]["train"], "phase": "train", "scale": opt["scale"]}


def _train(
    method: TrainedMethod,
    net: nn.Module,
    batches: list[Tensor],
    run: Run,
    store: Store,
    begun: float,
    limit: TimeLimit,
    turn: Turn,
) -> dict:
    """From beginning to end; returns what the record holds of it."""
    opt, device, elsewhere = run.opt, batches[0].device, 0.0
    most = int(opt["train"]["total_iter"])
    method.open(net)
    if isinstance(method, OptimizedMethod):
        elsewhere, reason = load_calibration(method, batches, run, store)
        if reason:
            logger.info("%s: starting values that are there do not count: %s", run.name, reason)
    if not elsewhere:
        method.calibrate(batches)
    most = max(most, least_iterations(method))
    plan(method, most)
    before = clock(device) - begun + elsewhere
    left = min(60 * opt["train"]["minutes"] - before, limit.left() - FINISHING * (1 + turn.count) / 2)
    if isinstance(method, OptimizedMethod) and device.type in RECORDERS:
        try:
            found = _paced(method, opt, device, most, left, turn)
        finally:
            turn.take()
    else:
        found = _counted(method, opt, device, most, left)
    method.finish(net)
    return {**found, "seconds_before": round(before, 3), "seconds_elsewhere": round(elsewhere, 3)}


def _counted(method: TrainedMethod, opt: Mapping, device: torch.device, most: int, left: float) -> dict:
    """Iterations whose number is settled at the beginning, by what the first ones take."""
    data, seed, batch = training_data(opt), opt["manual_seed"] + 1, opt["datasets"]["train"]["batch_size_per_gpu"]
    (trial,) = calibration_batches(data, 1, batch, seed)
    total = iterations_that_fit(method, trial.to(device), left, most)
    plan(method, total)
    logger.info("%s: %d iterations", opt["name"], total)
    kept: list[dict[str, float]] = []
    for i, images in enumerate(calibration_batches(data, total, batch, seed)):
        losses = method.step(i, images.to(device))
        _check(losses, i)
        kept = [*kept, losses][-max(1, total // 20) :]
    return {"iterations": total, "losses": _means(kept)}


def _paced(method: OptimizedMethod, opt: Mapping, device: torch.device, most: int, left: float, turn: Turn) -> dict:
    """Recorded iterations, as many as the time allows with what the last ones took.

    Other work on a GPU comes and goes: the plan, and the schedule of the rate with it, follows until the last stage begins.
    """
    data, seed, batch = training_data(opt), opt["manual_seed"] + 1, opt["datasets"]["train"]["batch_size_per_gpu"]
    steps, end, i = RecordedSteps(method, device, turn), clock(device) + left, 0
    times: deque[float] = deque(maxlen=4)  # from the first look on: what comes before is recorded
    kept: list[dict[str, float]] = []
    patches = shared_patches(data, batch, seed, most, device)
    for i in range(1, most + 1):
        if len(patches) < i or (len(patches) < min(i + AHEAD, most) and turn.take_if_free()):
            turn.take()  # the process has one state of random numbers
            patches.draw(i + 2 * AHEAD)
        losses = steps.step(i - 1, patches[i - 1])
        if i % CHECK_EVERY == 0 or i == method.total:
            found = {name: loss.item() for name, loss in losses.items()}
            _check(found, i - 1)
            kept.append(found)
            times.append(clock(device))
            if len(times) > 1:
                follow(method, i, most, end, times)
        if i >= method.total:
            break
    logger.info("%s: %d iterations%s", opt["name"], i, f", eagerly: {steps.reason}" if steps.reason else "")
    return {"iterations": i, "losses": _means(kept[-max(1, len(kept) // 20) :]), "eager": steps.reason}


def follow(method: OptimizedMethod, done: int, most: int, end: float, times: deque[float]) -> None:
    """Plan as many iterations as there is time for.

    Args:
        method: with a plan.
        done: iterations behind.
        most: iterations to plan at the most.
        end: of the time.
        times: when the last ones were looked at, each ``CHECK_EVERY`` iterations after the one before.
    """
    if done >= stage_end(method):
        return
    each = (times[-1] - times[0]) / (CHECK_EVERY * (len(times) - 1))
    total = min(most, done + max(0, int((end - times[-1]) / max(each, 1e-9))))
    routing = max(1, int(ROUTING * total)) if "routing" in method.settings else 0
    plan(method, max(total, done + 1 + routing))


def stage_end(method: OptimizedMethod) -> int:
    """The iteration behind which a plan stays: where SPR2Q's routing begins, else the last one."""
    return getattr(method, "grouped", method.total)


def plan(method: TrainedMethod, total: int) -> None:
    """Plan iterations, with the paper's share of them for SPR2Q's routing."""
    if "routing" in method.settings:
        method.settings["routing"] = max(1, int(ROUTING * total))
    method.plan(total)


def _check(losses: Mapping[str, float], iteration: int) -> None:
    bad = [name for name, loss in losses.items() if not abs(loss) < float("inf")]
    if bad:
        raise ValueError(f"{bad[0]} is {losses[bad[0]]} at iteration {iteration + 1}")


def _means(kept: list[dict[str, float]]) -> dict[str, float]:
    """Of each loss over the iterations that have it: one begins where a block's warm-up ends."""
    values: dict[str, list[float]] = {}
    for losses in kept:
        for name, loss in losses.items():
            values.setdefault(name, []).append(loss)
    return {name: sum(some) / len(some) for name, some in values.items()}
