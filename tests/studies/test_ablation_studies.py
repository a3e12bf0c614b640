"""ablation_studies: complete against the registry, and every variant is what its name says."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml
from basicsr.utils.options import ordered_yaml

from qmambair_basicsr.quantizers import LSQ, QUANTIZER_REGISTRY, QuantSpec, Site, build_quantizer
from qmambair_basicsr.quantizers.dls import initial_weights
from qmambair_basicsr.recipes.option_contents import OPTIONS
from qmambair_basicsr.schema import problems
from qmambair_basicsr.studies.ablation import test_options as options_of_test
from qmambair_basicsr.studies.ablation import training_options
from qmambair_basicsr.studies.ablation_studies import available, digest, merge, plan, studies, variant_options

SITES = ("weight", "act", "scan")


@pytest.fixture(scope="module")
def opt():
    text = (OPTIONS / "train_QMambaIR_tinySRx2_w4a4.yml").read_text(encoding="utf-8")
    return training_options(yaml.load(text, Loader=ordered_yaml()[0]), None, None)


def quant_of(opt, study, variant, bits=4):
    options = variant_options(opt, studies()[study].variants[variant], bits, 0)
    return QuantSpec.from_dict(options["network_g"]["quant"])


def types(spec):
    return tuple(getattr(spec, site).type for site in SITES)


EVERY = [(study, variant) for study, definition in studies().items() for variant in definition.variants]


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize(("study", "variant"), EVERY)
def test_only_quantizers_differ(opt, study, variant, bits):
    """Equal budget: network size, data, optimizer, schedule and loss are the file's."""
    options = variant_options(opt, studies()[study].variants[variant], bits, 7)
    spec = QuantSpec.from_dict(options["network_g"]["quant"])
    assert [getattr(spec, site).bits for site in SITES] == [bits] * 3
    for site, role in zip(SITES, ("weight", "act", "param"), strict=True):
        shape = {"shape": (8, 4)} if role == "weight" else {}  # what grids for groups of its columns ask
        build_quantizer(getattr(spec, site), Site.of_role(role, 4, 1, **shape))
    assert options["manual_seed"] == 7
    for changed in (options, base := copy.deepcopy(opt)):
        for key in ("name", "manual_seed"):
            del changed[key]
        del changed["network_g"]["quant"]
    # the study `plus`: what it says, and nothing else
    merge(base, studies()[study].variants[variant].get("options", lambda opt: {})(opt))
    assert options == base


def test_every_quantizer_takes_part():
    """Table 7 has every registered quantizer in every role it has, those of the paper first."""
    table = studies()
    weights, activations = (
        {kind for kind, quantizer in QUANTIZER_REGISTRY.items() if role in quantizer.roles} - {"Identity"}
        for role in ("weight", "act")
    )
    assert set(table["weights"].variants) - {"Q-MambaIR"} == weights - {"RFA"}
    assert set(table["activations"].variants) - {"Q-MambaIR"} == activations - {"DLS"}
    assert list(table["activations"].variants)[:4] == ["Q-MambaIR", "QuantSR", "LSQPlus", "PAMS"]
    assert list(table["weights"].variants)[:4] == ["Q-MambaIR", "LSQ", "SoftSTE", "N2UQ"]


def test_new_quantizer_is_one_line_in_the_registry(opt, monkeypatch):
    """One that cannot quantize weights appears among the activations only; one without 2 bits at 4 only."""

    class Mine(LSQ):
        roles = ("act", "param")
        bit_widths = (4,)

    monkeypatch.setitem(QUANTIZER_REGISTRY, "Mine", Mine)
    table = studies()
    assert "Mine" in table["activations"].variants and "Mine" not in table["weights"].variants
    spec = quant_of(opt, "activations", "Mine")
    assert types(spec) == ("RFA", "Mine", "Mine")
    assert available(table["activations"].variants["Mine"], 4)
    runs = plan(opt, ["activations"], [4, 2], [0], ["Mine"])
    assert [(r.bits, r.places[0][1]) for r in runs] == [(4, "Q-MambaIR"), (2, "Q-MambaIR"), (4, "Mine")]


