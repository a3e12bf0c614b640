"""tools.shipped: the commands that make each network in ``assets``."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmambair_basicsr.inference.shipped import ASSETS, shipped
from qmambair_basicsr.recipes.option_names import parse
from qmambair_basicsr.studies import shipped_training
from qmambair_basicsr.tools.shipped import main

MODELS = list(shipped().values())
SHIPPED = Path("qmambair_basicsr/assets")


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_every_start_is_shipped_or_made_by_an_earlier_step(model):
    steps = shipped_training.steps(model.name, Path("out"))
    made = []
    for step in steps[:-1]:
        start = Path(step.options.options()["path"]["pretrain_network_g"])
        assert start in made or (start.parent == SHIPPED and (ASSETS / start.name).is_file())
        made.append(step.makes)
    assert steps[-2].options.name == model.options.removesuffix(".yml")
    assert steps[-1].makes == Path("out") / model.path.name
    assert str(steps[-2].makes) in steps[-1].words


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_both_networks_are_tested_on_the_same_sets(model):
    full, quantized = shipped_training.tests(model.name)
    assert full.options()["datasets"] == quantized.options()["datasets"]
    assert "quant" not in full.options()["network_g"]
    assert full.options()["path"]["pretrain_network_g"] == parse(model.options).options()["path"]["pretrain_network_g"]


def test_what_is_there_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = []

    def made(*words):
        ran.append(words[0])
        assert (tmp_path / words[words.index("-opt") + 1]).is_file()
        step = next(s for s in shipped_training.steps("sr_x2", tmp_path) if s.words == words)
        step.makes.parent.mkdir(parents=True, exist_ok=True)
        step.makes.touch()

    monkeypatch.setattr(shipped_training, "_run", made)
    assert main(["--networks", "sr_x2", "--out", str(tmp_path)]) == 0
    assert ran == ["train", "tools.export"]
    assert main(["--networks", "sr_x2", "--out", str(tmp_path)]) == 0
    assert len(ran) == 2


def test_dry_run_names_every_command_once(capsys):
    assert main(["--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(set(lines)) == len(lines)
    assert all(any(f"{model.name}.safetensors" in line for line in lines) for model in MODELS)
