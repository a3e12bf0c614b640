"""A lowered network on native kernels: whole blocks as programs where there is a form for them, layer by layer elsewhere."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from ..archs.blocks import BlockSequence, ResidualStateSpaceGroup
from ..archs.mambairv2_blocks import AttentiveStack
from ..archs.ss2d import ScanParameters
from ..lowering import lower
from ..ops.backend import Backend
from .attentive import NativeStack
from .grids import NotFused, per_image
from .program import Fused, Workspace
from .state_space import NativeGroup, NativeSequence

logger = logging.getLogger(__name__)

FORMS: dict[type[nn.Module], type[Fused]] = {
    ResidualStateSpaceGroup: NativeGroup,
    BlockSequence: NativeSequence,
    AttentiveStack: NativeStack,
}
"""Part of a lowered network -> what takes its place; a part within another one has its turn where the whole has no form."""


class RuntimeUnavailable(RuntimeError):
    """The native kernels cannot be used on this machine; the message says why."""


class NativeNetwork(nn.Module):
    """An integer network on native kernels.

    Args:
        integer: a lowered network, taken over: its parts are replaced.

    Attributes:
        fused: names of the parts that run as programs.
        kept: name -> why a part that has a form runs layer by layer.
    """

    def __init__(self, integer: nn.Module):
        super().__init__()
        self.workspace = Workspace()
        self.fused: list[str] = []
        self.kept: dict[str, str] = {}
        self.apart = per_image(integer)
        if self.apart:
            self._fuse(integer)
        _drop_projections(integer)
        self.network = integer.eval()

    def _fuse(self, integer: nn.Module) -> None:
        for name, module in list(integer.named_modules()):
            form = FORMS.get(type(module))
            inside = any(name.startswith(f"{other}.") for other in self.fused)
            if form is None or inside or (isinstance(module, nn.ModuleList) and not len(module)):
                continue
            try:
                native = form(module, self.workspace)
            except NotFused as reason:
                self.kept[name] = str(reason)
                continue
            parent, _, leaf = name.rpartition(".")
            setattr(integer.get_submodule(parent), leaf, native)
            self.fused.append(name)

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float32 in [0, 1] -> (B, C, H * scale, W * scale)."""
        if x.shape[0] > 1 and self.apart:
            return torch.cat([self.network(image) for image in x.split(1)])
        return self.network(x)


def _drop_projections(integer: nn.Module) -> None:
    """Free the full-precision weights that integers have taken the place of."""
    for module in integer.modules():
        if isinstance(module, ScanParameters) and module.projections is not None:
            for name in ("x_proj_weight", "dt_projs_weight"):
                nothing = torch.zeros(()).expand(getattr(module, name).shape)  # sizes are asked for, values are not
                setattr(module, name, nn.Parameter(nothing, requires_grad=False))


def native_network(net: nn.Module) -> NativeNetwork:
    """The integer network of a fake-quantized one, on native kernels.

    Args:
        net: calibrated or trained, on the CPU; left as it is.

    Raises:
        RuntimeUnavailable: the kernels are not built, or not for this machine.
        LoweringError: a quantizer has no integer form; the message names it and the way out.
    """
    available, reason = Backend("integer", "native").is_available()
    if not available:
        raise RuntimeUnavailable(f"the integer runtime needs the native kernels: {reason}")
    return NativeNetwork(lower(net))
