"""tools.shipped: the commands that make each network in ``assets``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from basicsr.metrics import calculate_metric
from skimage import data

from qmambair_basicsr.data.image_files import write_image
from qmambair_basicsr.data.matlab_resize import bicubic_downscale, imresize
from qmambair_basicsr.inference import open as open_network
from qmambair_basicsr.inference.shipped import ASSETS, shipped
from qmambair_basicsr.recipes.option_names import Row, parse
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


def test_table_measures_input_full_precision_and_the_shipped_file(tmp_path, monkeypatch):
    """The figures are those of the metrics on what the network and the restorer return."""
    monkeypatch.chdir(tmp_path)
    row = parse(shipped()["sr_x2"].options)
    clean = np.ascontiguousarray(data.astronaut()[20:84, 180:244, ::-1])
    write_image(tmp_path / "datasets/Set5/HR/a.png", clean)
    low = bicubic_downscale(clean, 2)
    write_image(tmp_path / "datasets/Set5/LR_bicubic/X2/ax2.png", low)
    (tmp_path / "qmambair_basicsr").symlink_to(ASSETS.parent)
    (line,) = shipped_training.table("sr_x2", ["Set5"])
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:2] == ["sr_x2", "Set5"]
    settings = Row("test", row.family, row.task, 32).options()["val"]["metrics"]["psnr"]
    before = calculate_metric({"img": imresize(low, 2), "img2": clean}, settings)
    after = calculate_metric(
        {"img": open_network(ASSETS / "sr_x2.safetensors").restore(low[..., ::-1])[..., ::-1], "img2": clean}, settings
    )
    assert float(cells[2].split(" / ")[0]) == pytest.approx(before, abs=0.006)
    assert float(cells[4].split(" / ")[0]) == pytest.approx(after, abs=0.006)
    assert float(cells[5]) == pytest.approx(after - before, abs=0.006)


def test_noise_reaches_the_networks_unclipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "datasets/CBSD68/HR/a.png", np.zeros((16, 16, 3), np.uint8))
    opt = Row("test", "MambaIR", "tinyDN", 32).options()
    seen = []
    shipped_training._quality(opt["datasets"]["test_1"], opt, [lambda x: seen.append(float(x.min())) or x])
    assert seen[0] < -0.05


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
