"""MambaIRv2's layers on native kernels: window attention, feed-forward networks, and the scan in semantic order.

Tokens stay where they are in the image: the scan is given the order in which it visits them, instead of sorted copies.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..archs.mambairv2_blocks import ASSM, AttentiveLayer, AttentiveStack, ConvFFN, GatedMLP, Routes, WindowAttention
from ..archs.routing import pick_policy
from ..layers.matmul import MatMul
from ..ops.glue.noise import uniform
from ..ops.glue.routing import order as semantic_order
from ..ops.glue.routing import route, route_weights
from ..ops.window_attention import window_attention_into, windowed
from .grids import NotFused, require
from .layers import native_conv, native_linear
from .program import Fused, Program, Target, Workspace
from .state_space import NativeScan, as_image, as_map


def as_tokens(rows: Tensor) -> Tensor:
    """Rows (M, C) -> (1, M, C)."""
    return rows.unsqueeze(0)


class NativeAttention:
    """Attention within windows; products of operands that are quantized stay as lowered.

    Args:
        module: lowered.
        enter: lowered projection to queries, keys and values.
    """

    def __init__(self, module: WindowAttention, enter: nn.Module):
        require(module, WindowAttention)
        self.module, self.enter, self.leave = module, native_linear(enter), native_linear(module.proj)

    def emit(self, program: Program, part: NativeStack, shifted: bool, given: Target, x: Tensor, y: Tensor) -> None:
        """Steps from the codes of the normalised map to y, the map x and the attention of its tokens."""
        qkv, attended = program.floats("wide", self.enter.outputs), program.floats("attended", self.leave.inputs)
        program.layer(self.enter, given.codes, out=qkv)
        module, rows = self.module, attended.unsqueeze(0)

        def attend() -> None:
            routes = part.routes
            plan = routes.shifted if shifted else routes.plain
            inputs = qkv.unsqueeze(0), module.relative_position_bias_table, routes.relative_index, plan.windows
            if module.full_precision():
                window_attention_into(rows, *inputs, plan.regions, scale=module.scale, kinds=plan.kinds)
            else:
                rows.copy_(windowed(module.attend, *inputs, plan.kinds))

        program.call(attend)
        last = program.target("last", self.leave.grid, self.leave.inputs, as_tokens)
        program.rows(attended, [last])
        program.layer(self.leave, last.codes, out=y, residual=x)


class NativeFeedForward:
    """ConvFFN or GatedMLP, added to a map.

    Args:
        module: lowered.
    """

    def __init__(self, module: nn.Module):
        self.gated = type(module) is GatedMLP
        if not self.gated:
            require(module, ConvFFN)
        self.enter, self.leave = native_linear(module.fc1, activation="gelu"), native_linear(module.fc2)
        if self.gated:
            self.norm, self.conv = module.sg.norm, native_conv(module.sg.conv)
        else:
            self.conv = native_conv(module.dwconv.depthwise_conv[0], activation="gelu")
        self.inner = self.conv.outputs

    def emit(self, program: Program, given: Target, y: Tensor, out: Tensor) -> None:
        """Steps from the codes of the normalised map y to out, the sum of y and the result."""
        size = program.size
        hidden, gated = program.floats("wide", self.enter.outputs), program.floats("attended", self.inner)
        conv = program.target("entered", self.conv.grid, self.inner, as_map(size))
        last = program.target("last", self.leave.grid, self.inner, as_image(size))
        if self.gated:
            value, gate = hidden.split(self.inner, dim=1)
            program.layer(self.enter, given.codes, out=hidden)
            program.rows(gate, [conv], norm=self.norm)
            other, combine = value, "multiply"
        else:
            program.layer(self.enter, given.codes, [conv], out=hidden)
            other, combine = hidden, "add"
        program.layer(self.conv, conv.codes, out=gated)
        program.rows(gated, [last], other=other, combine=combine)
        program.layer(self.leave, last.codes, out=out, residual=y)


class _PromptedScan(NativeScan):
    """The scan whose C has the prompts of the tokens added, in the order of the tokens."""

    prompts: Tensor
    """(M, N), filled before C is added to them."""

    def emit_c(self, program: Program, rows: Tensor, target: Target) -> None:
        program.rows(rows, [target], added=self.prompts, out=program.floats("prompted", rows.shape[1]))


class NativeASSM:
    """The attentive state-space module, added to a map.

    Args:
        module: lowered.
        embedding: the other factor of the dictionary, lowered.
    """

    def __init__(self, module: ASSM, embedding: nn.Module):
        require(module, ASSM)
        self.module, self.embedding = module, embedding
        self.scan = _PromptedScan(module.selectiveScan)
        self.enter, self.position = native_conv(module.in_proj[0]), native_conv(module.CPE[0])
        self.norm, self.leave = module.out_norm, native_linear(module.out_proj)

    def emit(self, program: Program, part: NativeStack, normed: Tensor, given: Target, x: Tensor, y: Tensor) -> None:
        """Steps from the normalised map and its codes to y, the sum of the map x and the result."""
        d, m, size = self.scan.d, program.tokens, program.size
        order = program.workspace.take("order", (1, m), torch.int32)
        inverse = program.workspace.take("inverse", (m,), torch.int64)
        sort = self._route(program, part, normed, order, inverse)

        def sorted_tokens(*shape: int):
            return lambda rows: rows[order[0].long()].view(1, 1, m, *(shape or (-1,)))

        self.scan.layouts = sorted_tokens
        entered = program.floats("wide", d)
        position = program.target("entered", self.position.grid, d, as_map(size))
        program.layer(self.enter, given.codes, [position], out=entered)
        gate = program.floats("attended", d)
        program.layer(self.position, position.codes, out=gate)
        projected = program.target("x_proj", self.scan.x_proj.grid, d, sorted_tokens())
        u = program.target("u", self.scan.u, d, sorted_tokens())
        program.call(sort)
        program.rows(gate, [projected, u], activation="sigmoid", other=entered, combine="multiply", out=gate)
        inputs = self.scan.emit_inputs(program, projected)
        scanned = program.floats("wide", d)
        self.scan.emit_scan(program, u, inputs, scanned, order)
        last = program.target("last", self.leave.grid, d, lambda rows: rows[order[0].long()].unsqueeze(0))
        program.rows(scanned, [last], norm=self.norm, out=scanned)
        program.layer(self.leave, last.codes, out=y, residual=x)

    def _route(self, program: Program, part: NativeStack, normed: Tensor, order: Tensor, inverse: Tensor):
        """What picks the prompts, sorts the tokens by them and puts each token's prompt where the scan meets it."""
        module, embedding, shape = self.module, self.embedding, (1, *program.size, -1)
        count, m, take = module.embeddingB.num_embeddings, program.tokens, program.workspace.take
        picked, met = take("picked", (m,), torch.int64), take("met", (m,), torch.int64)
        uniforms = program.floats("uniform", count)
        self.scan.prompts = prompts = program.floats("prompts", self.scan.n)
        weights = route_weights(module.route)
        plain = type(module.prompt_matmul) is MatMul
        step = route(normed, uniforms, picked, weights) if plain and weights is not None else None

        def sort() -> None:
            rows, noise = torch.arange(count), part.routes.noise
            table = module.embeddingB(rows) @ embedding(torch.arange(embedding.num_embeddings))
            index = None
            if step is not None and noise.generator is not None:
                uniform(noise.generator, uniforms)
                step()
            else:
                logits = module.route(normed.view(shape)).view(1, m, count)
                found, policy = pick_policy(noise.add_to(logits), noisy=not noise.silent)
                picked.copy_(found[0])
                if not plain:
                    table, index = module.prompt_matmul(policy, table)[0], inverse
            semantic_order(picked, count, order, inverse)
            # the prompts stay in raster order while the tokens are sorted, as in the official network
            index = torch.index_select(picked, 0, inverse, out=met) if index is None else index
            torch.index_select(table, 0, index, out=prompts)

        return sort


