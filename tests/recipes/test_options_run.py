"""Option files, unchanged but for the network's size, run two iterations in the folder layout they name.

All that are committed, and of those made on demand one of every network and task, and one of every method of training.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from basicsr.data import build_dataset
from basicsr.models import build_model
from basicsr.utils.options import parse_options
from torch.utils.data import DataLoader

from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.data.image_files import write_image
from qmambair_basicsr.data.matlab_resize import bicubic_downscale
from qmambair_basicsr.layers.info import full_precision_twin, network_info
from qmambair_basicsr.preflight import checked
from qmambair_basicsr.recipes.option_data import DATA
from qmambair_basicsr.recipes.option_names import Row, all_methods, published
from qmambair_basicsr.recipes.option_networks import net_key
from qmambair_basicsr.recipes.option_table import CONV_FP, DISTILL, PAIRS, TASKS

SIDE = 48  # of the images
SMALL = {
    "MambaIR": {"depths": [1], "embed_dim": 30, "d_state": 1},
    "MambaIRUNet": {"dim": 30, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "d_state": 1},
    "MambaIRv2": {"depths": [1], "num_heads": [2], "embed_dim": 24, "inner_rank": 4, "num_tokens": 8, "d_state": 1},
}
SMALL["MambaIRv2Light"] = SMALL["MambaIRv2"]
EVERY_TASK = tuple(SMALL)  # of others one task of every size
_LEVELS = {"num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1}
_HEADS = {"mamba_cfg:scan_count": 2, "mamba_cfg:d_state": 1}
SMALL |= {
    "MaIR": {"depths": [1], "embed_dim": 8, "d_state": 1},
    "MaIRUNet": {"dim": 4, **_LEVELS},
    "EAMamba": {"dim": 4, **_LEVELS, **_HEADS},
    "EAMambaSR": {"dim": 4, "num_blocks": [1], **_HEADS},
    "VmambaIR": {"dim": 4, **_LEVELS},
    "SwinIR": {"depths": [1], "num_heads": [2], "embed_dim": 8},
    "EDSR": {"num_feat": 8, "num_block": 1},
}


def _kind(family, task):
    key = net_key(family, task, TASKS[task].size, TASKS[task].recipe)
    return family, task if family in EVERY_TASK else key


MADE = [
    *published(),
    *(
        Row(phase, family, task, bits)
        for family, task in {_kind(*pair): pair for pair in reversed(PAIRS)}.values()
        if (family, task) not in {(row.family, row.task) for row in published()}
        for phase, bits in (("train", 32), ("train", (4, 8)), ("test", 8))
    ),
    *(
        Row("train", "MambaIR", "lightSRx2", 4, method)
        for method in all_methods("MambaIR")
        if method and DISTILL not in method
    ),
    Row("train", "SwinIR", "lightSRx2", 2, f"{DISTILL}_{CONV_FP}"),
    Row("test", "MambaIRv2Light", "lightSRx2", 4, "SPR2Q"),
    *(Row("train", family, task, 2, DISTILL) for family, task in (("MambaIR", "ColorDN15"), ("MambaIRUNet", "RealDN"))),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with two images in every set."""
    root = tmp_path_factory.mktemp("options")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(2)]
    scales = {task.scale for task in TASKS.values()}
    for data in DATA.values():
        for scale in scales if "{s}" in data.lq else (1,):
            for stem, img in zip("ab", images, strict=True):
                write_image(root / data.gt.format(s=scale) / f"{stem}.png", img)
                if data.lq:
                    lq = bicubic_downscale(img, scale) if scale > 1 else img // 2
                    name = data.template.format(s=scale).format(stem)
                    write_image(root / data.lq.format(s=scale) / f"{name}.png", lq)
    return root


def _patch(row, opt):
    """Side of a patch at the network's input: whole windows, three halvings."""
    if opt["network_g"].get("window_size") == 7:
        return 14
    if TASKS[row.task].scale == 1:
        return 16
    return 12 if row.family in EVERY_TASK else 8


