"""MambaIR's blocks on native kernels: SS2D, the channel-attention block, and sequences of them on one map."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..archs.blocks import CAB, BlockSequence, ResidualStateSpaceBlock, ResidualStateSpaceGroup
from ..archs.ss2d import SS2D, ScanParameters
from ..lowering.grids import Dequantized, Unquantized
from ..lowering.sites import Constant
from ..ops.glue.channels import attend, attend_weights
from ..ops.glue.native import DeltaWeights
from ..ops.table_scan.code_scan import CodeScan
from .grids import NativeGrid, NotFused, require
from .layers import delta_weights, native_conv, native_linear
from .program import Fused, Program, Target, Workspace


def as_map(size: tuple[int, int]):
    """Rows (M, C) -> (1, C, H, W), as a convolution of the network sees them."""
    return lambda rows: rows.view(1, *size, -1).permute(0, 3, 1, 2)


def as_image(size: tuple[int, int], *inner: int):
    """Rows (M, C) -> (1, H, W, ...)."""
    return lambda rows: rows.view(1, *size, *(inner or (-1,)))


class NativeScan:
    """``ScanParameters.project`` and ``scan``: from the codes of its inputs to the scanned map.

    Args:
        scan: lowered.

    Attributes:
        layouts: from the dimensions of a token to what shapes its codes as the network has them; None for a raster map.
    """

    layouts: Callable | None = None

    def __init__(self, scan: ScanParameters):
        projections, sites = scan.projections, getattr(scan.quantizers, "sites", None)
        if projections is None or sites is None:
            raise NotFused("a projection of the scan keeps full precision")
        if scan.apart or projections.x_proj_transform is not None or projections.dt_projs_transform is not None:
            raise NotFused("the maps of the directions are apart, or an input is transformed")
        self.k, self.r, self.n = projections.sizes
        self.d = scan.d_inner
        for name in ("u", "delta", "B", "C"):
            if not isinstance(sites[name], Dequantized):
                raise NotFused(f"{name} of the scan keeps full precision")
        if "h" in sites and not isinstance(sites["h"], Unquantized):
            raise NotFused("the state of the scan is quantized")
        self.u, self.delta, self.b, self.c = (NativeGrid(sites[name]) for name in ("u", "delta", "B", "C"))
        self.x_proj = native_linear(projections.x_proj, self._order())
        self.dt: DeltaWeights = delta_weights(projections.dt_projs)
        self.dt_grid = NativeGrid(projections.dt_projs[0].act)
        a, d, bias = (_parameter(scan, sites, name) for name in ("A", "D", "dt_bias"))
        shape = (self.k, self.d)
        given = a.reshape(*shape, self.n).float(), bias.reshape(shape).float(), d.reshape(shape).float()
        directions = scan.directions if self.k > 1 else None
        self.scan = CodeScan(*given, self.delta.bits, directions=directions, frozen=self.delta.constant)

    def _order(self) -> Tensor:
        """Output channels of x_proj: dt of all directions, then B, then C."""
        index = torch.arange(self.k * (self.r + 2 * self.n)).view(self.k, -1)
        parts = index.split((self.r, self.n, self.n), dim=1)
        return torch.cat([part.flatten() for part in parts])

    def emit_inputs(self, program: Program, given: Target) -> tuple[Target, Target, Target]:
        """Steps from the codes of x_proj's input to the codes of delta, B and C.

        Args:
            program: where they go.
            given: input of x_proj.
        """
        k, r, n, size = self.k, self.r, self.n, program.size
        projected = program.floats("projected", self.x_proj.outputs)
        program.layer(self.x_proj, given.codes, out=projected)
        dt_rows, b_rows, c_rows = projected.split((k * r, k * n, k * n), dim=1)
        layout = self.layouts or (lambda *inner: as_image(size, *inner))
        dt = program.target("dt", self.dt_grid, k * r, layout(k, r))
        b, c = (program.target(name, grid, k * n, layout(k, n)) for name, grid in (("B", self.b), ("C", self.c)))
        program.rows(dt_rows, [dt])
        program.rows(b_rows, [b])
        self.emit_c(program, c_rows, c)
        delta = program.target("delta", self.delta, k * self.d, layout(k, self.d))
        program.delta(dt.codes, self.dt, delta)
        return delta, b, c

    def emit_c(self, program: Program, rows: Tensor, target: Target) -> None:
        """Steps from the projected C to its codes."""
        program.rows(rows, [target])

    def emit_scan(
        self,
        program: Program,
        u: Target,
        inputs: tuple[Target, Target, Target],
        out: Tensor,
        order: Tensor | None = None,
    ) -> None:
        """The scan itself.

        Args:
            program: where it goes.
            u: codes of the scanned map.
            inputs: delta, B and C.
            out: (P, M, D), maps whose sum is the result.
            order: (K, M) int32, what it holds when the scan runs; None for that of the directions' names.
        """
        height, width = program.size
        shape = (1, height, width)
        delta, b, c = inputs
        given = (u.on_grid(*shape, self.d), delta.on_grid(*shape, self.k, self.d))
        given += (b.on_grid(*shape, self.k, self.n), c.on_grid(*shape, self.k, self.n))
        for step in self.scan.prepared(*given, out=out.view(-1, *shape, self.d), order=order):
            program.call(step)


def _parameter(scan: ScanParameters, sites: nn.ModuleDict, name: str) -> Tensor:
    """A, D or dt_bias as the scan uses it: on its grid, or in full precision."""
    site = sites[name]
    if isinstance(site, Constant):
        return site.value
    value = {"A": lambda: -torch.exp(scan.A_logs.float()), "D": lambda: scan.Ds, "dt_bias": lambda: scan.dt_projs_bias}
    return value[name]().detach()


class NativeSS2D:
    """SS2D, behind the LayerNorm in front of it and with the residual behind it.

    Args:
        module: lowered.
        residual_scale: (C,), of the residual.
    """

    def __init__(self, module: SS2D, residual_scale: Tensor):
        require(module, SS2D)
        self.scan = NativeScan(module)
        self.d = module.d_inner
        channels = torch.arange(2 * self.d)
        self.enter = native_linear(module.in_proj, channels[: self.d])
        self.gate = native_linear(module.in_proj, channels[self.d :], grid=self.enter.grid)
        self.conv = native_conv(module.conv2d, activation="silu")
        self.norm = module.out_norm
        self.leave = native_linear(module.out_proj, residual_scale=residual_scale)

    def emit(self, program: Program, x: Tensor, given: Target) -> None:
        """Steps from the codes of the normalised map to x, to which the result is added."""
        size, d = program.size, self.d
        entered = program.target("entered", self.conv.grid, d, as_map(size))
        gate = program.floats("gate", d)
        # two threads can share the directions; in the memory of the projections, which are codes by then
        y = program.workspace.take("projected", (min(2, self.scan.k), program.tokens, d))
        program.layer(self.enter, given.codes, [entered])
        program.layer(self.gate, given.codes, out=gate)
        projected = program.target("x_proj", self.scan.x_proj.grid, d, as_image(size))
        u = program.target("u", self.scan.u, d, as_image(size))
        program.layer(self.conv, entered.codes, [projected, u])
        inputs = self.scan.emit_inputs(program, projected)
        self.scan.emit_scan(program, u, inputs, y)
        last = program.target("last", self.leave.grid, d, as_image(size))
        given = {"added": y[1]} if len(y) > 1 else {}
        program.rows(y[0], [last], **given, norm=self.norm, other=gate, combine="multiply_silu", out=y[0])
        program.layer(self.leave, last.codes, out=x, residual=x)


class NativeCAB:
    """The channel-attention convolution block.

    Args:
        module: lowered.
    """

    def __init__(self, module: CAB):
        require(module, CAB)
        *layers, attention = module.cab
        self.layers, self.attention = [], attention.attention
        for layer, behind in zip(layers, [*layers[1:], None], strict=True):
            if not isinstance(layer, nn.GELU):
                self.layers.append(native_conv(layer, activation="gelu" if isinstance(behind, nn.GELU) else "none"))
        self.channels = self.layers[-1].outputs
        self.attention_layers = list(self.attention)[1:]  # the mean over the map is taken of the rows
        self.weights = attend_weights(self.attention_layers)

    def _attend(self, rows: Tensor) -> Tensor:
        """Layers that the kernel does not compute: the map (M, C) -> (C,)."""
        x = rows.mean(0).view(1, -1, 1, 1)
        for layer in self.attention_layers:
            x = layer(x)
        return x.flatten()

    def emit(self, program: Program, given: Target) -> tuple[Tensor, Tensor]:
        """Steps from the codes of the normalised map to the result (M, C) and the attention (C,) to multiply it by."""
        size = program.size
        for i, layer in enumerate(self.layers[:-1]):
            after = self.layers[i + 1]
            between = program.target(f"between{i % 2}", after.grid, layer.outputs, as_map(size))
            program.layer(layer, given.codes, [between])
            given = between
        result = program.floats("cab", self.channels)
        program.layer(self.layers[-1], given.codes, out=result)
        attention = program.workspace.take("attention", (self.channels,))
        if self.weights is not None:
            program.call(attend(result, self.weights, attention))
        else:
            program.call(lambda: attention.copy_(self._attend(result)))
        return result, attention


class NativeStateSpaceBlock:
    """``ResidualStateSpaceBlock``, in place on the map.

    Args:
        module: lowered.
    """

    def __init__(self, module: ResidualStateSpaceBlock):
        require(module, ResidualStateSpaceBlock)
        self.norms, self.scale = (module.ln_1, module.ln_2), module.skip_scale2.detach()
        self.attention = NativeSS2D(module.self_attention, module.skip_scale.detach())
        self.conv = NativeCAB(module.conv_blk)
        self.channels = module.skip_scale.numel()

    def emit(self, program: Program, x: Tensor, pending: dict) -> dict:
        """Steps of the block.

        Args:
            program: where they go.
            x: the map, (M, C).
            pending: the last sum of the block in front, which this one's first pass does as well.

        Returns:
            This block's own last sum.
        """
        size = program.size
        first = program.target("normed", self.attention.enter.grid, self.channels, as_image(size))
        program.rows(x, [first], norm=self.norms[0], **pending)
        self.attention.emit(program, x, first)
        conv = self.conv.layers[0]
        second = program.target("normed", conv.grid, self.channels, as_map(size))
        program.rows(x, [second], norm=self.norms[1])
        added, attention = self.conv.emit(program, second)
        return {"scale": self.scale, "added": added, "added_scale": attention, "total": x}


class NativeSequence(Fused):
    """Residual state-space blocks one after the other.

    Args:
        blocks: lowered.
        workspace: of the network.
    """

    def __init__(self, blocks: BlockSequence, workspace: Workspace):
        super().__init__(workspace)
        if not len(blocks):
            raise NotFused("no blocks")
        self.blocks = [NativeStateSpaceBlock(block) for block in blocks]
        self.channels = self.blocks[0].channels
        self.as_lowered = nn.ModuleList(block.conv.attention for block in self.blocks)

    def emit(self, program: Program) -> None:
        x, pending = program.floats("stream", self.channels), {}
        for block in self.blocks:
            pending = block.emit(program, x, pending)
        program.rows(x, **pending)

    def forward(self, x: Tensor) -> Tensor:
        """(1, H, W, C) -> (1, H, W, C)."""
        _, height, width, channels = x.shape
        program = self.programs.of(height, width)
        stream = program.floats("stream", channels)
        stream.view(x.shape).copy_(x)
        program.run()
        return stream.view(x.shape).clone()


class NativeGroup(NativeSequence):
    """``ResidualStateSpaceGroup``: the blocks, a convolution, and what came in added.

    Args:
        group: lowered.
        workspace: of the network.
    """

    def __init__(self, group: ResidualStateSpaceGroup, workspace: Workspace):
        require(group, ResidualStateSpaceGroup)
        super().__init__(group.residual_group["blocks"], workspace)
        self.conv = native_conv(group.conv)

    def emit(self, program: Program) -> None:
        x, entered, pending = program.floats("stream", self.channels), program.floats("group", self.channels), {}
        for block in self.blocks:
            pending = block.emit(program, x, pending)
        last = program.target("normed", self.conv.grid, self.channels, as_map(program.size))
        program.rows(x, [last], **pending)
        program.layer(self.conv, last.codes, out=entered, residual=entered)

    def forward(self, x: Tensor) -> Tensor:
        """(1, H, W, C) -> (1, H, W, C)."""
        program = self.programs.of(*x.shape[1:3])
        stream, entered = (program.floats(name, self.channels).view(x.shape) for name in ("stream", "group"))
        stream.copy_(x)
        entered.copy_(x)
        program.run()
        return entered.clone()
