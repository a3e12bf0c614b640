"""MambaIRv2 and MambaIRv2Light: one network, two feed-forward variants.

Source: Guo et al., "MambaIRv2: Attentive State Space Restoration" (CVPR 2025). State_dict keys and shapes are those
of the official weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from basicsr.archs.arch_util import Upsample
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from ..constants import ConstantBuffers
from ..layers.detection import Keys, detects, ratio
from ..layers.info import NetworkInfo, network_info
from ..strict import strict_options
from .blocks import conv_channels_last, residual_conv
from .mambair_arch import PatchEmbed, initialise_weights
from .mambairv2_blocks import ASSB, AttentiveLayer, AttentiveStack, ConvFFN, GatedMLP, Routes
from .option_rules import MAMBAIRV2, check_mambairv2
from .routing import EVAL_ROUTINGS, RoutingNoise, noise_is_shared
from .ss2d import BEHIND_SCAN
from .windows import mirror_pad, relative_position_index, window_plan

_UPSAMPLERS = ("pixelshuffle", "pixelshuffledirect", "nearest+conv", "")
_TAIL_FEATURES = 64
_RGB_MEAN = (0.4488, 0.4371, 0.4040)


def _choice(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is not supported; choose one of {', '.join(map(repr, allowed))}")
    return value


@ARCH_REGISTRY.register()
class MambaIRv2(ConstantBuffers, nn.Module):
    """MambaIRv2: window attention and attentive state-space scans for image restoration.

    Official option files' ``network_g`` blocks work unchanged; keys without effect are accepted for that reason.

    Args:
        img_size: No effect (the network takes any size).
        patch_size: Only 1 is possible.
        in_chans: Image channels, 3 (RGB) or 1.
        embed_dim: Channels of the body.
        d_state: State size N of the scan.
        depths: Attentive layers of each block.
        num_heads: Attention heads of each block.
        window_size: Side of an attention window; inputs are mirror-padded to multiples of it.
        inner_rank: Rank of the prompt dictionaries.
        num_tokens: Prompts in each dictionary.
        convffn_kernel_size: Depthwise kernel of the feed-forward network (MambaIRv2Light: no effect, always 5).
        mlp_ratio: Hidden over outer channels of the feed-forward networks and of the scan.
        qkv_bias: Whether the query/key/value projection has a bias.
        ape: Absolute position embedding; only False is possible.
        patch_norm: Whether the features entering the body are normalised.
        use_checkpoint: No effect (as in the official code, which never checkpoints).
        upscale: Scale factor.
        img_range: Factor on the input after subtracting the mean.
        upsampler: 'pixelshuffle' | 'pixelshuffledirect' | 'nearest+conv' (x4 only) | '' (restoration: the
            network predicts a residual of the input).
        resi_connection: '1conv' | '3conv'.
        eval_routing: Test-time routing. 'gumbel' (official): noise from a generator of its own, seeded anew for every
            forward, so that an image has the same result in any batch and in every run on the same kind of device.
            'argmax': no noise, for export; costs about 0.14 dB with the official light weights.
        eval_seed: Seed of that generator.

    Raises:
        ValueError: For a value outside the ranges above.
    """

    ffn: type[nn.Module] = ConvFFN

    option_rules = MAMBAIRV2
    check_options = staticmethod(check_mambairv2)

    @strict_options
    def __init__(
        self,
        img_size: int = 64,
        patch_size: int = 1,
        in_chans: int = 3,
        embed_dim: int = 48,
        d_state: int = 8,
        depths: Sequence[int] = (6, 6, 6, 6),
        num_heads: Sequence[int] = (4, 4, 4, 4),
        window_size: int = 16,
        inner_rank: int = 32,
        num_tokens: int = 64,
        convffn_kernel_size: int = 5,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        ape: bool = False,
        patch_norm: bool = True,
        use_checkpoint: bool = False,
        upscale: int = 2,
        img_range: float = 1.0,
        upsampler: str | None = "",
        resi_connection: str = "1conv",
        eval_routing: str = "gumbel",
        eval_seed: int = 0,
    ) -> None:
        super().__init__()
        if patch_size != 1:
            raise ValueError(f"patch_size: {patch_size} is not supported; MambaIRv2 works on single pixels, use 1")
        if ape:
            raise ValueError("ape: true is not supported (it would fix the image size); use false")
        if len(depths) != len(num_heads):
            raise ValueError(f"depths has {len(depths)} entries and num_heads {len(num_heads)}; give one per block")
        if in_chans not in (1, 3):
            raise ValueError(f"in_chans: {in_chans} is not supported; choose 1 or 3")
        self.upsampler = _choice("upsampler", upsampler or "", _UPSAMPLERS)
        self.eval_routing = _choice("eval_routing", eval_routing, EVAL_ROUTINGS)
        self.eval_seed = eval_seed
        self.upscale = upscale
        self.img_range = img_range
        self.window_size = window_size
        mean = torch.tensor(_RGB_MEAN if in_chans == 3 else (0.0,)).view(1, -1, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        for name, value in self.constant_buffers().items():
            self.register_buffer(name, value)

        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, padding=1)
        self.patch_embed = PatchEmbed(embed_dim, patch_norm)
        self.layers = nn.ModuleList()
        for depth, heads in zip(depths, num_heads, strict=True):
            stack = [
                AttentiveLayer(
                    dim=embed_dim,
                    d_state=d_state,
                    num_heads=heads,
                    window_size=window_size,
                    shifted=index % 2 == 1,
                    inner_rank=inner_rank,
                    num_tokens=num_tokens,
                    kernel_size=convffn_kernel_size,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    ffn=self.ffn,
                )
                for index in range(depth)
            ]
            self.layers.append(ASSB(AttentiveStack(stack), residual_conv(embed_dim, resi_connection)))
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = residual_conv(embed_dim, resi_connection)
        self._build_tail(in_chans, embed_dim)
        self.apply(initialise_weights)

    def constant_buffers(self) -> dict[str, Tensor]:
        """The index that official checkpoints hold, see :class:`ConstantBuffers`."""
        return {"relative_position_index_SA": relative_position_index(self.window_size)}

    def _build_tail(self, in_chans: int, dim: int) -> None:
        features = _TAIL_FEATURES
        if self.upsampler == "pixelshuffledirect":
            conv = nn.Conv2d(dim, self.upscale**2 * in_chans, 3, padding=1)
            self.upsample = nn.Sequential(conv, nn.PixelShuffle(self.upscale))
            return
        if self.upsampler == "":
            self.conv_last = nn.Conv2d(dim, in_chans, 3, padding=1)
            return
        before = nn.Conv2d(dim, features, 3, padding=1)
        self.conv_before_upsample = nn.Sequential(before, nn.LeakyReLU(inplace=True))
        if self.upsampler == "pixelshuffle":
            self.upsample = Upsample(self.upscale, features)
        else:
            if self.upscale != 4:
                raise ValueError(f"upsampler 'nearest+conv' needs upscale 4, got {self.upscale}")
            self.conv_up1 = nn.Conv2d(features, features, 3, padding=1)
            self.conv_up2 = nn.Conv2d(features, features, 3, padding=1)
            self.conv_hr = nn.Conv2d(features, features, 3, padding=1)
        self.conv_last = nn.Conv2d(features, in_chans, 3, padding=1)

    def _tail(self, features: Tensor, image: Tensor) -> Tensor:
        """features (B, C, H, W) and the normalised image (B, in_chans, H, W) -> (B, in_chans, H*s, W*s)."""
        if self.upsampler == "pixelshuffledirect":
            return self.upsample(features)
        if self.upsampler == "":
            return image + self.conv_last(features)
        x = self.conv_before_upsample(features)
        if self.upsampler == "pixelshuffle":
            return self.conv_last(self.upsample(x))
        for conv in (self.conv_up1, self.conv_up2):
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2))

    def forward_features(self, x: Tensor) -> Tensor:
        """Body of the network, x (B, C, H, W) with H, W multiples of the window -> (B, C, H, W)."""
        height, width = x.shape[2:]
        size = (height, width, self.window_size)
        routes = Routes(
            plain=window_plan(*size, 0, x.device),
            shifted=window_plan(*size, self.window_size // 2, x.device),
            relative_index=self.relative_position_index_SA,
            noise=RoutingNoise(self.training, self.eval_routing, self.eval_seed, x.device),
        )
        x = self.patch_embed(x)  # (B, H, W, C)
        for layer in self.layers:
            x = layer(x, routes)
        return conv_channels_last(self.conv_after_body, self.norm(x)).permute(0, 3, 1, 2)

    def images_apart(self) -> bool:
        """Whether a batch is run image by image: when testing.

        Matrix products round differently for another number of rows. That is 1e-7 of a feature, but enough to turn a
        close decision of the routing (or of a quantizer), after which results differ visibly.
        """
        return not (self.training or torch.is_grad_enabled() or noise_is_shared())

    def forward(self, x: Tensor) -> Tensor:
        """Restore images. Without gradients, in evaluation mode, each image is restored by itself.

        Args:
            x: (B, in_chans, H, W), values in [0, 1], any H and W.

        Returns:
            (B, in_chans, H * upscale, W * upscale).

        Raises:
            ValueError: For an input of another shape.
        """
        channels = self.conv_first.in_channels
        if x.dim() != 4 or x.shape[1] != channels:
            shape = tuple(x.shape)
            raise ValueError(f"{type(self).__name__}: expected an input of shape (B, {channels}, H, W), got {shape}")
        if x.shape[0] > 1 and self.images_apart():
            return torch.cat([self.forward(image) for image in x.split(1)])
        height, width = x.shape[2] * self.upscale, x.shape[3] * self.upscale
        x = (mirror_pad(x, self.window_size) - self.mean) * self.img_range
        shallow = self.conv_first(x)
        x = self._tail(self.forward_features(shallow) + shallow, x)
        x = x / self.img_range + self.mean
        return x[..., :height, :width]


@network_info.register(MambaIRv2)
def _(net: MambaIRv2) -> NetworkInfo:
    return NetworkInfo(
        channels=net.conv_first.in_channels,
        scale=net.upscale if net.upsampler else 1,
        full_precision=(
            "conv_first",
            "conv_after_body",
            "conv_after_body.*",
            "conv_before_upsample.*",
            "upsample.*",
            "conv_up?",
            "conv_hr",
            "conv_last",
        ),
        routing=("*.assm.route.*", "*.embedding[AB]"),
        group_convs=("layers.*.conv",),
        behind_scan=BEHIND_SCAN,
        sources=(
            ("wqkv", "norm1"),
            ("win_mhsa.proj", "wqkv", 2, 3),  # attention mixes tokens, not channels
            ("assm.out_proj", "assm.out_norm"),
            ("convffn1.fc1", "norm2"),
            ("convffn2.fc1", "norm4"),
            *((f"{ffn}.sg.conv", f"{ffn}.sg.norm") for ffn in ("convffn1", "convffn2")),  # light
            *((f"{ffn}.fc2", f"{ffn}.sg.conv") for ffn in ("convffn1", "convffn2")),
        ),
        blocks=("layers.*.residual_group.layers.*",),
        random_routing=net.eval_routing != "argmax",
    )


@detects("MambaIRv2", "MambaIRv2Light")
def _(keys: Keys) -> dict:
    """``img_range`` cannot be seen; it is 1 in every published configuration. Tokens are routed without noise."""
    options, layer = keys.group_net(), "layers.0.residual_group.layers.0"
    depths = keys.counts("layers", "residual_group.layers")
    table = "layers.{}.residual_group.layers.0.win_mhsa.relative_position_bias_table"
    mixers = ("sg.conv.weight", "dwconv.depthwise_conv.0.weight")
    kernel = next(keys[key][-1] for key in (f"{layer}.convffn1.{mixer}" for mixer in mixers) if key in keys)
    return options | {
        "depths": depths,
        "num_heads": [keys[table.format(i)][1] for i in range(len(depths))],
        "d_state": keys[f"{layer}.assm.selectiveScan.A_logs"][1],
        "window_size": math.isqrt(keys["relative_position_index_SA"][0]),
        "inner_rank": keys[f"{layer}.embeddingA.weight"][0],
        "num_tokens": keys[f"{layer}.assm.embeddingB.weight"][0],
        "convffn_kernel_size": kernel,
        "mlp_ratio": ratio((keys[f"{layer}.convffn1.fc1.weight"][0], options["embed_dim"])),
        "qkv_bias": f"{layer}.wqkv.bias" in keys,
        "eval_routing": "argmax",
    }


@ARCH_REGISTRY.register()
class MambaIRv2Light(MambaIRv2):
    """MambaIRv2-light: MambaIRv2 with gated feed-forward networks. Arguments as MambaIRv2."""

    ffn = GatedMLP
