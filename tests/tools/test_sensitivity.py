"""sensitivity: scores, direct measurement, allocation, files."""

from __future__ import annotations

import copy
import csv
import io

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network

from qmambair_basicsr.artifacts.levels import count_levels
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.layers.sites import network_sites
from qmambair_basicsr.ptq.mixed import Rated, allocate, by_blocks, measured, scores
from qmambair_basicsr.recipes.option_files import read_options
from qmambair_basicsr.tools import sensitivity

PLAIN = {"type": "MinMax", "bits": 4}
NETWORK = {"type": "QMambaIR", "upsampler": "pixelshuffledirect", "embed_dim": 30, "depths": [1], "d_state": 2,
           "mlp_ratio": 1.2, "upscale": 2, "quant": {"weight": PLAIN, "act": PLAIN, "scan": PLAIN}}  # fmt: skip


def network(**quant):
    torch.manual_seed(0)
    config = copy.deepcopy(NETWORK)
    config["quant"] |= quant
    return build_network(config).eval()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 3, 16, 16, generator=generator) for _ in range(8)]


def test_scores_estimate_what_is_measured(images):
    """Rank correlation over all sites and widths; equal orders of magnitude at the finer width."""
    net = network()
    rated, direct = (
        {r.label: r for r in found} for found in (scores(net, images, [4, 6]), measured(net, images, [4, 6]))
    )
    assert rated.keys() == direct.keys() and len(rated) > 15
    varied = [label for label, r in direct.items() if r.costs[4] > 1e-12]  # D is constant here
    assert len(varied) > 15 and all(direct[label].costs[6] < direct[label].costs[4] for label in varied)
    pairs = [(rated[label].costs[b], direct[label].costs[b]) for label in varied for b in (4, 6)]
    estimate, truth = torch.tensor(pairs, dtype=torch.float64).log().unbind(1)
    ranks = torch.stack((estimate.argsort().argsort(), truth.argsort().argsort())).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.8
    assert (estimate - truth).abs().median() < 1.5


def test_same_seed_same_scores(images):
    first, again, other = (scores(network(), images[:2], [2], seed) for seed in (1, 1, 2))
    assert first == again != other


def test_allocation_spends_bits_where_they_count():
    rated = [
        Rated(str(i), str(i), "weight", 10, {2: c, 4: c / 16, 8: 0.0}) for i, c in enumerate((100.0, 1.0, 0.01, 0.0))
    ]
    chosen = allocate(rated, 4)
    assert sum(chosen.values()) <= 16 and list(chosen.values()) == sorted(chosen.values(), reverse=True)
    assert chosen["3"] == 2  # nothing to gain
    assert set(allocate(rated, 2).values()) == {2}
    with pytest.raises(ValueError, match="an average of 9 bits cannot be made of 2, 4, 8 bits"):
        allocate(rated, 9)
    some = [Rated("a", "a", "weight", 30, {1: 2.0, 2: 1.0}), Rated("b", "b", "act", 10, {2: 2.0, 8: 0.0})]
    assert allocate(some, 1.25) == {"a": 1, "b": 2} and allocate(some, 3.5) == {"a": 2, "b": 8}
    with pytest.raises(
        ValueError, match=r"cannot be made of 1, 2, 8 bits, which reach from 1\.25 to 3\.50 at these sites"
    ):
        allocate(some, 4)


def test_blocks_of_quant_dllm(images):
    chosen = by_blocks(network(weight={"type": "AnyOrder", "bits": 2}), images[:1], 0.2)
    assert sorted(chosen.values()) == [1] * 2 + [2] * (len(chosen) - 4) + [3] * 2
    with pytest.raises(ValueError, match="LSQ cannot have each of 1, 2 and 3 bits"):
        by_blocks(network(weight={"type": "LSQ", "bits": 2}), images[:1])


@pytest.fixture
def files(tmp_path):
    (tmp_path / "images").mkdir()
    random = np.random.RandomState(0)
    for i in range(2):
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), random.randint(0, 256, (24, 24, 3), dtype=np.uint8))
    (tmp_path / "net.yml").write_text(yaml.safe_dump({"name": "train_Q_x_w4a4", "network_g": NETWORK}))
    return tmp_path


def arguments(files, *more):
    return ["-opt", f"{files}/net.yml", "--images", f"{files}/images", "--middle", "16", "--count", "1", *more]


