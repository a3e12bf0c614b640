"""Settings under ``quant:`` are read strictly and written back."""

from __future__ import annotations

import copy

import pytest
from basicsr.archs import build_network
from torch import nn

from qmambair_basicsr.layers.info import NetworkInfo
from qmambair_basicsr.layers.prepare import prepare
from qmambair_basicsr.layers.sites import network_sites
from qmambair_basicsr.quantizers import QUANTIZER_REGISTRY, QuantizerSpec, QuantSpec, Site, SpecError, build_quantizer

CONFIG = {
    "weight": {"type": "RFA", "bits": 2},
    "act": {"type": "LSQOffset", "bits": 2},
    "scan": {"type": "DLS", "bits": 2, "stats": "sample", "init": {"group": "G3"}},
    "act_policy": "code",
    "conv": "fp",
    "overrides": {"*.out_proj": {"act": {"type": "DLS", "bits": 2}}, "layers.0.*": {"act": {"type": "LSQ", "bits": 8}}},
}


def test_round_trip_and_plain_data():
    spec = QuantSpec.from_dict(CONFIG)
    assert spec.weight == QuantizerSpec("RFA", 2)
    assert QuantSpec.from_dict(spec.to_dict()) == spec
    assert copy.deepcopy(spec) == spec
    assert hash(spec) == hash(copy.deepcopy(spec))


def test_the_last_matching_override_decides():
    spec = QuantSpec.from_dict(CONFIG)
    assert spec.resolve(Site.of_act(owner="layers.1.in_proj")) == spec.act
    assert spec.resolve(Site.of_act(owner="layers.1.out_proj")).type == "DLS"
    assert spec.resolve(Site.of_act(owner="layers.0.out_proj")).type == "LSQ"
    assert spec.resolve(Site.of_weight(owner="layers.0.out_proj")) == spec.weight
    assert spec.resolve(Site.of_act(owner="scan", part="layers.0.x_proj")).type == spec.act.type


def test_sites_left_out_stay_full_precision():
    assert QuantSpec.from_dict({}).weight == QuantizerSpec("Identity", 32)
    assert QuantSpec.from_dict({"weight": {"type": "Identity"}}).weight.bits == 32


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"weigth": {}}, ["quant", "'weigth'", "'weight'", "scan"]),
        ({"weight": {"type": "RFAA", "bits": 4}}, ["quant.weight.type", "'RFAA'", "'RFA'"]),
        ({"weight": {"bits": 4}}, ["quant.weight", "type"]),
        ({"weight": {"type": "RFA"}}, ["quant.weight", "bits"]),
        ({"weight": {"type": "RFA", "bitz": 2}}, ["quant.weight", "'bitz'", "'bits'", "no 'bits' given for RFA"]),
        (
            {"weight": {"type": "LSK", "bits": 2}, "act": {"type": "DLS", "bits": 9, "mod": 1}, "scna": {}},
            ["'LSK'", "quant.act.bits (DLS)", "'mod'", "'mode'", "'scna'"],
        ),
        (
            {"act": {"type": "DLS", "bits": 4, "init": {"grp": 1, "group": "G5"}}, "overrides": {"a": {"b": {}}}},
            ["'grp'", "'G5'", "quant.overrides['a']: unknown key 'b'"],
        ),
        ({"weight": None}, ["quant.weight", "mapping"]),
        ({"weight": {"type": "RFA", "bits": 0}}, ["quant.weight.bits", "got 0"]),
        ({"weight": {"type": "LSQ", "bits": 1}}, ["quant.weight.bits (LSQ)", "got 1"]),
        ({"weight": {"type": "Identity", "bits": 8}}, ["quant.weight.bits (Identity)", "got 8"]),
        ({"act": {"type": "DLS", "bits": 4, "stat": "tensor"}}, ["quant.act", "'stat'", "'stats'"]),
        ({"act": {"type": "DLS", "bits": 4, "stats": "image"}}, ["quant.act.stats", "'image'", "tensor, sample"]),
        ({"act": {"type": "DLS", "bits": 4, "init": {"grp": "G1"}}}, ["quant.act.init", "'grp'", "group"]),
        ({"act": {"type": "DLS", "bits": 4, "init": {"group": "G5"}}}, ["quant.act.init.group", "'G5'"]),
        ({"act": {"type": "DLS", "bits": 4, "init": "G1"}}, ["quant.act.init", "mapping"]),
        ({"weight": {"type": "RFA", "bits": 4, "min_gap": 0}}, ["quant.weight.min_gap", "0.001"]),
        ({"weight": {"type": "MinMax", "bits": 4, "symmetric": 1}}, ["quant.weight.symmetric", "False, True"]),
        ({"weight": {"type": "MinMax", "bits": 1, "symmetric": True}}, ["quant.weight (MinMax): one symmetric bit"]),
        ({"act_policy": "Code"}, ["quant.act_policy", "'Code'", "code, paper"]),
        ({"conv": "FP"}, ["quant.conv", "'FP'", "quantized, fp"]),
        ({"overrides": {"a.*": {"wieght": {}}}}, ["quant.overrides['a.*']", "'wieght'", "'weight'"]),
        ({"overrides": {"a.*": {"act": {"type": "LSQ", "bits": 40}}}}, ["quant.overrides['a.*'].act.bits", "40"]),
        ({"overrides": ["a.*"]}, ["quant.overrides", "mapping"]),
        ({"weight": {"type": ["LSQ"], "bits": 4}}, ["quant.weight.type: unknown quantizer ['LSQ']"]),
        ({"act": {"type": {}, "bits": 4}}, ["quant.act.type: unknown quantizer {}"]),
        (4, ["quant", "mapping"]),
    ],
)
def test_refused_by_name(config, words):
    with pytest.raises(SpecError) as caught:
        QuantSpec.from_dict(config)
    for word in words:
        assert word in str(caught.value)


