"""How one training step is computed: ``train: amp``, ``accumulate``, ``checkpoint``, ``requantize`` and ``cuda_graph``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..archs.routing import RoutingNoise
from ..layers.info import blocks_of

NO_COMPILE = (
    "is not supported: torch.compile ends a piece at every operator of this package, takes minutes, and makes a quantized step "
    "slower; train: cuda_graph: true takes away what launches cost"
)
UNFUSED = frozenset({"foreach", "differentiable"})
AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepOptions:
    """Entries of ``train:``.

    Attributes:
        amp: ``bf16`` or ``fp16``: what products are computed in (``torch.autocast``); None for float32. Quantizers and the
            states of scans stay in float32.
        accumulate: parts a batch is cut into; their gradients add up to the batch's.
        checkpoint: whether the blocks of the network are computed again in the backward pass instead of kept.
        requantize: whether quantized activations are computed again in the backward pass instead of kept.
        cuda_graph: whether the step is recorded once as a CUDA graph and then replayed (``step_graph.py``).
    """

    amp: str | None = None
    accumulate: int = 1
    checkpoint: bool = False
    requantize: bool = False
    cuda_graph: bool = False

    @classmethod
    def from_options(cls, opt: dict) -> StepOptions:
        """Read ``train:`` of an option file.

        Raises:
            ValueError: an impossible value, named; parts that the batch cannot be cut into.
        """
        train = opt.get("train") or {}
        if train.get("compile"):
            raise ValueError(f"train: compile: {NO_COMPILE}")
        flags = {name: train.get(name, False) for name in ("checkpoint", "requantize", "cuda_graph")}
        options = cls(train.get("amp"), train.get("accumulate", 1), **flags)
        if options.amp is not None and options.amp not in AMP:
            raise ValueError(f"train: amp: must be one of {', '.join(AMP)}, got {options.amp!r}")
        parts = options.accumulate
        if isinstance(parts, bool) or not isinstance(parts, int) or parts < 1:
            raise ValueError(f"train: accumulate: must be a whole number, at least 1, got {parts!r}")
        size = opt.get("datasets", {}).get("train", {}).get("batch_size_per_gpu", parts)
        if size % parts:
            raise ValueError(f"train: accumulate: must divide batch_size_per_gpu {size}, got {parts}")
        for name, flag in flags.items():
            if not isinstance(flag, bool):
                raise ValueError(f"train: {name}: must be true or false, got {flag!r}")
        refusal = not_recorded(opt) if options.cuda_graph else None
        if refusal is not None:
            raise ValueError(f"train: cuda_graph: {refusal}")
        return options

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in."""
        return torch.float32 if self.amp is None else AMP[self.amp]


def not_recorded(opt: Mapping) -> str | None:
    """Why the step that an option file describes cannot be recorded as a CUDA graph; None where it can."""
    train = opt["train"]
    optimizer = train["optim_g"] if isinstance(train.get("optim_g"), Mapping) else {}
    if opt.get("dist") or (isinstance(opt.get("num_gpu"), int) and opt["num_gpu"] > 1):
        return "is for one process with one GPU: gradients of several are exchanged outside a recording"
    if train.get("checkpoint"):
        return "cannot go with checkpoint: a block computed again reads the random state, which a recording forbids"
    if optimizer.get("type") == "SGD" or optimizer.get("fused") is False or not UNFUSED.isdisjoint(optimizer):
        return "needs a fused optimizer: optim_g: type Adam or AdamW, without foreach, differentiable or fused: false"
    return None


def recompute_blocks(net: nn.Module) -> None:
    """Have the blocks that a network names (``NetworkInfo.blocks``) computed again in the backward pass, in training.

    Raises:
        ValueError: the network names none.
    """
    modules = dict(net.named_modules())
    names = list(blocks_of(net))
    if not names:
        raise ValueError(f"train: checkpoint: {type(net).__name__} names no blocks")
    for name in names:
        modules[name].forward = _recomputed(modules[name].forward)


def _recomputed(forward: Callable) -> Callable:
    def run(*inputs, **named):
        if not torch.is_grad_enabled():
            return forward(*inputs, **named)
        # noise has a generator of its own, which the second time has to start where it did the first time
        again = [t.snapshot() if isinstance(t, RoutingNoise) else t for t in inputs]
        calls = iter([True])

        def block(*tensors):
            given = zip(inputs if next(calls, False) else again, tensors, strict=True)
            return forward(*(t if isinstance(t, torch.Tensor) else kept for kept, t in given), **named)

        return checkpoint(block, *inputs, use_reentrant=False)

    return run
