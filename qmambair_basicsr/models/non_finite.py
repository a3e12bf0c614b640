"""Finding where NaN or infinity first appeared in a training step."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn


class NonFiniteError(RuntimeError):
    """Training met NaN or infinity; the message says at which iteration, where, and what to resume from."""


def _tensors(value: object) -> list[Tensor]:
    """Floating-point tensors in a module's input or output."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    if isinstance(value, dict):
        return _tensors(list(value.values()))
    return []


def _bad(value: object) -> bool:
    return any(not bool(torch.isfinite(tensor).all()) for tensor in _tensors(value))


def total_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together, which are left as they are; NaN or infinite when one of them is."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    if hasattr(nn.utils, "get_total_norm"):  # torch 2.6 on: one kernel launch for all
        return nn.utils.get_total_norm(gradients)
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """:func:`total_norm` as a number, which waits for the device."""
    return total_norm(parameters).item()


def first_bad_layer(net: nn.Module, replay: Callable[[], None]) -> str | None:
    """Name of the module, innermost first, whose output is the first to be non-finite.

    Args:
        net: bare network.
        replay: runs its forward as the failing step did, random draws included.
    """
    found: list[str] = []

    def watch(name: str):
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if not found and _bad(output):
                found.append(f"{name} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in net.named_modules() if name]
    try:
        replay()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def locate(net: nn.Module, data: Mapping[str, Tensor | None], replay: Callable[[], None]) -> str:
    """Say where a failing step became non-finite: data, weights, a layer's output, or the backward pass.

    Args:
        net: bare network, its gradients as the failing step left them.
        data: tensors of the batch by their names in the data set.
        replay: runs the network's forward as the failing step did.

    Returns:
        A clause for an error message.
    """
    for name, tensor in data.items():
        if _bad(tensor):
            return f"{name} of the batch is not finite"
    for name, parameter in net.named_parameters():
        if _bad(parameter.detach()):
            return f"parameter {name} is not finite"
    layer = first_bad_layer(net, replay)
    if layer is not None:
        return f"first non-finite layer: {layer}"
    # the backward pass runs from the last layer to the first, so trouble began at the last one affected
    names = [name for name, p in net.named_parameters() if p.grad is not None and _bad(p.grad)]
    if names:
        return f"the outputs are finite; first non-finite gradient: {names[-1]}"
    return "every layer's output is finite; the loss itself overflowed"


def last_checkpoint(folder: str | None) -> str:
    """Sentence naming the newest saved network in ``folder`` and how to go on."""
    numbered = []
    for path in Path(folder).glob("net_g_*.pth") if folder else []:
        match = re.fullmatch(r"net_g_(\d+)\.pth", path.name)
        if match:
            numbered.append((int(match.group(1)), path))
    if not numbered:
        return "No checkpoint was saved before it; lower the learning rate and start again."
    return f"Last good checkpoint: {max(numbered)[1]}; lower the learning rate and continue with --auto_resume."