def test_per_channel_needs_channels():
    with pytest.raises(SpecError, match=r"granularity.*no channels"):
        build_quantizer(QuantizerSpec("LSQ", 4, {"granularity": "channel"}), Site.of_param(part="A"))


def test_mode_of_a_spec():
    assert QuantizerSpec("DLS", 4).mode == "stable"
    assert QuantizerSpec("DLS", 4, {"mode": "official"}).mode == "official"
    assert QuantizerSpec("MinMax", 4).mode is None


@pytest.mark.parametrize("kind", QUANTIZER_REGISTRY)
def test_defaults_are_allowed_and_accepted(kind):
    """Each declared default passes its own check and equals the constructor's."""
    cls = QUANTIZER_REGISTRY[kind]
    for key, option in cls.options.items():
        if option.default is not None:
            option.check(option.default, key)
    bits = max(cls.bit_widths)
    defaults = {k: o.default for k, o in cls.options.items()}
    explicit, implicit = cls(bits, **defaults), cls(bits)
    for (name, a), b in zip(explicit.state_dict().items(), implicit.state_dict().values(), strict=True):
        assert a.equal(b), name


def test_a_preset_stands_for_quantizers_and_gives_way_to_what_is_written_out():
    spec = QuantSpec.from_dict({"preset": "plus", "bits": 2, "scan": {"type": "LSQ", "bits": 4}, "act_policy": "code"})
    assert spec.weight == QuantizerSpec("RFA", 2, {"granularity": "channel"})
    assert spec.act == QuantizerSpec("LSQOffset", 2, {"offsets": "channel"})
    assert spec.scan == QuantizerSpec("LSQ", 4)
    assert spec.preset == ("weight", "act", "*out_proj.act")  # the file's scan quantizer is u's and A's as well
    assert spec.overrides == (("*out_proj", {"act": spec.act}),)
    again = QuantSpec.from_dict(spec.to_dict())
    assert (again.weight, again.act, again.scan) == (spec.weight, spec.act, spec.scan)


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"preset": "pluss", "bits": 4}, ["quant.preset", "'pluss'", "'plus'"]),
        ({"preset": "plus"}, ["no 'bits'", "plus"]),
        ({"preset": ["plus"], "bits": 4}, ["quant.preset: unknown preset ['plus']"]),
        ({"preset": "plus", "bits": 1}, ["quant.bits", "got 1", "2, 3"]),
        ({"bits": 4}, ["quant", "'bits'"]),
    ],
)
def test_mistakes_in_a_preset(config, parts):
    with pytest.raises(SpecError) as error:
        QuantSpec.from_dict(config)
    assert all(part in str(error.value) for part in parts)


def test_a_preset_has_grids_of_its_own_for_operands_of_the_scan():
    net = build_network(
        {
            "type": "QMambaIR",
            "embed_dim": 30,
            "depths": [1],
            "d_state": 3,
            "quant": {"preset": "plus", "bits": 4, "overrides": {"*.u": {"scan": {"type": "LSQ", "bits": 8}}}},
        }
    )
    found = {place.site.name.rpartition(".")[2]: place.quantizer for place in network_sites(net)}
    offset = found["A"]
    assert type(offset).__name__ == "LSQOffset" and offset.scale.shape == offset.offset.shape == (3,)
    assert type(found["B"]).__name__ == type(found["delta"]).__name__ == "DLS"
    assert (type(found["u"]).__name__, found["u"].bits) == ("LSQ", 8)  # the file's override comes last
    behind = [p.quantizer for p in network_sites(net) if p.site.owner.endswith("out_proj") and p.site.kind == "act"]
    assert behind and all(type(q).__name__ == "LSQOffset" and q.offset.numel() > 1 for q in behind)


def test_a_preset_leaves_out_kinds_that_a_network_has_not():
    net = prepare(nn.Sequential(nn.Linear(4, 4)), QuantSpec.from_dict({"preset": "plus", "bits": 4}), NetworkInfo())
    assert net[0].weight_quantizer.scale.shape == (4,) and net[0].act_quantizer.offset.shape == (4,)
    with pytest.raises(SpecError, match="has no such sites"):
        settings = {"preset": "plus", "bits": 4, "scan": {"type": "DLS", "bits": 4}}
        prepare(nn.Sequential(nn.Linear(4, 4)), QuantSpec.from_dict(settings), NetworkInfo())
    with pytest.raises(
        SpecError, match=r"overrides\['\*\.u'\]\.act: no quantized site"
    ):  # a pattern of the preset's, another kind
        settings = {"preset": "plus", "bits": 4, "overrides": {"*.u": {"act": {"type": "LSQ", "bits": 4}}}}
        prepare(nn.Sequential(nn.Linear(4, 4)), QuantSpec.from_dict(settings), NetworkInfo())
