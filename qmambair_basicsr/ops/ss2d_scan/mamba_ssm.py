"""The directional scan through mamba_ssm's CUDA kernel, where that package is installed.

mamba_ssm scans sequences (B, channels, L) in one order, so every direction's map is copied into its order and the
directions become groups of channels; the results are copied back and summed. The backward pass runs mamba_ssm's forward
again, because its saved tensors are not part of its interface.

Its kernel takes ``exp2f(dt A)`` as it is. Where dt A is below about 1e-3 the rounding of that decay to a number next to 1
adds up over long sequences; the other backends avoid it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys

import torch

from .reference import to_map, to_sequence

DEVICES = ("cuda",)
CHUNK = sys.maxsize  # only the last state is returned


@functools.cache
def _scan():
    return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn


def _kernel_missing() -> bool:
    """Whether the interface loads without the kernel it calls: mamba_ssm 2.3.2 says so at the first call only."""
    interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    if hasattr(interface, "selective_scan_cuda"):
        return interface.selective_scan_cuda is None
    return importlib.util.find_spec("selective_scan_cuda") is None


def is_available() -> tuple[bool, str]:
    """Whether mamba_ssm is installed and loads, and why (not)."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return False, "mamba_ssm is not installed"
    if not torch.cuda.is_available():
        return False, "no CUDA device"
    try:
        _scan()
        missing = _kernel_missing()
    except Exception as error:  # a build for another torch fails in many ways
        return False, f"mamba_ssm is installed but does not load: {type(error).__name__}: {error}"
    if missing:
        return (
            False,
            "mamba_ssm is installed without selective_scan_cuda, its CUDA kernel (build mamba_ssm from source)",
        )
    return True, f"mamba_ssm on {torch.cuda.get_device_name()}"


def sequences(t: torch.Tensor, directions: list[int] | torch.Tensor) -> torch.Tensor:
    """(B, H, W, C), one map for all, or (B, H, W, K, C) -> (B, K, C, L), each direction in its order."""
    maps = [t] * len(directions) if t.dim() == 4 else t.unbind(3)
    return torch.stack([to_sequence(m, d).transpose(1, 2) for m, d in zip(maps, directions, strict=True)], 1)


def _maps(seq: torch.Tensor, directions: list[int] | torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, K, C, L) -> (B, H, W, K, C): the inverse of :func:`sequences`."""
    maps = [to_map(seq[:, k].transpose(1, 2), d, height, width) for k, d in enumerate(directions)]
    return torch.stack(maps, 3)


def kernel_arguments(x, delta, A, B, C, D, delta_bias, directions):
    """mamba_ssm's arguments in its layouts: u, delta (B, K D, L); A (K D, N); B, C (B, K, N, L); D, bias (K D)."""
    u, steps = (sequences(t.to(x.dtype), directions).flatten(1, 2) for t in (x, delta))
    b, c = (sequences(t.to(x.dtype), directions) for t in (B, C))
    flat = [None if t is None else t.float().flatten(0, 1).contiguous() for t in (A, D, delta_bias)]
    return u, steps, flat[0], b, c, flat[1], flat[2]


def forward(x, delta, A, B, C, D, delta_bias, softplus, directions, merge, save_states):
    """As ``reference.forward``, the states being the last one alone: (B, K, 1, N, D)."""
    _, height, width = x.shape[:3]
    u, steps, a, b, c, skip, bias = kernel_arguments(x, delta, A, B, C, D, delta_bias, directions)
    y, last = _scan()(u, steps, a, b, c, skip, z=None, delta_bias=bias, delta_softplus=softplus, return_last_state=True)
    y = _maps(y.unflatten(1, (len(directions), -1)), directions, height, width)
    states = last.float().unflatten(1, (len(directions), -1)).transpose(2, 3).unsqueeze(2)
    return (y.sum(3) if merge else y).contiguous(), states.contiguous()


def backward(dy, x, delta, A, B, C, D, delta_bias, states, softplus, directions):
    """As ``reference.backward``."""
    _, height, width = x.shape[:3]
    leaves = [
        None if t is None else t.detach().requires_grad_()
        for t in kernel_arguments(x, delta, A, B, C, D, delta_bias, directions)
    ]
    u, steps, a, b, c, skip, bias = leaves
    with torch.enable_grad():
        y = _scan()(u, steps, a, b, c, skip, z=None, delta_bias=bias, delta_softplus=softplus)
    given = [t for t in leaves if t is not None]
    found = iter(torch.autograd.grad(y, given, sequences(dy, directions).flatten(1, 2).to(y.dtype)))
    du, dsteps, da, db, dc, dskip, dbias = (None if t is None else next(found) for t in leaves)

    def pixels(t, like):  # (B, K D, L) or (B, K, C, L) -> (B, H, W, K, C)
        t = t.unflatten(1, (len(directions), -1)) if t.dim() == 3 else t
        return _maps(t, directions, height, width).to(like.dtype).contiguous()

    dx = pixels(du, x)
    return (
        dx.sum(3) if x.dim() == 4 else dx,
        pixels(dsteps, delta),
        da.view(A.shape).to(A.dtype),
        pixels(db, B),
        pixels(dc, C),
        None if D is None else dskip.view(D.shape).to(D.dtype),
        None if delta_bias is None else dbias.view(delta_bias.shape).to(delta_bias.dtype),
    )
