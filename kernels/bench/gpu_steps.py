"""Training steps eager and as a CUDA graph, images restored, and the kernels of a step: what gpu_report.py asks for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from bench_step import LIGHT, quantized
from operator_calls import operator_calls

from qmambair_basicsr.archs.mambair_arch import MambaIR
from qmambair_basicsr.archs.mambairv2_arch import MambaIRv2Light
from qmambair_basicsr.archs.qmambair_arch import QMambaIR
from qmambair_basicsr.archs.qmambairv2_arch import QMambaIRv2Light
from qmambair_basicsr.inference.tiling import parse_tile_option, run_tiled
from qmambair_basicsr.layers.info import size_multiple
from qmambair_basicsr.models.cuda_graph import CudaGraph
from qmambair_basicsr.models.garbage import collected_later
from qmambair_basicsr.models.optimizers import Adam

LIGHT_V2 = {
    "upscale": 2,
    "embed_dim": 48,
    "d_state": 8,
    "depths": (5, 5, 5, 5),
    "num_heads": (4, 4, 4, 4),
    "window_size": 16,
    "inner_rank": 32,
    "num_tokens": 64,
    "convffn_kernel_size": 5,
    "mlp_ratio": 1.0,
    "upsampler": "pixelshuffledirect",
}
KERNELS = 25  # lines of a table of kernels


@dataclass
class Step:
    """A training step, or an image restored; milliseconds, None where it was not measured."""

    what: str
    family: str
    network: str
    batch: int
    height: int
    width: int
    mode: str
    ms: float | None = None
    peak_mib: float | None = None
    calls: int | None = None
    reason: str = ""


class Training:
    """A network with its optimizer and a batch that stays where it is; calling it makes a step."""

    def __init__(self, net: torch.nn.Module, batch: int, side: int, device: str):
        self.net = net.to(device).train()
        self.optimizer = Adam(self.net.parameters(), lr=1e-4, fused=True)
        self.lq = torch.rand(batch, 3, side, side, device=device)
        self.gt = torch.rand(batch, 3, 2 * side, 2 * side, device=device)

    def __call__(self) -> None:
        with collected_later():
            self.optimizer.zero_grad(set_to_none=True)
            F.l1_loss(self.net(self.lq), self.gt).backward()
            self.optimizer.step()

    def captured(self) -> Callable[[], None]:
        """The step as one CUDA graph, recorded as the models of this package do.

        Raises:
            Exception: something in it cannot be recorded.
        """
        for group in self.optimizer.param_groups:
            group["lr"], group["capturable"] = torch.tensor(1e-4, device=self.lq.device), True
        recorder = CudaGraph(self.lq.device)
        with recorder.warm_up():
            for _ in range(3):
                self()
        self.optimizer.zero_grad(set_to_none=True)
        recorder.record(self)
        return recorder.replay


def milliseconds(computation: Callable[[], object], repeats: int, cuda: bool) -> float:
    """Median time of a call, after two that warm up."""
    times = []
    for i in range(repeats + 2):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        computation()
        if cuda:
            torch.cuda.synchronize()
        if i >= 2:
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def families() -> dict[str, dict[str, Callable[[], torch.nn.Module]]]:
    """The light x2 networks, in full precision and with the quantizers of the option files."""
    quant = quantized(4)
    return {
        "MambaIR": {"FP": lambda: MambaIR(**LIGHT), "w4a4": lambda: QMambaIR(**LIGHT, quant=quant)},
        "MambaIRv2": {
            "FP": lambda: MambaIRv2Light(**LIGHT_V2),
            "w4a4": lambda: QMambaIRv2Light(**LIGHT_V2, quant=quant),
        },
    }


def steps(device: str, chosen: list[str], sizes, repeats: int, until: float) -> Iterator[Step]:
    """Training steps, eager and recorded."""
    for family in chosen:
        for batch, side in sizes:
            for name, build in families()[family].items():
                rows = [Step("step", family, name, batch, side, side, mode) for mode in ("eager", "graph")]
                if time.monotonic() > until:
                    for row in rows:
                        row.reason = "no time left"
                else:
                    _measure(rows, build, device, repeats, count=(batch, side) == sizes[0])
                yield from rows


def _measure(rows: list[Step], build: Callable[[], torch.nn.Module], device: str, repeats: int, count: bool) -> None:
    eager, graph = rows
    cuda = device == "cuda"
    torch.manual_seed(0)
    try:
        training = Training(build(), eager.batch, eager.height, device)
        training()  # initialises the quantizers
        peak(cuda, reset=True)
        eager.ms = milliseconds(training, repeats, cuda)
        eager.peak_mib = peak(cuda)
        if count:  # the same at every size
            eager.calls = operator_calls(training)
    except torch.cuda.OutOfMemoryError as error:
        eager.reason = graph.reason = first_line(error)
        return
    if not cuda:
        graph.reason = "no CUDA graphs on this device"
        return
    try:
        torch.cuda.empty_cache()
        peak(cuda, reset=True)
        graph.ms = milliseconds(training.captured(), repeats, cuda)
        graph.peak_mib = peak(cuda)
    except Exception as error:  # a step that cannot be recorded is a finding, not the end of the report
        graph.reason = first_line(error)


def peak(cuda: bool, reset: bool = False) -> float | None:
    """Most memory in use since the last reset, in MiB; None on a CPU."""
    if not cuda:
        return None
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated() / 2**20


def first_line(error: Exception) -> str:
    """What an error says, short enough for a table."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:160]