def test_file_with_overrides_builds_the_network(files, capsys):
    pytest.importorskip("matplotlib", reason="extra: plot")
    out = files / "mixed.yml"
    more = ("--average", "3.5", "--output", str(out), "--plot", str(files / "map.png"), "--csv")
    assert sensitivity.main(arguments(files, *more)) == 0
    printed = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    opt = read_options(out)
    assert opt["name"] == "mixed" and cv2.imread(str(files / "map.png")) is not None
    net = build_network(opt["network_g"])
    weights = [p for p in network_sites(net) if p.site.kind == "weight"]
    assert {p.site.label: str(p.quantizer.bits) for p in weights} == {row["site"]: row["bits"] for row in rows}
    sizes = [p.tensor().numel() for p in weights]
    average = sum(p.quantizer.bits * n for p, n in zip(weights, sizes, strict=True)) / sum(sizes)
    assert f"an average of {average:.2f} bits of at most 3.5 at {len(weights)} sites" in printed.err
    assert 2.5 < average <= 3.5 and len({p.quantizer.bits for p in weights}) > 1
    assert all(p.quantizer.bits == 4 for p in network_sites(net) if p.site.kind == "act")


@pytest.mark.parametrize("kind", ["weight", "all"])
def test_widths_of_the_preset_at_an_average(kind, files, images):
    """The file with overrides beside ``preset: plus`` builds a network whose levels are counted by their own widths."""
    opt = read_options(files / "net.yml")
    opt["network_g"]["quant"] = {"preset": "plus", "bits": 2}
    (files / "net.yml").write_text(yaml.safe_dump({"name": opt["name"], "network_g": opt["network_g"]}))
    out = files / "plus.yml"
    assert sensitivity.main(arguments(files, "--kind", kind, "--average", "3", "--output", str(out))) == 0
    made = read_options(out)["network_g"]
    assert made["quant"]["preset"] == "plus" and made["quant"]["overrides"]
    net, plain = build_network(made).eval(), build_network(opt["network_g"])
    rated = [p for p in network_sites(net) if kind == "all" or p.site.kind == kind]
    bits = {p.site.label: p.quantizer.bits for p in rated}
    assert len(set(bits.values())) > 1
    sizes = {p.site.label: p.tensor().numel() for p in rated if p.site.parameter is not None}
    if kind == "weight":
        assert 2 < sum(bits[label] * n for label, n in sizes.items()) / sum(sizes.values()) <= 3
    for own, before in zip(network_sites(net), network_sites(plain), strict=True):  # nothing but the bits has changed
        assert type(own.quantizer) is type(before.quantizer) and own.site.label == before.site.label
        assert own.quantizer.state_dict().keys() == before.quantizer.state_dict().keys()
        assert own.quantizer.bits == bits.get(own.site.label, before.quantizer.bits)
    calibrate(net, images[:2])
    counted = {site.label: site for site in count_levels(net, images[:1])}
    for label, width in bits.items():
        assert counted[label].bits == width and counted[label].values <= 2**width and not counted[label].faults, label
    assert any(counted[label].values > 4 for label, width in bits.items() if width > 2), (
        "the wider sites use their bits"
    )


def test_sites_are_rated_at_the_widths_they_can_have(files, images, capsys):
    """Sums of signs have at most four bits, LSQ at least two: the average counts what each can have."""
    opt = read_options(files / "net.yml")
    quant = {"weight": {"type": "AnyOrder", "bits": 2}, "scan": {"type": "LSQ", "bits": 4}}
    opt["network_g"]["quant"] = opt["network_g"]["quant"] | quant
    (files / "net.yml").write_text(yaml.safe_dump({"name": opt["name"], "network_g": opt["network_g"]}))
    out = files / "mixed.yml"
    more = ("--kind", "all", "--bits", "1", "2", "8", "--direct", "--csv", "--average", "3", "--output", str(out))
    assert sensitivity.main(arguments(files, *more)) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    missing = {
        kind: {b for r in rows if r["kind"] == kind for b in (1, 2, 8) if r[f"score {b}b"] == "-"}
        for kind in ("weight", "scan")
    }
    assert missing == {"weight": {8}, "scan": {1}}
    assert all((r[f"score {b}b"] == "-") == (r[f"measured {b}b"] == "-") for r in rows for b in (1, 2, 8))
    made = build_network(read_options(out)["network_g"])
    bits = {p.site.label: str(p.quantizer.bits) for p in network_sites(made)}
    assert all(bits[r["site"]] == r["bits"] for r in rows) and {r["bits"] for r in rows} == {"1", "2", "8"}


def test_direct_measurement_and_markdown(files, capsys):
    assert sensitivity.main(arguments(files, "--direct", "--markdown", "--kind", "scan", "--bits", "4")) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert "measured 4b" in head and len(rows) == 7


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--average", "3"), "--average needs --output"),
        (("--abmp",), "--abmp needs --output"),
        (("--average", "1", "--output", "x.yml"), "an average of 1.0 bits cannot be made of 2, 4, 8 bits"),
        (("--bits", "9"), "bits"),
        (("--kind", "attention"), "nothing of kind attention is quantized"),
    ],
    ids=["output", "abmp", "average", "width", "kind"],
)
def test_what_cannot_be_done_is_said(files, capsys, more, message):
    assert sensitivity.main(arguments(files, *more)) == 2
    assert message in capsys.readouterr().err
