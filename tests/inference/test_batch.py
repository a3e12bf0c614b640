"""The command on folders of pictures of every kind: results, failures, interruption and resumption."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from devices import python_path
from picture_kinds import SRGB, Kind, kinds, scene, write_broken
from PIL import ExifTags, Image

from qmambair_basicsr.inference import batch
from qmambair_basicsr.inference.pictures import read_picture
from qmambair_basicsr.tools.inference import main

KINDS = kinds()
LOSSY = (".jpg", ".jpeg", ".webp", ".avif")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every kind of picture, and three broken ones."""
    path = tmp_path_factory.mktemp("photos")
    for kind in KINDS:
        kind.write(path / kind.name)
    write_broken(path)
    return path


@pytest.fixture(scope="module")
def run(folder, echo, tmp_path_factory):
    """The folder of results of one run of the command, and what it printed."""
    out = tmp_path_factory.mktemp("results")
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stdout, "write", shown.append)
        code = main(["-i", str(folder), "-o", str(out), "--model", str(echo), "--tile", "16", "--overlap", "4"])
    return out, code, "".join(shown)


def test_one_bad_file_costs_no_other(run):
    out, code, shown = run
    assert code == 1
    assert sorted(p.name for p in out.iterdir()) == sorted(kind.result or kind.name for kind in KINDS)
    assert shown.startswith(f"{len(KINDS)} done, 0 skipped, 3 failed in ")
    failed = [line.strip() for line in shown.splitlines()[1:]]
    assert [line.split(": ")[0].rsplit("/", 1)[-1] for line in failed] == ["cut.png", "empty.png", "no picture.jpg"]
    assert "truncated" in failed[0] and "empty file" in failed[1] and "not an image" in failed[2]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.encode("ascii", "replace").decode())
def test_a_result_is_of_the_kind_of_its_picture(run, folder, kind: Kind):
    path = run[0] / (kind.result or kind.name)
    got, given = read_picture(path), read_picture(folder / kind.name)
    assert (got.mode, got.pixels.dtype.itemsize * 8) == (kind.mode, kind.bits)
    assert got.pixels.shape[:2] == (2 * kind.size[1], 2 * kind.size[0])
    with Image.open(path) as image:
        assert image.size == (2 * kind.size[0], 2 * kind.size[1])  # without turning it
        assert bool(image.info.get("icc_profile")) == kind.icc
        assert not kind.icc or image.info["icc_profile"] == SRGB
        exif = image.getexif()
        if kind.exif:
            assert exif[ExifTags.Base.Make] == "Maker"
            inner = exif.get_ifd(ExifTags.IFD.Exif)
            assert inner[ExifTags.Base.DateTimeOriginal] == "2024:05:06 07:08:09"
            assert inner[ExifTags.Base.ExifImageWidth] == image.width
            assert exif.get_ifd(ExifTags.IFD.GPSInfo)[1] == "N"
        assert exif.get(ExifTags.Base.Orientation, 1) == 1
        if kind.dpi:
            assert image.info["dpi"] == pytest.approx((kind.dpi, kind.dpi), abs=0.01)
    wanted = given.pixels.repeat(2, 0).repeat(2, 1).astype(int)
    if kind.mode in ("RGBA", "LA"):  # colours of what cannot be seen are free
        seen = wanted[..., -1] > 0
        assert np.array_equal(got.pixels[..., -1] > 0, seen)
    else:
        seen = np.ones(wanted.shape[:2], bool)
    error = np.abs(got.pixels.astype(int) - wanted)[seen]
    lossy = Path(kind.name).suffix.lower() in LOSSY
    assert error.max() <= (1 if kind.bits == 8 else 16) or (lossy and error.mean() < 6)


def test_turned_pictures_stand_upright(run):
    for orientation in range(2, 9):
        got = read_picture(run[0] / f"turned{orientation}.jpg").pixels.astype(int)
        assert np.abs(got - scene().repeat(2, 0).repeat(2, 1)).mean() < 8, orientation