def restored(device: str, chosen: list[str], sides: tuple[int, int], repeats: int, until: float) -> Iterator[Step]:
    """One image at a time in evaluation, in the tiles of the published tables."""
    plan = parse_tile_option("release")
    for family in chosen:
        for name, build in families()[family].items():
            row = Step("image", family, name, 1, *sides, "eager")
            if time.monotonic() > until:
                row.reason = "no time left"
            else:
                net, image = build().to(device), torch.rand(1, 3, *sides, device=device)
                side = size_multiple(net)
                net.train()(image[..., : 2 * side, : 2 * side])  # initialises the quantizers
                net.eval()
                with torch.no_grad():
                    row.ms = milliseconds(lambda: run_tiled(net, image, plan, side), repeats, device == "cuda")  # noqa: B023
            yield row


def kernels(family: str, batch: int, side: int) -> list[dict]:
    """The kernels of one recorded w4a4 step by the time they take: name, calls, milliseconds, share of all."""
    from torch.profiler import ProfilerActivity, profile

    training = Training(families()[family]["w4a4"](), batch, side, "cuda")
    replay = training.captured()
    replay()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        replay()
        torch.cuda.synchronize()
    events = sorted(record.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    return [
        {
            "kernel": event.key[:120],
            "calls": event.count,
            "ms": event.self_device_time_total / 1e3,
            "share": event.self_device_time_total / total,
        }
        for event in events[:KERNELS]
    ]


def table(rows: list[Step]) -> str:
    """Markdown: a line for each network and size, its ratios to full precision in the same mode."""
    found = {(r.what, r.family, r.batch, r.height, r.network, r.mode): r for r in rows}
    lines = [
        "| what | network | batch | LR | eager ms | graph ms | eager / graph | over FP, eager | over FP, graph | peak MiB, eager "
        "| graph | operator calls |",
        "|" + "---|" * 12,
    ]
    for r in rows:
        if r.mode != "eager":
            continue
        key = r.what, r.family, r.batch, r.height
        graph = found.get((*key, r.network, "graph"))
        fp_eager, fp_graph = (found.get((*key, "FP", mode)) for mode in ("eager", "graph"))
        cells = [
            r.what,
            f"{r.family} {r.network}",
            str(r.batch),
            f"{r.height} x {r.width}",
            _ms(r),
            _ms(graph),
            _ratio(r, graph),
            _ratio(r, fp_eager),
            _ratio(graph, fp_graph),
            _number(r.peak_mib),
            _number(None if graph is None else graph.peak_mib),
            _number(r.calls),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ms(row: Step | None) -> str:
    if row is None:
        return ""
    return f"not measured: {row.reason}" if row.ms is None else f"{row.ms:.1f}"


def _ratio(a: Step | None, b: Step | None) -> str:
    return "" if a is None or b is None or not a.ms or not b.ms else f"{a.ms / b.ms:.2f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"