def test_methods_and_components(opt):
    reference = ("RFA", "LSQOffset", "DLS")
    for study in studies():
        assert any(types(quant_of(opt, study, v)) == reference for v in studies()[study].variants), study
    assert types(quant_of(opt, "methods", "LSQ")) == ("LSQ",) * 3
    assert types(quant_of(opt, "components", "baseline (QuantSR)")) == ("QuantSR",) * 3
    assert types(quant_of(opt, "components", "DLS only")) == ("QuantSR", "LSQOffset", "DLS")
    assert types(quant_of(opt, "components", "RFA only")) == ("RFA", "QuantSR", "QuantSR")
    assert types(quant_of(opt, "components", "Q-MambaIR")) == reference
    for kind in set(studies()["weights"].variants) - {"Q-MambaIR"}:
        assert types(quant_of(opt, "weights", kind)) == (kind, "LSQOffset", "DLS")
    for kind in set(studies()["activations"].variants) - {"Q-MambaIR"}:
        assert types(quant_of(opt, "activations", kind)) == ("RFA", kind, kind)


def test_switches(opt):
    assert quant_of(opt, "placement", "Q-MambaIR").act_policy == "code"
    assert quant_of(opt, "placement", "act_policy: paper").act_policy == "paper"
    assert quant_of(opt, "statistics", "stats: tensor").scan.options == {"stats": "tensor"}
    for site in SITES:
        assert getattr(quant_of(opt, "mode", "mode: official"), site).mode == "official"
        assert getattr(quant_of(opt, "mode", "Q-MambaIR"), site).mode == "stable"


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("convention", ["text", "grid"])
@pytest.mark.parametrize("group", ["G1", "G2", "G3", "G4"])
def test_every_group_of_table_6_is_among_the_starts(opt, bits, convention, group):
    """Both readings of the table are covered although only five starts differ."""
    starts = []
    for variant in studies()["init"].variants:
        init = quant_of(opt, "init", variant, bits).scan.options.get("init", {})
        if init:
            assert init["search"] == "none"
            starts.append(initial_weights(bits, init["group"], init["convention"]))
    assert len(starts) == 5
    assert initial_weights(bits, group, convention) in starts


def test_shared_variants_are_trained_once(opt):
    """The reference is in every study; baseline and QuantSR, RFA only and QuantSR activations are the same."""
    runs = plan(opt, list(studies()), [4], [0])
    places = {place: run.name for run in runs for place in run.places}
    assert len(places) == len(EVERY)
    assert len({run.name for run in runs}) == len(runs) < len(EVERY)
    assert places["methods", "QuantSR"] == places["components", "baseline (QuantSR)"]
    assert places["components", "RFA only"] == places["activations", "QuantSR"]
    assert places["components", "DLS only"] == places["weights", "QuantSR"]
    assert len({places[study, next(iter(studies()[study].variants))] for study in ("methods", "weights", "init")}) == 1


def test_ingredients_of_plus_take_a_share_of_the_training(opt):
    """One study for any length; every variant is an option file without mistakes."""
    for total in (40, 3000):
        longer = copy.deepcopy(opt)
        longer["train"]["total_iter"] = total
        names = set()
        for name, variant in studies()["plus"].variants.items():
            options = variant_options(longer, variant, 2, 0)
            found = [p for p in problems(options, None, root=None) if "does not exist" not in p.text]
            assert found == [], name
            names.add(options["name"])
        assert len(names) == len(studies()["plus"].variants)
    by_name = {name: variant_options(longer, v, 2, 0) for name, v in studies()["plus"].variants.items()}
    assert by_name["plus"]["network_g"]["quant"]["weight"] == {"type": "RFA", "granularity": "channel", "bits": 2}
    assert by_name["average, then correction"]["quant_train"]["correction"] == {"iterations": 600}
    assert by_name["average"]["train"]["ema_decay"] == pytest.approx(1 - 1 / 300)
    assert by_name["progressive bits 8, 4"]["quant_train"]["progressive"][1] == {"bits": 4, "iterations": 600}
    assert by_name["ground truth, no teacher"]["quant_train"]["teacher"] is None
    assert by_name["plus"]["quant_train"]["teacher"] == {"path": opt["path"]["pretrain_network_g"]}
    longer["quant_train"]["teacher"] = {"path": "other.pth"}  # a file that starts from a quantized network has one
    taught = variant_options(longer, studies()["plus"].variants["plus"], 2, 0)
    assert taught["quant_train"]["teacher"] == {"path": "other.pth"}


