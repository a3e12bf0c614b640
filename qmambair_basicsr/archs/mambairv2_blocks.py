"""Building blocks of MambaIRv2 (Guo et al., "MambaIRv2: Attentive State Space Restoration", CVPR 2025).

Features travel channels-last, (B, H, W, C); attribute names follow the state_dict keys of the official weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..layers.matmul import MatMul, QuantMatMul
from ..ops.permutation import permute_tokens
from ..ops.rounding import Rounding
from ..ops.semantic_order import semantic_order
from ..ops.window_attention import window_attention, windowed
from ..ops.window_attention.rounded import rounds, window_attention_rounded
from ..quantizers.together import is_watched, passes, quantize_together, rounding_of
from .blocks import conv_channels_last
from .routing import RoutingNoise, pick_policy, pick_prompt
from .ss2d import ScanParameters
from .windows import WindowPlan


@dataclass(frozen=True)
class Routes:
    """Shared by all layers of one forward pass.

    Attributes:
        plain: Window plan without shift.
        shifted: Window plan shifted by half a window.
        relative_index: Rows of the relative-position table, (window**2, window**2).
        noise: Routing noise of this pass.
    """

    plain: WindowPlan
    shifted: WindowPlan
    relative_index: Tensor
    noise: RoutingNoise

    def snapshot(self) -> Routes:
        """The same plans, and the noise from here on."""
        return replace(self, noise=self.noise.snapshot())


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with an additive relative-position bias.

    Args:
        dim: Channels C.
        window_size: Side of a window.
        num_heads: Attention heads; must divide ``dim``.
    """

    def __init__(self, dim: int, window_size: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"embed_dim {dim} is not divisible by num_heads {num_heads}; choose a divisor")
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qk_matmul = MatMul("attention", ("q", "k"))
        self.av_matmul = MatMul("attention", ("map", "v"))
        self.proj = nn.Linear(dim, dim)

    def full_precision(self) -> bool:
        """Whether the operands of both products are used as they are."""
        products = self.qk_matmul, self.av_matmul
        if all(type(product) is MatMul for product in products):
            return True
        if not all(type(product) in (MatMul, QuantMatMul) for product in products):
            return False
        operands = (getattr(p, f"{side}_quantizer", None) for p in products for side in ("left", "right"))
        return all(quantizer is None or passes(quantizer) for quantizer in operands) and not any(
            map(is_watched, products)
        )

    def map_rounding(self, qkv: Tensor, tokens: int) -> Rounding | None:
        """What the probabilities go through where a kernel does that: all four operands are only rounded, on constant grids of
        one step each, so that it does not matter in which order the values lie; else None."""
        products = self.qk_matmul, self.av_matmul
        if not all(type(product) is QuantMatMul for product in products) or not rounds(qkv, tokens, self.num_heads):
            return None
        operands = [q for product in products for q in (product.left_quantizer, product.right_quantizer)]
        roundings = [rounding_of(quantizer) for quantizer in operands]
        seen = None in roundings or any(map(is_watched, products))
        return None if seen else roundings[2]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Softmax attention of q, k, v (n, heads, T, head_dim) with bias (1, heads, T, T), products quantized."""
        logits = self.qk_matmul(q * self.scale, k.transpose(-2, -1)) + bias
        return self.av_matmul(logits.softmax(dim=-1), v)

    def forward(self, qkv: Tensor, plan: WindowPlan, relative_index: Tensor) -> Tensor:
        """Attend within the windows of ``plan``.

        Args:
            qkv: Queries, keys and values of all tokens in raster order, (B, L, 3C).
            plan: Window plan of the grid.
            relative_index: Rows of the relative-position table, (T, T) with T = window**2.

        Returns:
            (B, L, C) in raster order.
        """
        given = qkv, self.relative_position_bias_table, relative_index, plan.windows
        if self.full_precision():
            out = window_attention(*given, plan.regions, scale=self.scale, kinds=plan.kinds)
        elif (rounding := self.map_rounding(qkv, relative_index.shape[0])) is not None:
            q, k, v = qkv.chunk(3, dim=-1)
            products = self.qk_matmul, self.av_matmul
            operands = quantize_together(
                [
                    (products[0].left_quantizer, q * self.scale),
                    (products[0].right_quantizer, k),
                    (products[1].right_quantizer, v),
                ]
            )
            given = torch.cat(operands, -1), *given[1:], plan.regions
            out = window_attention_rounded(*given, scale=1.0, rounding=rounding)
        else:
            out = windowed(self.attend, *given, plan.kinds)
        return self.proj(out)


class DepthwiseGELU(nn.Module):
    """Depthwise convolution followed by GELU; key ``depthwise_conv.0`` (``dwconv`` in the authors' code)."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.depthwise_conv = nn.Sequential(conv, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        return conv_channels_last(self.depthwise_conv, x)


class ConvFFN(nn.Module):
    """Feed-forward network of MambaIRv2: fc2(h + GELU(dwconv(h))) with h = GELU(fc1(x)).

    Args:
        dim: Channels in and out.
        hidden: Channels between.
        kernel_size: Odd kernel of the depthwise convolution.
    """

    traced_apart = True  # export traces one of each kind: a map in, a map of the same shape out

    def __init__(self, dim: int, hidden: int, kernel_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.dwconv = DepthwiseGELU(hidden, kernel_size)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        x = self.act(self.fc1(x))
        return self.fc2(x + self.dwconv(x))


class SpatialGate(nn.Module):
    """First half of the channels times the depthwise-convolved, normalised second half."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, 2C) -> (B, H, W, C)."""
        value, gate = x.chunk(2, dim=-1)
        return value * conv_channels_last(self.conv, self.norm(gate))


class GatedMLP(nn.Module):
    """Feed-forward network of MambaIRv2-light: fc2(gate(GELU(fc1(x)))).

    Args:
        dim: Channels in and out.
        hidden: Channels after ``fc1``; the gate halves them.
        kernel_size: Unused, the light network always gates with 5x5; kept for the signature of ConvFFN.
    """

    traced_apart = True  # export traces one of each kind: a map in, a map of the same shape out

    def __init__(self, dim: int, hidden: int, kernel_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.sg = SpatialGate(hidden // 2)
        self.fc2 = nn.Linear(hidden // 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        return self.fc2(self.sg(self.act(self.fc1(x))))


def _rows(embedding: nn.Embedding) -> Tensor:
    """The whole table of an embedding, through its forward, where a quantized one quantizes."""
    return embedding(torch.arange(embedding.num_embeddings, device=embedding.weight.device))


class ASSM(nn.Module):
    """Attentive state-space module: one scan over semantically sorted tokens, prompts added to C.

    The scan is ``Selective_Scan`` in the authors' code.

    Args:
        dim: Channels C in and out.
        d_state: State size N.
        num_tokens: Prompts T of the dictionary.
        inner_rank: Rank r of the dictionary ``embeddingB (T, r) @ embeddingA (r, N)``.
        mlp_ratio: Channels of the scan, D = int(dim * mlp_ratio).
    """

    def __init__(self, dim: int, d_state: int, num_tokens: int, inner_rank: int, mlp_ratio: float) -> None:
        super().__init__()
        inner = int(dim * mlp_ratio)
        self.selectiveScan = ScanParameters(inner, d_state, dt_rank=math.ceil(inner / 16), directions=("row",))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim)
        self.in_proj = nn.Sequential(nn.Conv2d(dim, inner, 1))
        self.CPE = nn.Sequential(nn.Conv2d(inner, inner, 3, padding=1, groups=inner))
        self.embeddingB = nn.Embedding(num_tokens, inner_rank)
        nn.init.uniform_(self.embeddingB.weight, -1 / num_tokens, 1 / num_tokens)
        # the LogSoftmax of the paper shifts all logits of a token alike: it changes neither the pick nor its gradient
        self.route = nn.Sequential(nn.Linear(dim, dim // 3), nn.GELU(), nn.Linear(dim // 3, num_tokens))
        self.prompt_matmul = MatMul("routing", ("policy", "dictionary"), ("act", "param"))

    def forward(self, x: Tensor, embedding_a: nn.Embedding, noise: RoutingNoise, block: int) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C).

        Args:
            x: Normalised features.
            embedding_a: Right factor of the prompt dictionary, (r, N).
            noise: Routing noise; a silent one makes the pick a constant without gradient.
            block: A divisor of H * W, see ``semantic_order``.
        """
        batch, height, width, _ = x.shape
        length = height * width
        dictionary = _rows(self.embeddingB) @ _rows(embedding_a)  # (T, N)
        scores = noise.add_to(self.route(x).flatten(1, 2))  # (B, L, T)
        if type(self.prompt_matmul) is MatMul:
            picked, prompt = pick_prompt(scores, dictionary, noisy=not noise.silent)
        else:
            picked, policy = pick_policy(scores, noisy=not noise.silent)
            prompt = self.prompt_matmul(policy, dictionary)
        order, inverse = semantic_order(picked, self.embeddingB.num_embeddings, block)

        x = conv_channels_last(self.in_proj, x)
        x = x * torch.sigmoid(conv_channels_last(self.CPE, x))
        x = permute_tokens(x.reshape(batch, length, -1), order, inverse)

        # the prompts stay in raster order while the tokens are sorted, as in the official network
        x = x.unsqueeze(1)  # (B, 1, L, D)
        delta, b, c = self.selectiveScan.project(x)
        y = self.selectiveScan.scan(x, delta, b, c + prompt.view(batch, 1, length, 1, -1))
        y = self.out_proj(self.out_norm(y.squeeze(1)))
        return permute_tokens(y, inverse, order).view(batch, height, width, -1)


class AttentiveLayer(nn.Module):
    """Window attention + FFN, then attentive state space + FFN.

    Args:
        dim: Channels C.
        d_state: State size of the scan.
        num_heads: Attention heads.
        window_size: Side of an attention window.
        shifted: Whether the windows are shifted by half a window.
        inner_rank: Rank of the prompt dictionary.
        num_tokens: Prompts in the dictionary.
        kernel_size: Depthwise kernel of ConvFFN.
        mlp_ratio: Hidden over outer channels, of both FFNs and of the scan.
        qkv_bias: Whether ``wqkv`` has a bias.
        ffn: ConvFFN or GatedMLP.
    """

    def __init__(
        self,
        dim: int,
        d_state: int,
        num_heads: int,
        window_size: int,
        shifted: bool,
        inner_rank: int,
        num_tokens: int,
        kernel_size: int,
        mlp_ratio: float,
        qkv_bias: bool,
        ffn: type[nn.Module],
    ) -> None:
        super().__init__()
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.scale1 = nn.Parameter(torch.full((dim,), 1e-4))
        self.scale2 = nn.Parameter(torch.full((dim,), 1e-4))
        self.wqkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.win_mhsa = WindowAttention(dim, window_size, num_heads)
        self.assm = ASSM(dim, d_state, num_tokens, inner_rank, mlp_ratio)
        hidden = int(dim * mlp_ratio)
        self.convffn1 = ffn(dim, hidden, kernel_size)
        self.convffn2 = ffn(dim, hidden, kernel_size)
        self.embeddingA = nn.Embedding(inner_rank, d_state)
        nn.init.uniform_(self.embeddingA.weight, -1 / inner_rank, 1 / inner_rank)

    def forward(self, x: Tensor, routes: Routes) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        plan = routes.shifted if self.shifted else routes.plain
        attended = self.win_mhsa(self.wqkv(self.norm1(x)).flatten(1, 2), plan, routes.relative_index)
        y = x + attended.view(x.shape)
        x = x * self.scale1 + y + self.convffn1(self.norm2(y))
        y = x + self.assm(self.norm3(x), self.embeddingA, routes.noise, routes.relative_index.shape[0])
        return x * self.scale2 + y + self.convffn2(self.norm4(y))


class AttentiveStack(nn.Module):
    """Attentive layers one after the other, every second one with shifted windows; key ``layers.{j}``.

    ``BasicBlock`` in the authors' code.
    """

    def __init__(self, layers: list[AttentiveLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, routes: Routes) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        for layer in self.layers:
            x = layer(x, routes)
        return x


class ASSB(nn.Module):
    """Attentive state-space block: x + conv(stack(x)).

    Args:
        stack: The attentive layers.
        conv: Convolution at the end of the block, NCHW.
    """

    def __init__(self, stack: AttentiveStack, conv: nn.Module) -> None:
        super().__init__()
        self.residual_group = stack
        self.conv = conv

    def forward(self, x: Tensor, routes: Routes) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        return x + conv_channels_last(self.conv, self.residual_group(x, routes))