class NativeAttentiveLayer:
    """``AttentiveLayer``, in place on the map.

    Args:
        module: lowered.
    """

    def __init__(self, module: AttentiveLayer):
        require(module, AttentiveLayer)
        self.norms = [module.norm1, module.norm2, module.norm3, module.norm4]
        self.scales = [module.scale1.detach(), module.scale2.detach()]
        self.shifted, self.channels = module.shifted, module.scale1.numel()
        self.attention = NativeAttention(module.win_mhsa, module.wqkv)
        self.assm = NativeASSM(module.assm, module.embeddingA)
        self.feeds = [NativeFeedForward(module.convffn1), NativeFeedForward(module.convffn2)]

    def emit(self, program: Program, part: NativeStack, x: Tensor, pending: dict) -> dict:
        """Steps of the layer; see ``NativeStateSpaceBlock.emit``."""
        size, columns = program.size, self.channels
        y, z = program.floats("y", columns), program.floats("z", columns)
        first = program.target("normed", self.attention.enter.grid, columns, as_image(size))
        program.rows(**({"x": x} | pending), targets=[first], norm=self.norms[0])
        self.attention.emit(program, part, self.shifted, first, x, y)
        self._feed(program, self.feeds[0], self.norms[1], y, z)
        normed = program.floats("normed_values", columns)
        third = program.target("normed", self.assm.enter.grid, columns, as_map(size))
        program.rows(z, [third], added=x, added_scale=self.scales[0], total=x, norm=self.norms[2], out=normed)
        self.assm.emit(program, part, normed, third, x, y)
        self._feed(program, self.feeds[1], self.norms[3], y, z)
        return {"x": z, "added": x, "added_scale": self.scales[1], "total": x}

    def _feed(self, program: Program, feed: NativeFeedForward, norm: nn.LayerNorm, y: Tensor, out: Tensor) -> None:
        given = program.target("normed", feed.enter.grid, self.channels, as_image(program.size))
        program.rows(y, [given], norm=norm)
        feed.emit(program, given, y, out)


class NativeStack(Fused):
    """Attentive layers one after the other.

    Args:
        stack: lowered.
        workspace: of the network.
    """

    routes: Routes

    def __init__(self, stack: AttentiveStack, workspace: Workspace):
        super().__init__(workspace)
        if not len(stack.layers):
            raise NotFused("no layers")
        self.layers = [NativeAttentiveLayer(layer) for layer in stack.layers]
        self.channels = self.layers[0].channels
        for layer in stack.layers:  # packed by now
            layer.win_mhsa.proj = None
            for name in ("in_proj", "CPE", "selectiveScan", "out_proj"):
                setattr(layer.assm, name, None)
        self.as_lowered = nn.ModuleList(
            module for layer in stack.layers for module in (layer.win_mhsa, layer.assm, layer.embeddingA)
        )

    def emit(self, program: Program) -> None:
        x, pending = program.floats("stream", self.channels), {}
        for layer in self.layers:
            pending = layer.emit(program, self, x, pending)
        program.rows(**pending)

    def forward(self, x: Tensor, routes: Routes) -> Tensor:
        """(1, H, W, C) -> (1, H, W, C)."""
        _, height, width, channels = x.shape
        program = self.programs.of(height, width)
        self.routes = routes
        stream = program.floats("stream", channels)
        stream.view(x.shape).copy_(x)
        program.run()
        return stream.view(x.shape).clone()