def _forced(row, opt):
    network = {f"network_g:{key}": value for key, value in SMALL[row.family].items()}
    settings = {"num_gpu": 0, **network}
    task = TASKS[row.task]
    if row.phase != "test":
        settings |= {
            "datasets:train:gt_size": _patch(row, opt) * task.scale,
            "datasets:train:batch_size_per_gpu": 1,
            "logger:use_tb_logger": False,
        }
        # lists name files of the real set
        listed = [part for part in ("train", "val") if "meta_info_file" in opt["datasets"][part]]
        settings |= {f"datasets:{part}:meta_info_file": "~" for part in listed}
        section = "ptq" if row.phase == "ptq" else "quant_train"
        settings |= {} if row.bits == 32 else {f"{section}:calibration:batches": 1}
    return [f"{key}={value}".replace(" ", "") for key, value in settings.items()]


def _provide_weights(opt, phase, bits):
    """What the file starts from: full-precision weights, or calibrated ones in a test of a quantized network and where
    training goes on from one; and its teacher."""
    path = opt["path"]["pretrain_network_g"]
    teacher = ((opt.get("quant_train") or {}).get("teacher") or {}).get("path", path)
    _provide(opt, path, quantized=bits != 32 and (phase == "test" or path != teacher))
    _provide(opt, teacher, quantized=False if phase != "test" else bits != 32)


def _provide(opt, path, quantized):
    if path is None or Path(path).exists():
        return
    section = dict(opt["network_g"])
    if not quantized and "quant" in section:
        section = {k: v for k, v in section.items() if k != "quant"} | {"type": full_precision_twin(section["type"])}
    if opt["path"].get("strict_load_g") is False:
        section["upscale"] = 2  # weights of the x2 network for x3 and x4
    net = build_network(section)
    if quantized:
        side = 14 if section.get("window_size") == 7 else 16
        calibrate(net, [torch.rand(1, network_info(net).channels, side, side)])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"params": net.state_dict()}, path)


@pytest.mark.parametrize("row", MADE, ids=lambda row: row.name)
def test_two_iterations(folder, monkeypatch, row):
    phase, bits = row.phase, row.bits
    monkeypatch.chdir(folder)
    torch.set_num_threads(1)
    file = folder / f"{row.name}.yml"
    file.write_text(row.text(), encoding="utf-8")
    command = ["-opt", str(file), "--force_yml", *_forced(row, row.options())]
    monkeypatch.setattr(sys, "argv", ["run", *command])
    parse = getattr(parse_options, "__wrapped__", parse_options)
    _provide_weights(parse(str(folder), is_train=phase != "test")[0], phase, bits)
    opt, _ = checked(parse)(str(folder), is_train=phase != "test")  # with the check that the commands make
    if phase != "test":
        Path(opt["path"]["models"]).mkdir(parents=True, exist_ok=True)
    model = build_model(opt)
    if phase != "test":
        before = {k: v.clone() for k, v in model.net_g.named_parameters()}
        for step, batch in enumerate(DataLoader(build_dataset(opt["datasets"]["train"]), batch_size=1), start=1):
            model.feed_data(batch)
            model.optimize_parameters(step)
            model.update_learning_rate(step, warmup_iter=opt["train"].get("warmup_iter", -1))
        assert step == 2
        assert math.isfinite(model.get_current_log()["l_distill" if "distill_opt" in opt["train"] else "l_pix"])
        assert any(not torch.equal(before[k], v) for k, v in model.net_g.named_parameters())
        return
    datasets = [build_dataset(section) for section in opt["datasets"].values()]
    assert all(len(dataset) == 2 for dataset in datasets)
    model.opt["val"]["pbar"] = False
    model.validation(DataLoader(datasets[0], batch_size=1), opt["name"], None, save_img=False)
    assert model.metric_results.keys() == {"psnr", "ssim"}
    assert all(math.isfinite(value) for value in model.metric_results.values())
