"""Window attention, depthwise convolutions and the memory of a step on a GPU: what gpu_report.py asks for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import gpu_check
import gpu_steps
import torch
import torch.nn.functional as F

from qmambair_basicsr.layers.requantize import requantize
from qmambair_basicsr.models.step_options import recompute_blocks
from qmambair_basicsr.ops.backend import ENV
from qmambair_basicsr.ops.window_attention import window_attention
from qmambair_basicsr.ops.window_attention.composed import windowed

HEADS, WINDOW, CHANNELS = 4, 16, 48  # of MambaIRv2-light
DEPTHWISE = ((72, 3), (120, 3), (96, 5))  # channels and side of the kernel: convolutions of the light networks


def attention_rows(bench: gpu_check.Bench, batch: int, size: int) -> list[gpu_check.Row]:
    """Window attention by our kernels and by scaled_dot_product_attention, its bias as mask, both with gradients.

    Args:
        bench: what times.
        batch, size: maps; ``size`` is a multiple of the window.
    """
    device, tokens, side = bench.device, WINDOW * WINDOW, 2 * WINDOW - 1
    rows = torch.arange(WINDOW, device=device)
    y, x = (t.flatten() for t in torch.meshgrid(rows, rows, indexing="ij"))
    index = (y[:, None] - y + WINDOW - 1) * side + x[:, None] - x + WINDOW - 1  # (T, T)
    at = torch.arange(size * size, device=device).view(size // WINDOW, WINDOW, size // WINDOW, WINDOW)
    order = at.transpose(1, 2).reshape(-1, tokens)
    qkv = torch.randn(batch, size * size, 3 * CHANNELS, device=device)
    table = 0.1 * torch.randn(side * side, HEADS, device=device)
    weight = torch.randn(batch, size * size, CHANNELS, device=device)
    scale = (CHANNELS // HEADS) ** -0.5

    def ours(qkv, table):
        return window_attention(qkv, table, index, order, scale=scale)

    def torchs(qkv, table):
        attend = partial(_sdpa, scale=scale)
        return windowed(attend, qkv, table, index, order, [(order.shape[0], None)])

    shape = f"{batch} x {size} x {size}, {HEADS} heads, windows of {WINDOW} x {WINDOW}"
    moved = 4 * (2 * 4 * CHANNELS + 3 * CHANNELS) * batch * size * size
    found, before = [], os.environ.get(ENV)
    try:
        for name, function in (("triton", ours), ("scaled_dot_product_attention", torchs)):
            if name == "triton" and not gpu_check.available("window_attention", name):
                continue
            os.environ[ENV] = "triton" if name == "triton" else "reference"
            error, passed = _error(ours, function, (qkv, table), weight)
            row = gpu_check.Row("window_attention", name, shape, error, passed)
            found.append(gpu_check.measure(bench, row, function, [qkv, table], weight, qkv, moved))
    finally:
        os.environ.pop(ENV, None)
        if before is not None:
            os.environ[ENV] = before
    return found


def _sdpa(q, k, v, bias, scale):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(q.shape[0], -1, -1, -1), scale=scale)


def _error(definition: Callable, function: Callable, tensors, weight) -> tuple[float, bool]:
    """Largest deviation from the reference in float64, and whether that is small enough."""
    got = gpu_check.evaluate(function, tensors, weight)
    want = gpu_check.evaluate(definition, [t.double() for t in tensors], weight.double())
    error = max(gpu_check.relative_error(a, b) for a, b in zip(got, want, strict=True))
    return error, error < 2 * gpu_check.TOLERANCE


def depthwise_rows(bench: gpu_check.Bench, batch: int, size: int) -> list[gpu_check.Row]:
    """Depthwise convolutions by order of memory, by cuDNN and by PyTorch's own kernels."""
    found = []
    for channels, side in DEPTHWISE:
        tensors = [
            torch.randn(batch, channels, size, size),
            torch.randn(channels, 1, side, side),
            torch.randn(channels),
        ]
        tensors = [t.to(bench.device) for t in tensors]
        convolve = partial(F.conv2d, padding=side // 2, groups=channels)
        weight = torch.randn_like(tensors[0])
        shape = f"{batch} x {channels} x {size} x {size}, {side} x {side}"
        for order in (torch.contiguous_format, torch.channels_last):
            x, g = (t.contiguous(memory_format=order) for t in (tensors[0], weight))
            for name, flag in (("cuDNN", True), ("PyTorch", False)):
                with torch.backends.cudnn.flags(enabled=flag):
                    where = f"{name}, {'channels last' if order is torch.channels_last else 'channels first'}"
                    row = gpu_check.Row("depthwise convolution", where, shape, 0.0, True)
                    found.append(gpu_check.measure(bench, row, convolve, [x, *tensors[1:]], g, x, 4 * 5 * x.numel()))
    return found


def memory_steps(device: str, chosen: list[str], size: tuple[int, int], repeats: int, until: float) -> Iterator:
    """w4a4 steps, eager, that keep less between the passes: ``train: requantize`` and ``checkpoint``."""
    ways = {"kept": None, "requantize": requantize, "checkpoint": recompute_blocks}
    for family in chosen:
        for way, change in ways.items():
            row = gpu_steps.Step("memory", family, f"w4a4, {way}", *size, size[1], "eager")
            if time.monotonic() > until:
                yield replace(row, reason="no time left")
                continue
            try:
                yield _with_less_memory(row, change, device, repeats)
            except Exception as error:  # one way that fails leaves the others
                yield replace(row, reason=gpu_steps.first_line(error))


def _with_less_memory(row: gpu_steps.Step, change: Callable | None, device: str, repeats: int) -> gpu_steps.Step:
    torch.manual_seed(0)
    net = gpu_steps.families()[row.family]["w4a4"]()
    if change is not None:
        change(net)
    training, cuda = gpu_steps.Training(net, row.batch, row.height, device), device == "cuda"
    training()  # initialises the quantizers
    gpu_steps.peak(cuda, reset=True)
    ms = gpu_steps.milliseconds(training, repeats, cuda)
    return replace(row, ms=ms, peak_mib=gpu_steps.peak(cuda))
