"""Exported files of small networks, shared by the tests of this folder: an export takes seconds."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import pytest
import torch
from skimage import data
from workers import folder_of_all_workers, one_worker_at_a_time

from qmambair_basicsr.artifacts.packed import save_packed
from qmambair_basicsr.layers.convert import constant_grids, freeze_dls, set_constant_grids


@dataclass(frozen=True)
class Exported:
    """Files of one calibrated QMambaIR x2, w4a4: packed, ONNX (frozen, dynamic, frozen in FP64), and photographs."""

    folder: Path
    net: torch.nn.Module

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture(scope="session")
def exported_case(tmp_path_factory) -> Callable[..., tuple[torch.nn.Module, Path]]:
    """(case of ``test_export_onnx.CASES``, DLS mode, precision = fp32) -> the network and its ONNX file for 16 x 24.

    An export takes seconds, so the workers of pytest-xdist share the files.
    """
    pytest.importorskip("onnxruntime", reason="extra: export")
    from test_export_onnx import CASES, calibrated, photo

    from qmambair_basicsr.artifacts.onnx.file import ExportSettings, export_onnx

    folder = folder_of_all_workers(tmp_path_factory) / "cases"
    folder.mkdir(exist_ok=True)

    def kept(path: Path, write: Callable[[Path], object]) -> bool:
        """Write a file unless some worker has; whether there was one."""
        with one_worker_at_a_time(path.with_name(f"{path.name}.lock")):
            if path.exists():
                return True
            part = path.with_name(f"part.{path.name}")
            write(part)
            part.rename(path)
            return False

    @functools.cache
    def network(case: str, dls: str) -> torch.nn.Module:
        # the last bit of a sum may differ from run to run (BLAS looks at addresses): all workers and all files of a case
        # take their starting values and grids from one calibration
        net = calibrated(CASES[case])
        state, grids = folder / f"{case}.pth", folder / f"{case}.json"
        if kept(state, lambda part: torch.save(net.state_dict(), part)):
            net.load_state_dict(torch.load(state, weights_only=True))

        def freeze(part: Path) -> None:
            frozen = copy.deepcopy(net)
            freeze_dls(frozen, [photo(CASES[case].get("in_chans", 3), 16, 24)])
            part.write_text(json.dumps(constant_grids(frozen)))

        if dls == "frozen":
            kept(grids, freeze)
            set_constant_grids(net, json.loads(grids.read_text()))
        return net

    @functools.cache
    def make(case: str, dls: str, precision: str = "fp32") -> tuple[torch.nn.Module, Path]:
        net, path = network(case, dls), folder / f"{case} {dls} {precision}.onnx"
        settings = ExportSettings(16, 24, scan_chunk=4, precision=precision)
        kept(path, lambda part: export_onnx(net, part, settings))
        return copy.deepcopy(net), path

    return make


@pytest.fixture(scope="session")
def exported(tmp_path_factory, exported_case) -> Exported:
    """Tiles of 16 x 24; three photographs of 20 x 30 with their originals of twice the size."""
    from test_export_onnx import CASES

    folder = tmp_path_factory.mktemp("exported")
    for name, *case in (("frozen", "frozen"), ("exact", "frozen", "fp64"), ("dynamic", "dynamic")):
        net, path = exported_case("light x2 w4a4", *case)  # the last one is the network that was trained
        shutil.copy(path, folder / f"{name}.onnx")
    torch.save({"params": net.state_dict()}, folder / "net.pth")
    (folder / "net.yml").write_text(json.dumps({"network_g": CASES["light x2 w4a4"]}))
    save_packed(net, CASES["light x2 w4a4"], folder / "net.safetensors")
    for name in ("inputs", "truth"):
        (folder / name).mkdir()
    for i in range(3):
        original = data.astronaut()[60 + 40 * i : 100 + 40 * i, 160:220, ::-1]
        cv2.imwrite(str(folder / "truth" / f"p{i}.png"), original)
        cv2.imwrite(
            str(folder / "inputs" / f"p{i}x2.png"), cv2.resize(original, (30, 20), interpolation=cv2.INTER_AREA)
        )
    return Exported(folder, net)
