"""The placement table and its command."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch
from basicsr.archs import build_network

from qmambair_basicsr.layers.placement import collapse, placement, quantizer_scalars
from qmambair_basicsr.studies.placement_table import COLUMNS
from qmambair_basicsr.tools.placement import main

QUANT = {
    "weight": {"type": "LSQ", "bits": 4},
    "act": {"type": "LSQOffset", "bits": 4},
    "scan": {"type": "MinMax", "bits": 2},
}


def official_net(data_dir, name, **extra):
    config = json.loads((data_dir / "golden" / "official_state_dicts.json").read_text())[f"MambaIR_{name}"]
    with torch.device("meta"):
        return build_network({"type": "QMambaIR", **config["config"], "quant": QUANT, **extra}), config


@pytest.mark.parametrize(("name", "quantized", "full"), [("light_x2", 838512, 66504), ("classic_x2", 19699200, 722663)])
def test_counts_are_those_of_the_method_sheet(data_dir, name, quantized, full):
    net, config = official_net(data_dir, name)
    rows = placement(net)
    assert sum(row.quantized for row in rows) == quantized
    assert sum(row.full_precision for row in rows) == full
    assert quantized + full == config["num_params"]


def test_quantizer_scalars_are_those_of_the_method_sheet(data_dir):
    sites = {
        site: {"type": kind, "bits": 4} for site, kind in (("weight", "RFA"), ("act", "LSQOffset"), ("scan", "DLS"))
    }
    net, _ = official_net(data_dir, "light_x2", quant=sites)
    assert quantizer_scalars(net) == 5888


def test_collapsed_rows_keep_the_totals(data_dir):
    rows = placement(official_net(data_dir, "light_x2")[0])
    merged = collapse(rows)
    assert len(merged) < 30 < len(rows)
    assert sum(row.count for row in merged) == len(rows)
    assert sum(row.quantized for row in merged) == sum(row.quantized for row in rows)


def test_full_precision_network_has_no_quantized_rows():
    with torch.device("meta"):
        net = build_network({"type": "MambaIR", "embed_dim": 30, "depths": [1]})
    rows = placement(net)
    assert {row.bits for row in rows} == {"-/-"}
    assert sum(row.full_precision for row in rows) == sum(p.numel() for p in net.parameters())


@pytest.fixture
def option_file(tmp_path):
    path = tmp_path / "net.yml"
    network = {"type": "QMambaIR", "embed_dim": 30, "depths": [2], "d_state": 3, "quant": QUANT}
    path.write_text(json.dumps({"network_g": network}))  # JSON is YAML
    return path


def test_command_prints_csv(option_file, capsys):
    assert main(["-opt", str(option_file), "--csv", "--full"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    by_name = {row["module"]: row for row in rows}
    assert tuple(rows[0]) == COLUMNS
    block = "layers.0.residual_group.blocks.1.self_attention"
    assert by_name[f"{block}.in_proj"]["weight quantizer"] == "LSQ"
    assert by_name[f"{block}.in_proj"]["activation quantizer"] == "LSQOffset"
    assert by_name[f"{block}.out_proj"]["activation quantizer"] == "MinMax"
    assert by_name[f"{block}.delta"]["bits W/A"] == "-/2"
    assert by_name["conv_first"]["bits W/A"] == "-/-"


@pytest.mark.parametrize("form", [[], ["--markdown"]])
def test_command_prints_tables(option_file, capsys, form):
    assert main(["-opt", str(option_file), *form]) == 0
    out = capsys.readouterr().out
    assert "layers.*.residual_group.blocks.*.self_attention.x_proj" in out
    assert "quantized parameters: " in out and "full-precision parameters: " in out


def test_command_names_a_missing_file(tmp_path, capsys):
    assert main(["-opt", str(tmp_path / "none.yml")]) == 2
    assert f"error: there is no file {tmp_path / 'none.yml'}" in capsys.readouterr().err
