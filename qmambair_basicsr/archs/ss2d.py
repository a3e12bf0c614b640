"""SS2D, the four-direction selective scan of MambaIR, and the scan parameters it shares with MambaIRv2.

Sources: Mamba (arXiv:2312.00752), VMamba (arXiv:2401.10166), MambaIR (arXiv:2402.15648, section 3.3).

Everything is channels-last and indexed at the raster position of the pixel: the input-dependent parameters
(delta, B, C) of a pixel do not depend on the order in which a direction visits it, so they are computed once where the
pixel lies and the scan op walks over them. No permuted copy of a feature map is ever made.

Symbols: D = inner channels, N = state size, R = rank of delta, K = number of scan directions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..layers.convert import FrozenCodes
from ..layers.sites import SiteModule
from ..ops.ss2d_scan import ss2d_scan, ss2d_scan_rounded
from ..quantizers.site import Derived, Site
from .integer_projections import IntegerProjections
from .scan_states import scan_with_states

FOUR_DIRECTIONS = ("row", "col", "row_rev", "col_rev")
"""Scan order of the official weights: direction k reads slice k of every scan parameter."""

BEHIND_SCAN = ("*out_proj",)
"""Layers behind a scan; under ``act_policy: code`` their input takes the scan's quantizer, as in the release."""


def _decay(logs: torch.Tensor) -> torch.Tensor:
    """A = -exp(A_logs), in float32 at least."""
    return -torch.exp(logs.to(torch.promote_types(logs.dtype, torch.float32)))


def _decay_logs(decay: torch.Tensor) -> torch.Tensor:
    return decay.neg().log()


DECAY = Derived(_decay, _decay_logs)