def test_digest(opt):
    """Defaults written out make no difference; everything that changes a result does; the name does not."""

    def changed(**keys):
        out = variant_options(opt, {}, 4, 0)
        for path, value in keys.items():
            *parents, last = path.split("__")
            section = out
            for key in parents:
                section = section[key]
            section[last] = value
        return digest(out)

    same = changed()
    assert changed(name="other") == same
    assert changed(network_g__quant__scan={"type": "DLS", "bits": 4, "mode": "stable", "init": {"group": "G1"}}) == same
    assert changed(network_g__quant__scan={"type": "DLS", "bits": 4, "init": {"group": "G2"}}) != same
    assert changed(manual_seed=1) != same
    assert changed(train__total_iter=5) != same
    assert changed(datasets__train__gt_size=32) != same
    assert changed(path__pretrain_network_g="other.pth") != same


def test_length_and_place(opt):
    """Another number of iterations keeps the schedule's shape; only folders below datasets/ move."""
    text = (OPTIONS / "train_QMambaIR_tinySRx2_w4a4.yml").read_text(encoding="utf-8")
    raw = yaml.load(text, Loader=ordered_yaml()[0])
    assert (raw["train"]["total_iter"], raw["train"]["scheduler"]["milestones"]) == (4000, [2000, 3000, 3500, 3750])
    out = training_options(raw, 100, Path("elsewhere"))
    assert (out["train"]["total_iter"], out["train"]["scheduler"]["milestones"]) == (100, [50, 75, 88, 94])
    assert out["datasets"]["train"]["dataroot_gt"] == str(Path("elsewhere/BSDS400T91/HR"))
    assert out["path"]["pretrain_network_g"] == raw["path"]["pretrain_network_g"]
    assert raw["train"]["total_iter"] == 4000, "the input is not changed"
    cosine = {"type": "CosineAnnealingRestartLR", "periods": [4000], "restart_weights": [1], "eta_min": 1e-6}
    raw["train"]["scheduler"] = cosine
    assert training_options(raw, 100, None)["train"]["scheduler"]["periods"] == [100]


def test_start_and_middle():
    """``--checkpoint`` is what trainings start from, ``--middle`` what is tested; the options given stay as they are."""
    train, test = (
        yaml.load(
            (OPTIONS / f"{kind}_QMambaIR_tinySRx2_w4a4.yml").read_text(encoding="utf-8"), Loader=ordered_yaml()[0]
        )
        for kind in ("train", "test")
    )
    before = copy.deepcopy([train, test])
    moved = training_options(train, None, None, Path("other.pth"))
    assert moved["path"] == train["path"] | {"pretrain_network_g": "other.pth"}
    assert training_options(train, None, None)["path"] == train["path"]
    sections = options_of_test(test, ["Set5", "BSDS400T91 val"], None, 96)["datasets"].values()
    assert [(section["name"], section["middle"]) for section in sections] == [("Set5", 96), ("BSDS400T91 val", 96)]
    assert all("middle" not in section for section in options_of_test(test, None, None)["datasets"].values())
    assert [train, test] == before


def test_other_starts_are_other_runs(opt):
    """Trainings from another checkpoint or to another teacher share no folder with the file's."""
    other = copy.deepcopy(opt)
    other["path"]["pretrain_network_g"] = "other.pth"
    names = {run.name for which in (opt, other) for run in plan(which, ["placement"], [4], [0])}
    assert len(names) == 4