def test_a_second_run_redoes_nothing(run, folder, echo, capsys):
    out = run[0]
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    words = ["--tile", "16", "--overlap", "4"]
    assert main(["-i", str(folder), "-o", str(out), "--model", str(echo), *words]) == 1
    assert capsys.readouterr().out.startswith(f"0 done, {len(KINDS)} skipped, 3 failed")
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before


def test_a_killed_run_goes_on_where_it_stopped(folder, echo, tmp_path):
    out = tmp_path / "results"
    words = ["-i", str(folder), "-o", str(out), "--model", str(echo)]
    env = {**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "qmambair_basicsr.tools.inference", *words]
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        for line in process.stderr:  # killed as soon as a few pictures are finished
            if line.startswith(b"5/"):
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = {p.name: p.stat().st_mtime_ns for p in out.iterdir() if not p.name.startswith(".")}
    assert 3 <= len(done) < len(KINDS)
    for name in done:
        read_picture(out / name)  # each is whole
    # what a killed process leaves of a picture that it was writing
    host = re.fullmatch(r"\.(\w+)-.*", next(iter(_hidden_name(out)))).group(1)
    (out / f".{host}-{process.pid}-00000000.photo.jpg.part").write_bytes(b"half a picture")
    assert main(words) == 1
    after = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert {name: after[name] for name in done} == done
    assert sorted(after) == sorted(kind.result or kind.name for kind in KINDS)


def _hidden_name(folder: Path) -> list[str]:
    from qmambair_basicsr.files import replaced

    with replaced(folder / "x") as part:
        name = part.name
        part.touch()
    (folder / "x").unlink()
    return [name]


def test_a_defect_in_one_picture_costs_no_other(folder, echo, tmp_path, monkeypatch, capsys):
    def broken(picture):
        raise KeyError("a defect")

    monkeypatch.setattr(
        batch, "read_picture", lambda path: broken(path) if path.name == "grey.png" else read_picture(path)
    )
    words = [str(folder / "grey.png"), str(folder / "one.png")]
    assert main(["-i", *words, "-o", str(tmp_path), "--model", str(echo)]) == 1
    assert "KeyError: 'a defect'" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["one.png"]


def test_ctrl_c_says_how_to_go_on(folder, echo, tmp_path, monkeypatch, capsys):
    def stop(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "read_picture", stop)
    assert main(["-i", str(folder / "grey.png"), "-o", str(tmp_path), "--model", str(echo)]) == 130
    assert "1 pictures left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_dry_run_writes_nothing(folder, echo, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["-i", str(folder), "-o", str(out), "--model", str(echo), "--dry-run", "--ext", "jpg", "--outscale", "3"]
    assert main(words) == 1  # the empty file and the text are seen by their heads
    shown = capsys.readouterr()
    assert "69x54" in shown.err and "JPEG holds no RGBA" in shown.err and "JPEG holds 8 bits" in shown.err
    assert "planned" in shown.out and not out.exists()


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("name", ["alpha.png", "grey alpha.png", "sixteen alpha.png", "ink.tif", "bilevel.png"])
def test_any_kind_can_become_any_format(folder, echo, tmp_path, ending, name):
    words = ["-i", str(folder / name), "-o", str(tmp_path), "--model", str(echo), "--ext", ending, "--outscale", "1.5"]
    assert main(words) == 0
    got = read_picture(next(tmp_path.iterdir()))
    assert got.pixels.shape[:2] == (27, 34) and got.pixels.std() > 5


def test_the_self_check_is_printed(folder, echo, tmp_path, capsys):
    words = ["-i", str(folder / "grey.png"), "-o", str(tmp_path), "--model", str(echo), "--self-check"]
    assert main(words) == 0
    assert re.search(r"backend \S+ dB from float64; \S+ dB from full-precision activations", capsys.readouterr().err)
