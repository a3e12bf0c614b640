"""Ranges and dependences of the networks' constructor options, for the schema of option files.

The constructors raise ValueError for the same; here all mistakes are found before anything is built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..schema.rules import Choice, List, Number, Rule, is_number

SMALLEST_WIDTH = 30  # channel attention squeezes by 30

_COUNT = Number(1, 100_000, whole=True)
_DEPTHS = List(Number(1, 1000, whole=True), least=1, most=1000)
_TAIL = {"resi_connection": Choice(("1conv", "3conv"))}

BODY: dict[str, Rule] = {
    "in_chans": _COUNT,
    "embed_dim": _COUNT,
    "depths": _DEPTHS,
    "d_state": Number(1, 4096, whole=True),
    "mlp_ratio": Number(0, 100, above=True),
    "upscale": Number(1, 16, whole=True),
    "upsampler": Choice(("pixelshuffle", "pixelshuffledirect", "", None)),
    **_TAIL,
}
MAMBAIR = BODY
MAMBAIRV2: dict[str, Rule] = BODY | {
    "in_chans": Choice((1, 3)),
    "num_heads": List(Number(1, 1000, whole=True), least=1, most=1000),
    "upsampler": Choice(("pixelshuffle", "pixelshuffledirect", "nearest+conv", "", None)),
    "patch_size": Choice((1,)),
    "ape": Choice((False,)),
    "window_size": Number(1, 256, whole=True),
    "inner_rank": Number(1, 4096, whole=True),
    "num_tokens": Number(1, 100_000, whole=True),
    "eval_routing": Choice(("gumbel", "argmax")),
    "eval_seed": Number(0, 2**63 - 1, whole=True),
}
UNET: dict[str, Rule] = {
    "inp_channels": _COUNT,
    "out_channels": _COUNT,
    "dim": Number(SMALLEST_WIDTH, 100_000, whole=True),
    "num_blocks": List(Number(1, 1000, whole=True), 4, 4),
    "num_refinement_blocks": Number(1, 1000, whole=True),
    "d_state": BODY["d_state"],
    "mlp_ratio": BODY["mlp_ratio"],
}


_STRIPES: dict[str, Rule] = {"ssm_ratio": BODY["mlp_ratio"], "scan_len": Number(1, 4096, whole=True)}
MAIR: dict[str, Rule] = BODY | _STRIPES
MAIR_UNET: dict[str, Rule] = {
    **{key: rule for key, rule in UNET.items() if key != "d_state"},
    **_STRIPES,
    "dim": Number(2, 100_000, whole=True),
    "flp_ratio": BODY["mlp_ratio"],
}


EAMAMBA: dict[str, Rule] = {
    **{key: rule for key, rule in UNET.items() if key not in ("d_state", "mlp_ratio")},
    "dim": Number(2, 100_000, whole=True),
    "ffn_expansion_factor": BODY["mlp_ratio"],
    "layernorm_type": Choice(("WithBias", "BiasFree")),
    "channel_mixer_type": Choice(("Simple", "GDFN")),
    "checkpoint_percentage": Number(0, 1),
    "upscale": Choice((1, 2)),
}
VMAMBAIR: dict[str, Rule] = {
    **{key: rule for key, rule in UNET.items() if key not in ("d_state", "mlp_ratio")},
    "dim": Number(2, 100_000, whole=True),
    "ffn_expansion_factor": BODY["mlp_ratio"],
    "LayerNorm_type": EAMAMBA["layernorm_type"],
    "scale": Choice((4,)),
}
EAMAMBA_SR: dict[str, Rule] = EAMAMBA | {"num_blocks": _DEPTHS, "upscale": BODY["upscale"]}


def _tail(options: Mapping) -> Iterator[tuple[str, str]]:
    scale, upsampler = options.get("upscale", 2), options.get("upsampler")
    if upsampler == "pixelshuffle" and scale != 3 and scale & (scale - 1):
        yield "upscale", f"the upsampler pixelshuffle takes powers of two and 3; got {scale}"
    if upsampler == "nearest+conv" and scale != 4:
        yield "upscale", f"the upsampler nearest+conv takes 4; got {scale}"


def _inner(options: Mapping, key: str, ratio: float, name: str = "mlp_ratio") -> Iterator[tuple[str, str]]:
    width, ratio = options.get(key), options.get(name, ratio)
    if width is not None and is_number(ratio) and int(ratio * width) < 1:
        yield name, f"leaves no channel of {key} {width}; got {ratio}"


def check_mambair(options: Mapping) -> Iterator[tuple[str, str]]:
    """Options of MambaIR that do not go together, as (key, mistake)."""
    yield from _tail(options)
    yield from _inner(options, "embed_dim", 2.0)
    width = options.get("embed_dim", 96)
    if width < SMALLEST_WIDTH:
        yield "embed_dim", f"must be at least {SMALLEST_WIDTH}, by which channel attention squeezes; got {width}"


def check_mambairv2(options: Mapping) -> Iterator[tuple[str, str]]:
    """Options of MambaIRv2 that do not go together, as (key, mistake)."""
    yield from _tail(options)
    yield from _inner(options, "embed_dim", 2.0)
    depths, heads, width = (
        options.get("depths", [6] * 4),
        options.get("num_heads", [4] * 4),
        options.get("embed_dim", 48),
    )
    if len(depths) != len(heads):
        yield "num_heads", f"has {len(heads)} entries, but depths {len(depths)}; give one for each block"
    for index, count in enumerate(heads):
        if width % count:
            yield f"num_heads[{index}]", f"must divide embed_dim {width}; got {count}"
    kernel = options.get("convffn_kernel_size", 5)
    if kernel % 2 == 0:
        yield "convffn_kernel_size", f"must be odd; got {kernel}"


def check_mair(options: Mapping) -> Iterator[tuple[str, str]]:
    """Options of MaIR that do not go together, as (key, mistake)."""
    yield from _tail(options)
    for name, ratio in (("ssm_ratio", 1.4), ("mlp_ratio", 1.6)):
        yield from _inner(options, "embed_dim", ratio, name)


def check_mair_unet(options: Mapping) -> Iterator[tuple[str, str]]:
    """Options of MaIRUNet that do not go together, as (key, mistake)."""
    for name, ratio in (("ssm_ratio", 2.0), ("flp_ratio", 4.0), ("mlp_ratio", 1.5)):
        yield from _inner(options, "dim", ratio, name)
    yield from _ends(options)


def check_unet(options: Mapping) -> Iterator[tuple[str, str]]:
    """Options of MambaIRUNet that do not go together, as (key, mistake)."""
    yield from _inner(options, "dim", 1.5)
    yield from _ends(options)


def _ends(options: Mapping) -> Iterator[tuple[str, str]]:
    inputs, outputs = options.get("inp_channels", 3), options.get("out_channels", 3)
    if inputs != outputs and not options.get("dual_pixel_task"):
        yield "out_channels", f"must equal inp_channels ({inputs}) unless dual_pixel_task is set; got {outputs}"
