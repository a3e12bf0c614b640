"""The complexity tool counts what the network runs: against hand formulas, torch's own counter and the packed file."""

from __future__ import annotations

import copy
import csv
import io
import json

import pytest
import torch
from basicsr.archs import build_network
from tiny_networks import OURS, QUANTIZED, SMALLEST, tiny_network
from torch.utils.flop_counter import FlopCounterMode

from qmambair_basicsr.artifacts.packed import save_packed
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.layers.info import network_info
from qmambair_basicsr.layers.placement import placement
from qmambair_basicsr.layers.sites import quantizers_of, sites_of
from qmambair_basicsr.ops.backend import ENV
from qmambair_basicsr.ops.ss2d_scan import DIRECTIONS, named_order, ss2d_scan
from qmambair_basicsr.recipes.option_contents import OPTIONS
from qmambair_basicsr.studies import complexity as tables
from qmambair_basicsr.studies.complexity_count import collapse, measure
from qmambair_basicsr.studies.complexity_record import Recorder, scan_products
from qmambair_basicsr.studies.paper_accounting import table4
from qmambair_basicsr.tools import complexity

HEIGHT, WIDTH = 16, 24
QUANT = {
    "weight": {"type": "RFA", "bits": 4},
    "act": {"type": "LSQOffset", "bits": 3},
    "scan": {"type": "DLS", "bits": 2},
}


def describe(arch, quant=QUANT, **changes):
    return tiny_network(arch, quant, **changes)


def by_name(result):
    return {row.name: row for row in result.rows}


def test_rotations_are_counted_and_increments_are_part_of_weights():
    plain = describe("QMambaIR", embed_dim=32)
    changed = copy.deepcopy(plain)
    changed["quant"]["transforms"] = {"Hadamard": {"block": 8, "places": "*.in_proj"}, "LowRank": {"rank": 2}}
    before, after = (measure(network, HEIGHT, WIDTH) for network in (plain, changed))
    assert [row.parameters for row in after.rows] == [row.parameters for row in before.rows]
    rows = zip(before.rows, after.rows, strict=True)
    added = {b.name: b.macs - a.macs for a, b in rows if b.macs != a.macs}
    assert len(added) == 2 and set(added.values()) == {HEIGHT * WIDTH * 32 * 8}  # two blocks: 8 for each of 32 channels
    assert all(name.endswith("in_proj") for name in added)


@pytest.mark.parametrize("arch", OURS)
def test_products_are_those_that_torch_counts_while_the_real_network_runs(arch, monkeypatch):
    network = describe(arch)
    result = measure(network, HEIGHT, WIDTH, packed=False)
    net = build_network(copy.deepcopy(network)).eval()
    image = torch.rand(1, network_info(net).channels, HEIGHT, WIDTH)
    if quantizers_of(net):
        calibrate(net, [image])
    scans = sum(row.macs for row in result.rows if row.kind.endswith("scan"))
    assert (scans > 0) == any(site.kind == "scan" for module in net.modules() for site in sites_of(module))
    monkeypatch.setenv(ENV, "reference")  # window attention as two plain products, which the counter knows
    counter = FlopCounterMode(display=False)
    with counter:
        out = net(image)
    assert counter.get_total_flops() / 2 + scans == result.total("macs")
    assert out.shape == result.output_shape
    network_parameters = sum(p.numel() for p in net.parameters()) - result.quantizer_parameters
    assert result.total("parameters") == network_parameters


