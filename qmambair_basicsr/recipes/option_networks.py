"""Constructor keys of every network of the option files, by architecture and size, and names of released weights.

Sources: official released configurations; for SwinIR and EDSR those of BasicSR's model zoo.
"""

from __future__ import annotations

from .option_data import QUALITIES, SIGMAS

_CLASSIC = {
    "img_size": 64,
    "img_range": 1.0,
    "d_state": 16,
    "depths": [6, 6, 6, 6, 6, 6],
    "embed_dim": 180,
    "mlp_ratio": 2,
    "upsampler": "pixelshuffle",
    "resi_connection": "1conv",
}
_LIGHT = {
    **_CLASSIC,
    "d_state": 10,
    "depths": [6, 6, 6, 6],
    "embed_dim": 60,
    "mlp_ratio": 1.2,
    "upsampler": "pixelshuffledirect",
}
# denoising and JPEG artifacts: no upsampling, the residual is learned
_SAME_SIZE = {**_CLASSIC, "img_size": 128, "mlp_ratio": 1.2, "upsampler": ""}
_UNET = {
    "inp_channels": 3,
    "out_channels": 3,
    "dim": 48,
    "num_blocks": [4, 6, 6, 8],
    "num_refinement_blocks": 4,
    "mlp_ratio": 1.5,
    "d_state": 16,
    "bias": False,
}
# small enough to train on two CPU cores: 93,570 parameters at x2, 0.4 MB
_TINY = {**_LIGHT, "d_state": 4, "depths": [2, 2, 2], "embed_dim": 32}
_TINY_SAME_SIZE = {**_TINY, "upsampler": ""}

_V2 = {
    "img_size": 64,
    "img_range": 1.0,
    "embed_dim": 174,
    "d_state": 16,
    "depths": [6, 6, 6, 6, 6, 6],
    "num_heads": [6, 6, 6, 6, 6, 6],
    "window_size": 16,
    "inner_rank": 64,
    "num_tokens": 128,
    "convffn_kernel_size": 5,
    "mlp_ratio": 2.0,
    "upsampler": "pixelshuffle",
    "resi_connection": "1conv",
}
_V2_LIGHT = {
    **_V2,
    "embed_dim": 48,
    "d_state": 8,
    "depths": [5, 5, 5, 5],
    "num_heads": [4, 4, 4, 4],
    "inner_rank": 32,
    "num_tokens": 64,
    "mlp_ratio": 1.0,
    "upsampler": "pixelshuffledirect",
}

_MAIR = {
    "img_size": 64,
    "img_range": 1.0,
    "d_state": 16,
    "depths": [6, 6, 6, 6, 6, 6],
    "embed_dim": 180,
    "ssm_ratio": 2.0,
    "mlp_ratio": 2.5,
    "scan_len": 8,
    "upsampler": "pixelshuffle",
    "resi_connection": "1conv",
}
_MAIR_LIGHT = {  # MaIR-S
    **_MAIR,
    "depths": [6, 6, 6, 6],
    "embed_dim": 60,
    "ssm_ratio": 1.4,
    "mlp_ratio": 1.6,
    "scan_len": 4,
    "upsampler": "pixelshuffledirect",
}
_MAIR_T = {**_MAIR_LIGHT, "d_state": 1, "ssm_ratio": 1.1, "scan_len": 8}
_MAIR_DN = {**_MAIR, "img_size": 128, "ssm_ratio": 1.3, "mlp_ratio": 2.0, "scan_len": 4, "upsampler": ""}
_MAIR_UNET = {
    **{key: value for key, value in _UNET.items() if key != "d_state"},
    "ssm_ratio": 2.0,
    "flp_ratio": 4.0,
    "scan_len": 4,
}

_ALL_AROUND = {"scan_type": "diagonal", "scan_count": 8, "scan_merge_method": "concate", "d_state": 16, "expand": 1}
_EAMAMBA = {
    "inp_channels": 3,
    "out_channels": 3,
    "dim": 64,
    "num_blocks": [4, 6, 6, 7],
    "num_refinement_blocks": 2,
    "ffn_expansion_factor": 2,
    "bias": False,
    "layernorm_type": "WithBias",
    "channel_mixer_type": "Simple",
    "upscale": 1,
    "mamba_cfg": _ALL_AROUND,
}
_EAMAMBA_LIGHT = {
    **{key: value for key, value in _EAMAMBA.items() if key not in ("num_refinement_blocks", "upscale")},
    "num_blocks": [4, 4, 4, 4],
    "ffn_expansion_factor": 1,
    "mamba_cfg": {**_ALL_AROUND, "d_state": 10},
}

_VMAMBAIR = {
    "inp_channels": 3,
    "out_channels": 3,
    "dim": 48,
    "num_blocks": [3, 5, 7, 9],
    "num_refinement_blocks": 2,
    "ffn_expansion_factor": 2.66,
    "bias": False,
    "LayerNorm_type": "WithBias",
}

_SWINIR = {
    "img_size": 64,
    "window_size": 8,
    "img_range": 1.0,
    "depths": [6, 6, 6, 6, 6, 6],
    "embed_dim": 180,
    "num_heads": [6, 6, 6, 6, 6, 6],
    "mlp_ratio": 2,
    "upsampler": "pixelshuffle",
    "resi_connection": "1conv",
}
_SWINIR_LIGHT = {
    **_SWINIR,
    "depths": [6, 6, 6, 6],
    "embed_dim": 60,
    "num_heads": [6, 6, 6, 6],
    "upsampler": "pixelshuffledirect",
}
_EDSR = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 256, "num_block": 32, "res_scale": 0.1, "img_range": 255.0}

