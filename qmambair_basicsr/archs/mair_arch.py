"""MaIR and MaIRUNet: restoration networks that scan nested S-shaped stripes, which keeps neighbours close in the sequence.

Source: "MaIR: A Locality- and Continuity-Preserving Mamba for Image Restoration" (CVPR 2025, arXiv:2412.20066).
Parameter names and shapes are those of the official checkpoints, which load with ``strict=True``; outputs and input
gradients are tested against vectors of the official implementation.
"""

from __future__ import annotations

from collections.abc import Sequence

from basicsr.utils.registry import ARCH_REGISTRY

from ..layers.detection import Keys, detects, ratio
from ..layers.info import NetworkInfo, network_info
from ..strict import strict_options
from .mair_blocks import BLOCK_SOURCES, MaIRBlock
from .mambair_arch import ResidualGroupNet, initialise_weights
from .mambairunet_arch import StateSpaceUNet
from .option_rules import MAIR, MAIR_UNET, check_mair, check_mair_unet
from .quantized import quantized_form
from .ss2d import BEHIND_SCAN

_UNET_STATES = {"encoder_level1": 4, "encoder_level2": 8, "encoder_level3": 16, "latent": 32, "decoder_level3": 16}
_UNET_STATE = 8  # of decoder levels 2 and 1 and of the refinement


@ARCH_REGISTRY.register()
class MaIR(ResidualGroupNet):
    """MaIR. Input (B, in_chans, H, W) of any size, output (B, in_chans, H * upscale, W * upscale).

    Args:
        in_chans (int): Image channels. With 3 the mean colour of DIV2K is subtracted, otherwise nothing.
        embed_dim (int): Channels d of the body.
        depths (Sequence[int]): Blocks in each residual group.
        d_state (int): State size N of the selective scans.
        ssm_ratio (float): Inner channels of the scans are int(ssm_ratio * embed_dim).
        mlp_ratio (float): Hidden channels of the MLPs are int(mlp_ratio * embed_dim).
        scan_len (int): Width of a stripe; every second block starts with one of half the width.
        drop_rate (float): Dropout after the patch embedding.
        drop_path_rate (float): DropPath probability of the last block; grows linearly from 0 at the first.
        patch_norm (bool): LayerNorm in the patch embedding.
        use_checkpoint (bool): Recompute blocks in the backward pass to save memory.
        upscale (int): Scale of the output; without an upsampler it has no effect.
        img_range (float): Images are scaled by this inside the network; they enter and leave in [0, 1].
        upsampler (str | None): 'pixelshuffle' (2^n or 3), 'pixelshuffledirect', or '' / None: same-size restoration,
            the network predicts a residual image.
        resi_connection (str): '1conv' or '3conv'.
        img_size (int): Without effect (scan orders are made for the size that comes); official option files have it.
        patch_size (int): Without effect, as above.
        batch_size (int): Without effect, as above.
        dynamic_ids (bool): Without effect, as above.

    Raises:
        ValueError: An unknown option, upsampler or resi_connection.
    """

    option_rules = MAIR
    check_options = staticmethod(check_mair)

    @strict_options
    def __init__(
        self,
        in_chans: int = 3,
        embed_dim: int = 60,
        depths: Sequence[int] = (6, 6, 6, 6),
        d_state: int = 16,
        ssm_ratio: float = 1.4,
        mlp_ratio: float = 1.6,
        scan_len: int = 4,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        patch_norm: bool = True,
        use_checkpoint: bool = False,
        upscale: int = 2,
        img_range: float = 1.0,
        upsampler: str | None = "",
        resi_connection: str = "1conv",
        img_size: int = 64,
        patch_size: int = 1,
        batch_size: int = 1,
        dynamic_ids: bool = False,
    ):
        del img_size, patch_size, batch_size, dynamic_ids  # documented as without effect

        def block(number: int, drop_path: float) -> MaIRBlock:
            shift = scan_len // 2 if number % 2 else 0
            return MaIRBlock(embed_dim, d_state, ssm_ratio, mlp_ratio, scan_len, shift, drop_path)

        super().__init__(
            block,
            in_chans=in_chans,
            embed_dim=embed_dim,
            depths=depths,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            patch_norm=patch_norm,
            use_checkpoint=use_checkpoint,
            upscale=upscale,
            img_range=img_range,
            upsampler=upsampler,
            resi_connection=resi_connection,
        )


@network_info.register(MaIR)
def _(net: MaIR) -> NetworkInfo:
    return NetworkInfo(
        channels=net.in_chans,
        scale=net.upscale,
        full_precision=(
            "conv_first",
            "*.self_attention.gating.*",
            "conv_after_body",
            "conv_after_body.*",
            "conv_before_upsample.*",
            "upsample.*",
            "conv_last",
        ),
        group_convs=("layers.*.conv",),
        behind_scan=BEHIND_SCAN,
        sources=BLOCK_SOURCES,
        blocks=("layers.*.residual_group.blocks.*",),
    )


