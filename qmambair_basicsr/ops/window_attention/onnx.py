"""Window attention in an exported graph: composed of standard operators, which runtimes fuse or not as they like."""

from __future__ import annotations

import torch
from torch import Tensor


def accepts(qkv: Tensor, tokens: int, heads: int) -> bool:
    """ONNX has no such node."""
    return False


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """See ``attend`` of the operator. The exporter rounds a scale that is no tensor to FP32, in FP64 as well."""
    return ((q * torch.tensor(scale, dtype=q.dtype)) @ k.transpose(-2, -1) + bias).softmax(dim=-1) @ v