@pytest.mark.parametrize("arch", QUANTIZED)
@pytest.mark.parametrize("weight", ["RFA", "MinMax"])
def test_packed_size_is_that_of_the_file_of_a_calibrated_network(arch, weight, tmp_path):
    pytest.importorskip("safetensors")
    quant = {**QUANT, "weight": {"type": weight, "bits": 3}, "scan": {"type": "DLS", "bits": 4}}
    network = describe(arch, quant, **SMALLEST)
    net = build_network(copy.deepcopy(network)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    calibrate(net, [torch.rand(1, network_info(net).channels, HEIGHT, WIDTH)])
    path = tmp_path / "packed.safetensors"
    save_packed(net, network, path)
    assert measure(network, HEIGHT, WIDTH).packed.file == path.stat().st_size


@pytest.mark.parametrize("arch", QUANTIZED)
def test_widths_are_those_of_the_quantizers_in_place(arch):
    network = describe(arch)
    rows = by_name(measure(network, HEIGHT, WIDTH, packed=False))
    with torch.device("meta"):
        placed = placement(build_network(network))
    seen = 0
    for site in placed:
        if site.weight_bits != 32 and site.module in rows and not rows[site.module].kind.endswith("scan"):
            assert [(p.weight, p.act) for p in rows[site.module].products] == [(site.weight_bits, site.act_bits)]
            seen += 1
    assert seen >= 8
    bits = sum(s.quantized * s.weight_bits + 32 * s.full_precision for s in placed)
    assert sum(row.parameter_bits for row in rows.values()) == bits


def test_one_block_by_hand():
    c, n, d, r, k, half = 30, 3, 36, 2, 4, 15
    pixels = HEIGHT * WIDTH
    result = measure(describe("QMambaIR", depths=[1]), HEIGHT, WIDTH, packed=False)
    block = "layers.0.residual_group.blocks.0"
    scan = pixels * k * d
    expected = {  # layer: (macs, bit operations, parameters, bits of them)
        "conv_first": (pixels * 27 * c, 1024, 28 * c, 32 * 28 * c),
        f"{block}.self_attention.in_proj": (pixels * c * 2 * d, 12, 2 * c * d, 8 * c * d),
        f"{block}.self_attention.conv2d": (pixels * 9 * d, 12, 10 * d, 36 * d + 32 * d),
        f"{block}.self_attention.x_proj": (pixels * k * d * (r + 2 * n), 12, k * d * 8, 4 * k * d * 8),
        f"{block}.self_attention.dt_projs": (pixels * k * d * r, 12, k * d * r, 4 * k * d * r),
        f"{block}.self_attention.out_proj": (pixels * c * d, 12, c * d, 4 * c * d),
        f"{block}.conv_blk.cab.0": (pixels * c * half, 12, 31 * half, 4 * c * half + 32 * half),
        f"{block}.conv_blk.cab.1": (pixels * 9 * half, 12, 10 * half, 4 * 9 * half + 32 * half),
        f"{block}.conv_blk.cab.5.attention.1": (c, 1024, c + 1, 32 * (c + 1)),
        "layers.0.conv": (pixels * 9 * c * c, 12, 9 * c * c + c, 4 * 9 * c * c + 32 * c),
        "upsample.0": (pixels * 9 * c * 12, 1024, 12 * (9 * c + 1), 32 * 12 * (9 * c + 1)),
    }
    rows = by_name(result)
    for name, (macs, bits, parameters, parameter_bits) in expected.items():
        row = rows[name]
        assert (row.macs, row.bit_operations) == (macs, macs * bits), name
        assert (row.parameters, row.parameter_bits) == (parameters, parameter_bits), name
    row = rows[f"{block}.self_attention.scan"]
    assert row.macs == scan * (4 * n + 2)
    # dt A, exp(dt A) h, dt x, (dt x) B, C h, D x with two-bit A, B, C, D and x
    assert row.bit_operations == scan * (n * 64 + n * 1024 + 64 + n * 64 + n * 64 + 4)
    assert (row.parameters, row.parameter_bits) == (k * d * (n + 2), 2 * k * d * (n + 2))


class Tally(float):
    """A number that counts its multiplications."""

    count = 0

    def __mul__(self, other):
        type(self).count += 1
        return Tally(float(self) * float(other))

    def __add__(self, other):
        return Tally(float(self) + float(other))


def test_scan_formula_counts_the_multiplications_of_the_recurrence():
    pixels, channels, states = 5, 3, 2
    Tally.count = 0
    for _ in range(len(DIRECTIONS) * channels):
        state = [Tally(0) for _ in range(states)]
        for _ in range(pixels):
            dt, x, skip = Tally(0.1), Tally(2), Tally(1)
            step = dt * x
            y = skip * x
            for i in range(states):
                decay = Tally(float(dt * Tally(-1)))  # the exponential is no multiplication
                state[i] = decay * state[i] + step * Tally(0.5)
                y = y + Tally(0.3) * state[i]
    x, a = torch.empty(1, 1, pixels, channels), torch.empty(len(DIRECTIONS), channels, states)
    widths = dict.fromkeys(("x", "dt", "A", "B", "C", "D"), 32)
    assert sum(p.macs for p in scan_products(x, a, widths, has_d=True)) == Tally.count


def test_an_explicit_order_counts_as_the_named_directions_do():
    x, delta, a = torch.randn(1, 3, 4, 5), torch.rand(1, 3, 4, 2, 5), -torch.rand(2, 5, 3)
    b, c = torch.randn(1, 3, 4, 2, 3), torch.randn(1, 3, 4, 2, 3)
    counts = []
    for way in ({"directions": DIRECTIONS[:2]}, {"order": named_order(DIRECTIONS[:2], 3, 4), "merge": False}):
        with Recorder() as recorder:
            ss2d_scan(x, delta, a, b, c, **way)
        counts.append(recorder.products)
    assert counts[0] == counts[1]
    assert counts[0]


def test_attention_and_routing_count_with_their_quantizers():
    quant = {**QUANT, "attention": {"type": "MinMax", "bits": 6}, "routing": {"type": "MinMax", "bits": 5}}
    rows = by_name(measure(describe("QMambaIRv2Light", quant=quant), HEIGHT, WIDTH, packed=False))
    layer = "layers.0.residual_group.layers.0"
    tokens, windows, dim = 64, HEIGHT * WIDTH // 64, 30
    for product in ("qk_matmul", "av_matmul"):
        (found,) = rows[f"{layer}.win_mhsa.{product}"].products
        assert (found.macs, found.weight, found.act) == (windows * tokens**2 * dim, 6, 6)
    (dictionary,) = rows[f"{layer}.assm"].products  # of two quantized tables of 8 x 4 and 4 x 3
    assert (dictionary.macs, dictionary.weight, dictionary.act) == (8 * 4 * 3, 5, 5)


def test_table_4_of_the_paper_to_the_printed_digit():
    printed = {
        ("MambaIR-light", 32): ("859.32 K", "88.02 G"),
        ("MambaIR-light", 4): ("114.70 K", "15.71 G"),
        ("MambaIR-light", 2): ("80.67 K", "10.54 G"),
        ("MambaIR-classic", 32): ("13.072 M", "1.334 T"),
        ("MambaIR-classic", 4): ("3.67 M", "0.38 T"),
        ("MambaIR-classic", 2): ("2.99 M", "0.31 T"),
    }
    rows = table4()
    assert {(r.network, r.bits): (r.printed_parameters, r.printed_operations) for r in rows} == printed
    assert [r.parameters for r in rows] == [859_320, 114_702, 80_667, 13_072_463, 3_670_469, 2_998_898]


def test_paper_accounting_says_why(capsys):
    assert complexity.main(["--paper-accounting", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["why"]) == 7
    light = shown["rows"][1]
    assert (light["printed parameters"], light["printed FLOPs"]) == ("114.70 K", "15.71 G")
    assert light["real parameters"] == 171_318  # methods of this package's placement: all of the real network
    assert shown["rows"][2]["real parameters"] == 118_911
    for form in ("markdown", "table", "csv"):
        text = tables.render_paper(shown["rows"], form)
        assert "114.70 K" in text and "2.99 M" in text
        assert ("Why they differ" in text) == (form != "csv")


@pytest.fixture(scope="module")
def shipped():
    return str(OPTIONS / "test_QMambaIR_tinySRx2_w4a4.yml")


def test_forms_agree(shipped, capsys):
    assert complexity.main(["-opt", shipped, "--width", "48", "--height", "32", "--full", "--json"]) == 0
    full = json.loads(capsys.readouterr().out)
    assert full["input"] == [1, 3, 32, 48] and full["output"] == [1, 3, 64, 96]
    assert full["totals"]["parameters"] == 93_570
    assert complexity.main(["-opt", shipped, "--width", "48", "--height", "32", "--csv"]) == 0
    *rows, total = csv.DictReader(io.StringIO(capsys.readouterr().out))
    for key in ("parameters", "macs", "bit_operations"):
        assert sum(layer[key] for layer in full["layers"]) == full["totals"][key]
        assert sum(int(row[key]) for row in rows) == int(total[key]) == full["totals"][key]
    assert int(total["count"]) == len(full["layers"])
    assert complexity.main(["-opt", shipped, "--width", "48", "--height", "32", "--markdown"]) == 0
    text = capsys.readouterr().out
    assert "| layers.*.residual_group.blocks.*.self_attention.scan | 6 | scan |" in text
    packed = full["totals"]["packed_file_bytes"]
    assert f"packed file: {packed:,} bytes" in text
    assert complexity.main(["-opt", shipped, "--width", "48", "--height", "32"]) == 0
    assert "conv_after_body" in capsys.readouterr().out


def test_equal_blocks_collapse_without_loss():
    result = measure(describe("MambaIR"), HEIGHT, WIDTH, packed=False)
    merged = collapse(result.rows)
    assert len(merged) < len(result.rows) == sum(row.count for row in merged)
    for figure in ("parameters", "parameter_bits", "macs", "bit_operations", "weighted_macs"):
        assert sum(getattr(row, figure) for row in merged) == result.total(figure)


@pytest.mark.parametrize(("scale", "size"), [(1, (1280, 720)), (2, (640, 360)), (3, (426, 240)), (4, (320, 180))])
def test_default_input_leads_to_1280x720(scale, size):
    assert tables.input_size(None, None, scale) == size[::-1]


def test_inputs_are_raised_to_what_the_network_needs():
    result = measure(describe("MambaIRUNet"), 13, 17, packed=False)
    assert result.input_shape == (1, 3, 16, 24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-opt", "missing.yml"], "there is no file missing.yml"),
        (["-opt", "FILE", "--width", "640"], "--height and --width go together"),
        (["-opt", "EMPTY"], "empty.yml has no network_g; give a training or test option file"),
        (["--paper-accounting", "--height", "8"], "leave --height and --width out"),
    ],
)
def test_mistakes_are_one_line(arguments, message, shipped, tmp_path, capsys):
    empty = tmp_path / "empty.yml"
    empty.write_text("name: x\n", encoding="utf-8")
    names = {"FILE": shipped, "EMPTY": str(empty)}
    assert complexity.main([names.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