def by_direction(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Each direction's features times its own weight.

    Args:
        x: (B, H, W, K, C).
        weight: (K, O, C).

    Returns:
        (B, H, W, K, O).
    """
    parts = _parts(x, weight)
    if parts == 1:
        return torch.einsum("bhwkc,koc->bhwko", x, weight)
    split = x.reshape(parts, -1, *x.shape[3:])  # (S, P, K, C)
    product = torch.einsum("spkc,skoc->spko", split, weight.expand(parts, *weight.shape))
    return product.reshape(*x.shape[:-1], weight.shape[1])


def _parts(x: torch.Tensor, weight: torch.Tensor) -> int:
    """Into how many parts the pixels are cut, whose gradients of the weight are then added up.

    One product over all pixels for the few entries of a weight keeps but a few of a GPU's processors busy: at 32,768
    pixels it was a quarter of the whole step.
    """
    trains = x.is_cuda and weight.requires_grad and torch.is_grad_enabled()
    return math.gcd(x.shape[0] * x.shape[1], 64) if trains else 1


class ScanParameters(SiteModule):
    """Parameters of K selective scans over one feature map, and the two steps that use them.

    Parameters (names and shapes of the official checkpoints): ``x_proj_weight`` (K, R + 2N, D), ``dt_projs_weight``
    (K, D, R), ``dt_projs_bias`` (K, D), ``A_logs`` (K * D, N), ``Ds`` (K * D).

    Sites: the projections' weights and inputs, one each for all directions; the scan's inputs u, delta (before bias and
    softplus), A, B, C, D and dt_bias. The scan's output stays in full precision (placement of Q-MambaIR's release), and
    its state as well unless ``quant: state`` is given (SPR2Q).

    Args:
        d_inner (int): D, channels of the scanned feature map.
        d_state (int): N, size of the hidden state per channel.
        dt_rank (int): R, rank of the projection that yields delta.
        directions (tuple[str, ...]): Scan directions, see ``ops.ss2d_scan``.
        apart (bool): Each direction scans a map of its own.
        dt_min (float): Lower end of the step sizes softplus(dt_projs_bias) at initialisation.
        dt_max (float): Upper end of the same.
        dt_init_floor (float): Smallest step size at initialisation.
    """

    entry_points = ("project", "scan")
    stacked_inputs = ("dt_projs",)

    def __init__(
        self,
        d_inner: int,
        d_state: int,
        dt_rank: int,
        directions: tuple[str, ...] = FOUR_DIRECTIONS,
        apart: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
    ):
        super().__init__()
        self.d_inner, self.d_state, self.dt_rank, self.directions = d_inner, d_state, dt_rank, tuple(directions)
        self.apart = apart
        k = len(self.directions)
        self.x_proj_weight = nn.Parameter(torch.empty(k, dt_rank + 2 * d_state, d_inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(k, d_inner, dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(k, d_inner))
        self.A_logs = nn.Parameter(torch.empty(k * d_inner, d_state))
        self.Ds = nn.Parameter(torch.empty(k * d_inner))
        self.register_module("projections", None)  # takes the place of ``project`` in an integer network
        self.reset_scan_parameters(dt_min, dt_max, dt_init_floor)

    @torch.no_grad()
    def reset_scan_parameters(self, dt_min: float, dt_max: float, dt_init_floor: float) -> None:
        """Initialise as Mamba does: A = -(1..N), D = 1, step sizes log-uniform in [dt_min, dt_max]."""
        bound = self.d_inner**-0.5
        self.x_proj_weight.uniform_(-bound, bound)
        bound = self.dt_rank**-0.5
        self.dt_projs_weight.uniform_(-bound, bound)
        step = torch.empty_like(self.dt_projs_bias).uniform_(math.log(dt_min), math.log(dt_max)).exp_()
        step.clamp_(min=dt_init_floor)
        self.dt_projs_bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
        self.A_logs.copy_(torch.arange(1, self.d_state + 1, device=self.A_logs.device).log().expand_as(self.A_logs))
        self.Ds.fill_(1)

    def quantization_sites(self) -> tuple[Site, ...]:
        k, d, n, r = len(self.directions), self.d_inner, self.d_state, self.dt_rank
        # The release stacks the K permuted copies of the map before quantizing it; one map with copies=K is the same.
        copies = 1 if self.apart else k
        return (
            *self._projection_sites("x_proj", self.x_proj_weight, d, copies=copies),
            *self._projection_sites("dt_projs", self.dt_projs_weight, r),
            self._scan_site("u", d, copies=copies),
            self._scan_site("delta", d),
            self._scan_site("A", n, "A_logs", derived=DECAY),
            self._scan_site("B", n),
            self._scan_site("C", n),
            self._scan_site("D", k * d, "Ds"),
            self._scan_site("dt_bias", d, "dt_projs_bias"),
            *((Site("state", "act", n, -1, part="h", operation="scan", slot="quantizers.h"),) if self._has_h() else ()),
        )

    def _has_h(self) -> bool:
        """Whether the states are a site: before ``prepare`` always, then where they are quantized."""
        kept = self.quantizers
        return kept is None or "h" in getattr(kept, "sites", kept)

    def inner_sources(self) -> dict[str, tuple[str, slice]]:
        return {"dt_projs": ("x_proj", slice(0, self.dt_rank))}

    def lower_products(self) -> tuple[str, ...]:
        names = "x_proj", "dt_projs"
        if not self._multiplies_codes(names):
            return ()
        self.projections = IntegerProjections(
            (len(self.directions), self.dt_rank, self.d_state), self, names, self.apart
        )
        return names

    def _multiplies_codes(self, parts: tuple[str, str]) -> bool:
        """Whether the weights of two projections are frozen, quantized, and integers times scales."""
        weights = [self.quantizers[f"{part}_weight"] for part in parts]
        return all(isinstance(weight, FrozenCodes) and weight.grouped_form() for weight in weights)

    @staticmethod
    def _projection_sites(name: str, weight: torch.Tensor, channels: int, copies: int = 1) -> tuple[Site, Site]:
        common = {"part": name, "operation": name}
        shape = tuple(weight.shape)  # (K, rows, columns)
        slot = f"quantizers.{name}"
        return (
            Site.of_weight(
                shape[1], 1, shape=shape, operand="weight", slot=f"{slot}_weight", parameter=f"{name}_weight", **common
            ),
            Site.of_act(channels, operand="act", slot=f"{slot}_input", copies=copies, **common),
        )

    def _scan_site(
        self, name: str, channels: int, parameter: str | None = None, operation: str = "scan", **more
    ) -> Site:
        if parameter is not None:
            more |= {"parameter": parameter, "shape": tuple(getattr(self, parameter).shape)}
        role = "act" if parameter is None else "param"
        return Site("scan", role, channels, -1, part=name, operation=operation, slot=f"quantizers.{name}", **more)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the input-dependent scan parameters of every pixel and direction.

        Args:
            x (Tensor): (B, H, W, D), or (B, H, W, K, D) if the maps are apart.

        Returns:
            tuple: delta (B, H, W, K, D) before bias and softplus, B and C (B, H, W, K, N), all at raster positions.
        """
        if self.projections is not None:
            return self.projections(x)
        return self._projected(x, ("x_proj", "dt_projs"), (self.dt_rank, self.d_state), self.apart)

    def _projected(
        self, x: torch.Tensor, parts: tuple[str, str], sizes: tuple[int, int], apart: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """:meth:`project` by the two projections of these names, whose delta has rank R and whose states N: (R, N)."""
        (first, second), (r, n) = parts, sizes
        weight = self.site(f"{first}_weight", getattr(self, f"{first}_weight"))  # (K, R + 2N, D)
        given = self.site(f"{first}_input", x)
        if apart:
            projected = by_direction(given, weight)
        else:
            joined = F.linear(given, weight.flatten(0, 1))
            projected = joined.unflatten(-1, (weight.shape[0], r + 2 * n))  # (B, H, W, K, R + 2N)
        dt, b, c = projected.split((r, n, n), dim=-1)
        dt = self.site(f"{second}_input", dt)
        delta = by_direction(dt, self.site(f"{second}_weight", getattr(self, f"{second}_weight")))
        return delta, b, c

    def scan(
        self,
        x: torch.Tensor,
        delta: torch.Tensor,
        b: torch.Tensor,
        c: torch.Tensor,
        order: torch.Tensor | None = None,
        merge: bool = True,
    ) -> torch.Tensor:
        """Scan x in all directions, and sum the results at their pixels or keep them apart.

        Args:
            x (Tensor): (B, H, W, D), or (B, H, W, K, D) if the maps are apart.
            delta (Tensor): (B, H, W, K, D), before bias and softplus.
            b (Tensor): (B, H, W, K, N).
            c (Tensor): (B, H, W, K, N).
            order (Tensor | None): (K, H * W), see ``ops.ss2d_scan``; without it the directions have their names' order.
            merge (bool): Sum the results.

        Returns:
            Tensor: (B, H, W, D), or (B, H, W, K, D) unless merged.
        """
        k, d, n = len(self.directions), self.d_inner, self.d_state
        u, delta, b, c = self.joint_sites(u=x, delta=delta, B=b, C=c)
        tensors = (
            u,
            delta,
            self.derived_site("A", self.A_logs, DECAY).view(k, d, n),
            b,
            c,
            self.site("D", self.Ds).view(k, d),
            self.site("dt_bias", self.dt_projs_bias),
        )
        path = {"directions": self.directions if order is None else None, "order": order}
        if self.quantizers is not None and self._has_h():
            rounding = self.site_rounding("h")
            if rounding is not None:
                return ss2d_scan_rounded(*tensors, delta_softplus=True, rounding=rounding, merge=merge, **path)
            return scan_with_states(*tensors, lambda h: self.site("h", h), merge, **path)
        return ss2d_scan(*tensors, delta_softplus=True, merge=merge, **path)


class SS2D(ScanParameters):
    """2-D selective scan with gating: in_proj, depthwise conv, four scans, LayerNorm, SiLU gate, out_proj.

    Args:
        d_model (int): Channels of input and output.
        d_state (int): State size N of the scan.
        expand (float): Inner channels D = int(expand * d_model).
    """

    def __init__(self, d_model: int, d_state: int = 16, expand: float = 2.0):
        d_inner = int(expand * d_model)
        super().__init__(d_inner, d_state, dt_rank=math.ceil(d_model / 16))
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv2d = nn.Conv2d(d_inner, d_inner, 3, padding=1, groups=d_inner)
        self.out_norm = nn.LayerNorm(d_inner)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x, gate = self.in_proj(x).chunk(2, dim=-1)  # (B, H, W, D) each
        x = F.silu(self.conv2d(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)  # a view: channels_last memory
        y = self.scan(x, *self.project(x))
        return self.out_proj(self.out_norm(y) * F.silu(gate))