# (architecture family, size of a task, or its recipe or name where that decides) -> constructor keys without type and
# quant, and without those that the task gives (``TASK_KEYS``)
NETS = {
    ("MambaIR", "classic"): _CLASSIC,
    ("MambaIR", "light"): _LIGHT,
    ("MambaIR", "same size"): _SAME_SIZE,
    ("MambaIR", "tiny"): _TINY,
    ("MambaIR", "tiny same size"): _TINY_SAME_SIZE,
    ("MambaIRUNet", "unet"): _UNET,
    ("MambaIRv2", "classic"): _V2,
    ("MambaIRv2Light", "light"): _V2_LIGHT,
    ("MaIR", "classic"): _MAIR,
    ("MaIR", "light"): _MAIR_LIGHT,
    ("MaIR", "light T"): _MAIR_T,
    ("MaIR", "dn"): _MAIR_DN,
    ("MaIRUNet", "unet"): _MAIR_UNET,
    ("EAMamba", "dn"): _EAMAMBA,
    ("EAMamba", "unet"): _EAMAMBA,
    ("EAMambaSR", "light"): _EAMAMBA_LIGHT,
    ("VmambaIR", "SRx4"): {
        "variant": "MambaSISR6",
        **_VMAMBAIR,
        "num_blocks": [15, 1, 1, 1],
        "num_refinement_blocks": 15,
    },
    ("VmambaIR", "dn"): {"variant": "Mamber33", **_VMAMBAIR},
    ("SwinIR", "classic"): _SWINIR,
    ("SwinIR", "light"): _SWINIR_LIGHT,
    ("SwinIR", "dn"): {**_SWINIR, "img_size": 128, "upsampler": ""},
    ("SwinIR", "car"): {**_SWINIR, "img_size": 126, "window_size": 7, "img_range": 255.0, "upsampler": ""},
    ("EDSR", "classic"): _EDSR,  # EDSR-L
    ("EDSR", "light"): {**_EDSR, "num_feat": 64, "num_block": 16, "res_scale": 1},  # EDSR-M
}


def net_key(family: str, task: str, size: str, recipe: str) -> str | None:
    """Second part of the key of ``NETS`` for a task of that name, size and recipe; None where the family has none."""
    return next((key for key in (task, size, recipe) if (family, key) in NETS), None)


_UNETS = ("MambaIRUNet", "MaIRUNet", "EAMamba", "VmambaIR")

# architecture family -> constructor keys that a task gives: (scale, image channels); "" where it has none
TASK_KEYS = {**dict.fromkeys(_UNETS, ("", "")), "EAMambaSR": ("upscale", ""), "EDSR": ("upscale", "")}
USUAL_TASK_KEYS = ("upscale", "in_chans")

# families whose quantized form has no scan, and of these the one whose attention can be quantized
WITHOUT_SCAN = ("SwinIR", "EDSR")
WITH_ATTENTION = ("SwinIR",)
# families without linears, which SPR2Q rectifies
WITHOUT_LINEARS = ("VmambaIR", "EDSR")
# families with scans that have linears outside of the modules around them
LINEARS_BESIDE_SCANS = ("MambaIRv2", "MambaIRv2Light", "MaIR", "MaIRUNet")
# families whose blocks come in groups with a convolution behind each
WITH_GROUPS = ("MambaIR", "MambaIRv2", "MambaIRv2Light", "MaIR", "EAMambaSR", "SwinIR")
# family -> name pattern of the modules around its scans
AROUND_SCANS = {
    **dict.fromkeys(("MambaIR", "MambaIRUNet", "MaIR", "MaIRUNet"), "*.self_attention.*"),
    **dict.fromkeys(("MambaIRv2", "MambaIRv2Light"), "*.assm.*"),
    **dict.fromkeys(("EAMamba", "EAMambaSR"), "*.mamba.*"),
    "VmambaIR": "*.attn.*",
}

_SWINIR_FILES = {
    **{f"SRx{s}": f"001_classicalSR_DF2K_s64w8_SwinIR-M_x{s}.pth" for s in (2, 3, 4)},
    **{f"lightSRx{s}": f"002_lightweightSR_DIV2K_s64w8_SwinIR-S_x{s}.pth" for s in (2, 3, 4)},
    **{f"ColorDN{n}": f"005_colorDN_DFWB_s128w8_SwinIR-M_noise{n}.pth" for n in SIGMAS},
    **{f"CARq{n}": f"006_CAR_DFWB_s126w7_SwinIR-M_jpeg{n}.pth" for n in QUALITIES},
}

# (architecture family, task) -> file of the released full-precision weights; others are called <family>_<task>.pth
WEIGHTS = {
    ("MambaIRv2", "SRx2"): "mambairv2_classicSR_Base_x2.pth",
    ("MambaIRv2", "SRx4"): "mambairv2_classicSR_Base_x4.pth",
    ("MambaIRv2Light", "lightSRx2"): "mambairv2_lightSR_x2.pth",
    ("MambaIRv2Light", "lightSRx4"): "mambairv2_lightSR_x4.pth",
    ("EDSR", "SRx2"): "EDSR_Lx2_f256b32_DIV2K_official-be38e77d.pth",
    ("EDSR", "SRx3"): "EDSR_Lx3_f256b32_DIV2K_official-3660f70d.pth",
    ("EDSR", "SRx4"): "EDSR_Lx4_f256b32_DIV2K_official-76ee1c8f.pth",
    ("EDSR", "lightSRx2"): "EDSR_Mx2_f64b16_DIV2K_official-3ba7b086.pth",
    ("EDSR", "lightSRx3"): "EDSR_Mx3_f64b16_DIV2K_official-6908f88a.pth",
    ("EDSR", "lightSRx4"): "EDSR_Mx4_f64b16_DIV2K_official-0c287733.pth",
    **{("SwinIR", task): file for task, file in _SWINIR_FILES.items()},
}