@detects("MaIR")
def _(keys: Keys) -> dict:
    """``scan_len`` cannot be seen: 8 in the published classic super-resolution and in MaIR-T (``d_state`` 1), else 4."""
    options, block = keys.group_net(), "layers.0.residual_group.blocks.0"
    state, width = keys[f"{block}.self_attention.A_logs"][1], options["embed_dim"]
    return options | {
        "depths": keys.counts("layers", "residual_group.blocks"),
        "d_state": state,
        "ssm_ratio": ratio((keys[f"{block}.self_attention.out_proj.weight"][1], width)),
        "mlp_ratio": ratio((keys[f"{block}.conv_blk.fc1.weight"][0], width)),
        "scan_len": 8 if state == 1 or options["upsampler"] == "pixelshuffle" else 4,
    }


@ARCH_REGISTRY.register()
@quantized_form(MaIR)
class QMaIR(MaIR):
    """The graph of :class:`MaIR`, then ``prepare``. Arguments and errors as :class:`~.qmambair_arch.QMambaIR`."""


@ARCH_REGISTRY.register()
class MaIRUNet(StateSpaceUNet):
    """U-Net for real denoising. Input and output (B, C, H, W) with H and W multiples of 8.

    Stripes are not shifted here (so the authors' outputs show). The state sizes of the levels are the authors': 4, 8, 16
    and 32 on the way down, 16, 8 and 8 on the way up.

    Args:
        inp_channels (int): Channels of the input image.
        out_channels (int): Channels of the output image; equal to inp_channels unless dual_pixel_task.
        dim (int): Channels of the first level; level n has dim * 2^(n-1).
        num_blocks (Sequence[int]): Blocks on the four levels (the decoder mirrors the encoder).
        num_refinement_blocks (int): Blocks after the decoder, at full resolution with 2 * dim channels.
        ssm_ratio (float): Inner channels of the scans are int(ssm_ratio * channels).
        flp_ratio (float): Hidden channels of the MLPs of the first encoder level, as a multiple of its channels.
        mlp_ratio (float): The same on all other levels.
        scan_len (int): Width of a stripe.
        drop_path_rate (float): DropPath probability of every block.
        bias (bool): Bias of reduce_chan_level*, skip_conv and output; the other convolutions here have none.
        dual_pixel_task (bool): Defocus deblurring: no image residual, a skip from the embedding to the output instead.
        use_checkpoint (bool): Recompute blocks in the backward pass to save memory.
        img_size (int): Without effect (scan orders are made for the size that comes); official option files have it.
        batch_size (int): Without effect, as above.
        dynamic_ids (bool): Without effect, as above.

    Raises:
        ValueError: An unknown option or an impossible combination.
    """

    option_rules = MAIR_UNET
    check_options = staticmethod(check_mair_unet)

    @strict_options
    def __init__(
        self,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        ssm_ratio: float = 2.0,
        flp_ratio: float = 4.0,
        mlp_ratio: float = 1.5,
        scan_len: int = 4,
        drop_path_rate: float = 0.0,
        bias: bool = False,
        dual_pixel_task: bool = False,
        use_checkpoint: bool = False,
        img_size: int = 128,
        batch_size: int = 1,
        dynamic_ids: bool = False,
    ):
        del img_size, batch_size, dynamic_ids  # documented as without effect

        def block(level: str, channels: int, number: int) -> MaIRBlock:
            ratio = flp_ratio if level == "encoder_level1" else mlp_ratio
            state = _UNET_STATES.get(level, _UNET_STATE)
            return MaIRBlock(channels, state, ssm_ratio, ratio, scan_len, drop_path=drop_path_rate, mlp="mlp")

        super().__init__(
            block,
            inp_channels=inp_channels,
            out_channels=out_channels,
            dim=dim,
            num_blocks=num_blocks,
            num_refinement_blocks=num_refinement_blocks,
            bias=bias,
            dual_pixel_task=dual_pixel_task,
            use_checkpoint=use_checkpoint,
        )
        self.apply(initialise_weights)


@network_info.register(MaIRUNet)
def _(net: MaIRUNet) -> NetworkInfo:
    return NetworkInfo(
        channels=net.inp_channels,
        size_multiple=net.patch_multiple,
        full_precision=("patch_embed.proj", "*.self_attention.gating.*", "skip_conv", "output"),
        behind_scan=BEHIND_SCAN,
        sources=BLOCK_SOURCES,
        blocks=("encoder_level?.*", "latent.*", "decoder_level?.*", "refinement.*"),
    )


@detects("MaIRUNet")
def _(keys: Keys) -> dict:
    """``scan_len`` cannot be seen; it is 4 in the published configuration."""
    blocks = keys.unet_blocks()
    options = {"ssm_ratio": ratio(*((keys[f"{b}.self_attention.out_proj.weight"][1], width) for b, width in blocks))}
    hidden = {block: (keys[f"{block}.mlp.fc1.weight"][0], width) for block, width in blocks}
    if "encoder_level1.0" in hidden:
        options["flp_ratio"] = ratio(hidden.pop("encoder_level1.0"))
    if hidden:
        options["mlp_ratio"] = ratio(*hidden.values())
    return keys.unet() | options | {"dual_pixel_task": "skip_conv.weight" in keys}


@ARCH_REGISTRY.register()
@quantized_form(MaIRUNet)
class QMaIRUNet(MaIRUNet):
    """The graph of :class:`MaIRUNet`, then ``prepare``. Arguments and errors as :class:`~.qmambair_arch.QMambaIR`."""
