"""Networks found from keys alone: every registered one, full precision and quantized, and files that are none."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from tiny_networks import OURS, QUANTIZED, TINY_NETWORK, tiny_network

from qmambair_basicsr.archs.vmambair_arch import VARIANTS
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.checkpoints import write_file
from qmambair_basicsr.inference.detection import UnknownNetworkError, detect
from qmambair_basicsr.inference.opening import network_from
from qmambair_basicsr.inference.quantizer_detection import UnknownBitsError
from qmambair_basicsr.layers.detection import RULES
from qmambair_basicsr.layers.info import TWINS, network_info
from qmambair_basicsr.layers.sites import quantizers_of
from qmambair_basicsr.quantizers.registry import QUANTIZER_REGISTRY

FULL = sorted({*OURS, *TWINS.values()} - set(QUANTIZED))
PUBLISHED = {
    "weight": {"type": "RFA", "bits": 4},
    "act": {"type": "LSQOffset", "bits": 4},
    "scan": {"type": "DLS", "bits": 4},
}


def meta(block):
    with torch.device("meta"):
        return build_network(dict(block))


def state_of(block):
    """Keys and shapes without memory."""
    return meta(block).state_dict()


def options(name, **changes):
    """Constructor options of a small full-precision network."""
    keys = inspect.signature(ARCH_REGISTRY.get(name)).parameters
    return {key: value for key, value in (TINY_NETWORK | {"eval_routing": "argmax"} | changes).items() if key in keys}


def same(block, found):
    """Whether two descriptions build networks with the same keys, shapes and facts."""
    a, b = meta(block), meta(found)
    shapes = [{key: tuple(t.shape) for key, t in net.state_dict().items()} for net in (a, b)]
    return shapes[0] == shapes[1] and network_info(a) == network_info(b)


def test_every_full_precision_network_has_a_rule():
    assert set(FULL) - VARIANTS.keys() <= RULES.keys()  # VmambaIR stands for its four classes


CHANGES = {
    "small": {},
    "x3": {
        "upscale": 3,
        "upsampler": "pixelshuffle",
        "depths": [1, 3],
        "num_heads": [2, 3],
        "resi_connection": "3conv",
    },
    "x4": {"upscale": 4, "upsampler": "pixelshuffle", "mlp_ratio": 2.0, "qkv_bias": False, "window_size": 16},
    "same size": {
        **{"upsampler": "", "upscale": 1, "in_chans": 1, "inp_channels": 1, "out_channels": 1, "patch_norm": False}
    },
    "levels": {"num_blocks": [0, 2, 1, 1], "bias": True, "LayerNorm_type": "BiasFree", "layernorm_type": "BiasFree"},
    "merge": {
        "mamba_cfg": {"scan_type": "diagonal", "scan_count": 8, "scan_merge_method": "add", "disable_z_branch": True}
    },
    "mixer": {"channel_mixer_type": "GDFN", "ffn_expansion_factor": 1.5, "dual_pixel_task": True, "d_state": 16},
}
IMPOSSIBLE = [("EAMamba", "x3"), ("EAMamba", "x4")]  # its upscale is without effect
CHANGED = [
    (name, change)
    for name in FULL
    for change, changes in CHANGES.items()
    if (not changes or options(name, **changes) != options(name)) and (name, change) not in IMPOSSIBLE
]


@pytest.mark.parametrize(("name", "change"), IMPOSSIBLE)
def test_what_no_network_can_be_is_refused(name, change):
    with pytest.raises(ValueError, match="upscale must be 1 or 2"):
        state_of({"type": name, **options(name, **CHANGES[change])})


@pytest.mark.parametrize(("name", "change"), CHANGED)
def test_full_precision_networks(name, change):
    block = {"type": name, **options(name, **CHANGES[change])}
    state = state_of(block)
    found = detect(state)
    assert same(block, found), found
    if name not in VARIANTS:
        assert found["type"] == name
    else:
        assert found["variant"] == name


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("policy", ["code", "paper"])
def test_quantized_networks(name, policy):
    block = tiny_network(name, PUBLISHED, eval_routing="argmax")
    block["quant"]["act_policy"] = policy if "scan" in block["quant"] else "code"
    net = meta(block)
    found = detect(net.state_dict())
    assert found["type"] == name and same(block, found)
    # not only keys: the same quantizer sits at every site
    again = meta(found)
    for (path, a), (other, b) in zip(_quantizers(net), _quantizers(again), strict=True):
        assert path == other and type(a) is type(b) and a.bits == b.bits, path


def _quantizers(net):
    from qmambair_basicsr.layers.sites import quantizers_of

    return list(quantizers_of(net).items())


@pytest.mark.parametrize("kind", sorted(set(QUANTIZER_REGISTRY) - {"Identity"}))
@pytest.mark.parametrize("widest", [False, True])
def test_quantizer_types(kind, widest):
    cls = QUANTIZER_REGISTRY[kind]
    bits = max(cls.bit_widths) if widest else max(min(cls.bit_widths), 2)
    spec = {"type": kind, "bits": bits}
    act = spec if "act" in cls.roles else {"type": "LSQOffset", "bits": bits}
    block = tiny_network("QMambaIR", {"weight": spec, "act": act, "scan": act})
    found = detect(state_of(block), f"experiments/train_w{bits}a{bits}_x/models/net.pth")
    assert same(block, found)
    twins = {"SoftSTE": "LSQ"}  # the same keys: the published one
    for site, wanted in (("weight", spec), ("act", act), ("scan", act)):
        assert found["quant"][site]["type"] == twins.get(wanted["type"], wanted["type"])
        assert found["quant"][site]["bits"] == bits


def test_bits_that_nothing_shows_are_asked_for(tmp_path):
    spec = {"type": "LSQ", "bits": 3}
    block = tiny_network("QMambaIR", {"weight": spec, "act": spec, "scan": spec})
    state = state_of(block)
    with pytest.raises(UnknownBitsError, match="bits=\\(4, 4\\)"):
        detect(state, "net.pth")
    assert detect(state, "net.pth", (3, 3))["quant"]["act"]["bits"] == 3
    assert detect(state, "train_w4a8.pth")["quant"]["act"]["bits"] == 8


@pytest.mark.parametrize("channelwise", [True, False])
def test_overrides_and_granularity(channelwise):
    weight = {"type": "LSQ", "bits": 4, **({"granularity": "channel"} if channelwise else {})}
    block = tiny_network("QMambaIR", {"weight": weight, "act": {"type": "LSQOffset", "bits": 4}})
    block["quant"]["overrides"] = {
        "*.in_proj": {"act": {"type": "DLS", "bits": 4}},
        "*.out_proj": {"weight": {"type": "Identity", "bits": 32}},
    }
    assert same(block, detect(state_of(block), "w", (4, 4)))


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group16"])
def test_half_integers_groups_and_rotations(granularity, tmp_path):
    weight = {"type": "SEQ", "bits": 4, "granularity": granularity}
    act = {"type": "LSQOffset", "bits": 4, "offsets": "channel"}
    act["granularity"] = granularity if granularity != "channel" else "tensor"
    block = tiny_network("QMambaIR", {"weight": weight, "act": act}, embed_dim=32)
    block["quant"]["transforms"] = {"Hadamard": {"block": 8, "places": ["*.in_proj", "*.x_proj"]}}
    net = build_network(copy.deepcopy(block)).eval()
    x = torch.rand(1, 3, 8, 8)
    calibrate(net, [x])
    path = tmp_path / "net_w4a4.pth"
    write_file({"params": net.state_dict()}, path)
    found = network_from(path)
    with torch.no_grad():
        assert torch.equal(found(x), net(x))
    assert {type(q) for q in quantizers_of(found).values()} == {type(q) for q in quantizers_of(net).values()}


@pytest.mark.parametrize("wrapped", ["params", "params_ema", None])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_files_are_opened_without_an_option_file(tmp_path, wrapped, ending):
    block = tiny_network("QMambaIR", PUBLISHED)
    net = build_network(dict(block)).eval()
    state, path = net.state_dict(), tmp_path / f"net{ending}"
    if ending == ".pth":
        write_file(state if wrapped is None else {wrapped: state}, path)
    elif wrapped is None:
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        return
    found = network_from(path)
    assert all(torch.equal(value, state[key]) for key, value in found.state_dict().items())


def test_the_option_file_of_a_training_is_read(tmp_path):
    """What keys do not show (here the bits) stands in the option file that BasicSR copies beside the weights."""
    import yaml

    spec = {"type": "LSQ", "bits": 5}
    block = tiny_network("QMambaIR", {"weight": spec, "act": spec, "scan": spec})
    net = build_network(dict(block))
    write_file({"params": net.state_dict()}, tmp_path / "models" / "net_g_latest.pth")
    (tmp_path / "other.yml").write_text("name: nothing")
    (tmp_path / "train.yml").write_text(yaml.safe_dump({"name": "train", "network_g": block}))
    found = network_from(tmp_path / "models" / "net_g_latest.pth")
    assert found.layers[0].residual_group.blocks[0].self_attention.in_proj.act_quantizer.bits == 5


def test_unknown_files_are_answered_with_the_nearest_network():
    state = state_of({"type": "MambaIR", **options("MambaIR")})
    state["layers.0.residual_group.blocks.0.extra.weight"] = torch.zeros(1)
    with pytest.raises(UnknownNetworkError, match=r"net\.pth is of no network.*nearest is MambaIR, .*besides layers"):
        detect(state, "net.pth")
    with pytest.raises(UnknownNetworkError, match="resemble those of none"):
        detect({"a.b": torch.zeros(1)}, "net.pth")


def test_official_files_are_found(shared_dir):
    """Keys and shapes of the authors' releases lead to the configurations that they were published with."""
    import json

    golden = shared_dir / "golden"
    files = [golden / "official_state_dicts.json", *sorted((golden / "backbones").glob("official_*.json"))]
    wrong, invisible = [], {"img_size", "drop_path_rate", "heads", "batch_size", "dynamic_ids", "patch_size"}
    for file in files:
        cases = json.loads(file.read_text())
        ends = {case["arch"]: name for name, case in cases.items()}.values()  # one of each, and all of MambaIR's
        for name, case in cases.items():
            if name not in ends and file.parent != golden:
                continue
            shapes = case.get("state_dict") or case.get("shapes") or case.get("keys")
            state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
            found = detect(state, name)
            for key, value in case["config"].items():
                if key in invisible or (key == "upscale" and not case["config"].get("upsampler", True)):
                    continue
                if key in found and found[key] != value and (found[key] or value):
                    wrong.append((name, key, value, found[key]))
    assert not wrong


@pytest.mark.parametrize("content", [b"\xff" * 500, b"abcd"], ids=["noise", "cut"])
def test_a_safetensors_file_without_a_header_is_named(tmp_path, content):
    from qmambair_basicsr.checkpoints import CheckpointError
    from qmambair_basicsr.inference.opening import network_from

    file = tmp_path / "net.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="no header of a safetensors file"):
        network_from(file)
