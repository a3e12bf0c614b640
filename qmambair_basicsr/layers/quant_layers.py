"""Linear, convolution and embedding with fake-quantized operands.

Each layer is a subclass of torch's and keeps its parameter names, so that checkpoints of the full-precision network
load into the quantized one. Biases stay in full precision (methods of Q-MambaIR's release).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..ops.layout import stored_channels_last
from ..quantizers.base import Quantizer
from ..quantizers.site import Site
from .weight_cache import WeightCache


def layer_sites(
    layer: nn.Module, kind: str, channels: int | None = None, channel_dim: int | None = None
) -> tuple[Site, Site]:
    """The sites of a layer that multiplies its input with its ``weight``.

    Args:
        layer: the layer; rows of its weight are its output channels.
        kind: ``routing`` for both sites, or else ``weight`` for the weight and ``act`` for the input.
        channels: of the input.
        channel_dim: of the input.
    """
    shape = tuple(layer.weight.shape)
    weight = Site(kind, "weight", shape[0], 0, shape, operand="weight", slot="weight_quantizer", parameter="weight")
    act_kind = kind if kind == "routing" else "act"
    return weight, Site(act_kind, "act", channels, channel_dim, operand="act", slot="act_quantizer")


class _WithWeight:
    """Base of the layers below: a weight whose fake-quantized value is kept in evaluation, and their sites.

    ``transform`` is what the input and the weight go through before their quantizers (``transforms.py``), None for nothing.
    """

    def quantization_sites(self) -> tuple[Site, ...]:
        """Weight and, where the layer has one, input; of the kind that their quantizers were built for."""
        return self.sites_of(self, self.weight_quantizer.site.kind)

    def quantized_weight(self) -> torch.Tensor:
        """The fake-quantized weight, shaped as ``weight``."""
        return self.weight_cache(self.weight_quantizer, self.weight, transform=self.transform)

    def quantized_input(self, x: torch.Tensor) -> torch.Tensor:
        """The fake-quantized input."""
        transform = self.transform
        if transform is None:
            return self.act_quantizer(x)
        return transform.leave(self.act_quantizer(transform.enter(x)))

    def train(self, mode: bool = True) -> nn.Module:
        self.weight_cache.clear()
        return super().train(mode)


class QuantLinear(_WithWeight, nn.Linear):
    """y = act_quantizer(x) @ weight_quantizer(W)^T + b.

    Args:
        in_features (int): Input channels.
        out_features (int): Output channels.
        bias (bool): Whether there is a (full-precision) bias.
        weight_quantizer (Quantizer): For the weight (out_features, in_features).
        act_quantizer (Quantizer): For the input (..., in_features).
        device: As in torch.nn.Linear.
        dtype: As in torch.nn.Linear.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        weight_quantizer: Quantizer,
        act_quantizer: Quantizer,
        device=None,
        dtype=None,
    ):
        super().__init__(in_features, out_features, bias, device, dtype)
        self.weight_quantizer = weight_quantizer
        self.act_quantizer = act_quantizer
        self.weight_cache = WeightCache()
        self.register_module("transform", None)

    @staticmethod
    def sites_of(layer: nn.Linear, kind: str = "weight") -> tuple[Site, ...]:
        """Weight and input of a linear layer, quantized or not; see :func:`layer_sites`."""
        return layer_sites(layer, kind, layer.in_features, -1)

    @classmethod
    def from_float(cls, layer: nn.Linear, weight_quantizer: Quantizer, act_quantizer: Quantizer) -> QuantLinear:
        """Take over a layer; its Parameter objects are shared, not copied."""
        quantized = cls(
            layer.in_features,
            layer.out_features,
            layer.bias is not None,
            weight_quantizer=weight_quantizer,
            act_quantizer=act_quantizer,
            device="meta",
        )
        quantized.weight, quantized.bias = layer.weight, layer.bias
        return quantized.train(layer.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        return F.linear(self.quantized_input(x), self.quantized_weight(), self.bias)


class QuantConv2d(_WithWeight, nn.Conv2d):
    """Convolution of act_quantizer(x) with weight_quantizer(W), plus a full-precision bias.

    Zero padding is applied after quantization: padded pixels are exactly 0 whatever the grid, as in the release.
    Use :meth:`from_float`; the constructor takes torch's arguments as they are stored in a layer.

    Args:
        layer (nn.Conv2d): Layer whose geometry is taken over.
        weight_quantizer (Quantizer): For the weight (C_out, C_in / groups, kH, kW).
        act_quantizer (Quantizer): For the input (B, C_in, H, W).
    """

    def __init__(self, layer: nn.Conv2d, *, weight_quantizer: Quantizer, act_quantizer: Quantizer):
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            bias=layer.bias is not None,
            padding_mode=layer.padding_mode,
            device="meta",
        )
        self.weight, self.bias = layer.weight, layer.bias
        self.weight_quantizer = weight_quantizer
        self.act_quantizer = act_quantizer
        self.weight_cache = WeightCache()
        self.register_module("transform", None)

    @staticmethod
    def sites_of(layer: nn.Conv2d, kind: str = "weight") -> tuple[Site, ...]:
        """Weight and input of a convolution, quantized or not; see :func:`layer_sites`."""
        return layer_sites(layer, kind, layer.in_channels, 1)

    @classmethod
    def from_float(cls, layer: nn.Conv2d, weight_quantizer: Quantizer, act_quantizer: Quantizer) -> QuantConv2d:
        """Take over a layer; its Parameter objects are shared, not copied."""
        quantized = cls(layer, weight_quantizer=weight_quantizer, act_quantizer=act_quantizer)
        return quantized.train(layer.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) -> (B, C_out, H', W')."""
        quantized = self.quantized_input(x)
        if stored_channels_last(x):  # not every quantizer keeps it, and depthwise convolutions are far slower without
            quantized = quantized.contiguous(memory_format=torch.channels_last)
        return self._conv_forward(quantized, self.quantized_weight(), self.bias)


class QuantEmbedding(_WithWeight, nn.Embedding):
    """Rows of weight_quantizer(W). Use :meth:`from_float`.

    Args:
        layer (nn.Embedding): Embedding without padding index or maximal norm.
        weight_quantizer (Quantizer): For the weight (num_embeddings, embedding_dim).
    """

    def __init__(self, layer: nn.Embedding, *, weight_quantizer: Quantizer):
        super().__init__(layer.num_embeddings, layer.embedding_dim, device="meta")
        self.weight = layer.weight
        self.weight_quantizer = weight_quantizer
        self.weight_cache = WeightCache()
        self.register_module("transform", None)

    @staticmethod
    def sites_of(layer: nn.Embedding, kind: str = "weight") -> tuple[Site, ...]:
        """The table of an embedding, quantized or not; see :func:`layer_sites`."""
        return layer_sites(layer, kind)[:1]

    @classmethod
    def from_float(cls, layer: nn.Embedding, weight_quantizer: Quantizer) -> QuantEmbedding:
        """Take over an embedding; its Parameter object is shared, not copied."""
        return cls(layer, weight_quantizer=weight_quantizer).train(layer.training)

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        """Indices (...) -> (..., embedding_dim)."""
        return F.embedding(index, self.quantized_weight())


QUANTIZED_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: QuantLinear,
    nn.Conv2d: QuantConv2d,
    nn.Embedding: QuantEmbedding,
}
"""Layer that has sites without saying so itself -> its quantized form, with ``sites_of`` and ``from_float``."""
