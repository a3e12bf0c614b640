"""Results that say what they were made from, and what a second run makes of that."""

from __future__ import annotations

import os

import numpy as np
import pytest
from picture_kinds import scene
from PIL import Image
from tiny_restorers import write_packed

from qmambair_basicsr.inference.picture_files import FORMATS, Layout, can_write, write_picture
from qmambair_basicsr.inference.pictures import About, read_picture
from qmambair_basicsr.inference.provenance import as_text, as_xmp, record_in
from qmambair_basicsr.tools.inference import main

RECORD = {"picture": "0123456789abcdef", "tile": "auto", 'a <b> & "c"': "ü"}


@pytest.mark.parametrize("name", filter(can_write, FORMATS))
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_every_format_has_a_place_for_it(tmp_path, name, mode):
    wanted, path = FORMATS[name], tmp_path / "picture"
    mode = mode if mode in wanted.modes else "RGB"
    pixels = scene(30, 40, len(mode))
    write_picture(path, [pixels], wanted, Layout(mode, 40, 30), About(), RECORD)
    assert record_in(path) == RECORD
    got = read_picture(path)
    assert got.mode == mode and got.pixels.shape == pixels.shape
    assert np.array_equal(got.pixels, pixels) or wanted.lossy
    with Image.open(path) as image:
        image.load()
        held = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or getattr(image, "tag_v2", {}).get(700)
        assert name in ("BMP", "PPM") or "madeFrom" in (held.decode() if isinstance(held, bytes) else held)


def test_the_packet_is_xml():
    from xml.etree import ElementTree

    (described,) = ElementTree.fromstring(as_xmp(RECORD).decode().split("?>")[1].rsplit("<?")[0])[0]
    assert described[0].tag == "{urn:qmambair_basicsr}madeFrom" and as_text(RECORD).count("<") == 2


def test_files_that_say_nothing(tmp_path):
    for content in (b"", b"<qmambair:madeFrom>{", b"<qmambair:madeFrom>[]</qmambair:madeFrom>", b"text"):
        (tmp_path / "x").write_bytes(content)
        assert record_in(tmp_path / "x") is None
    assert record_in(tmp_path / "gone") is record_in(tmp_path) is None


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A second network."""
    return write_packed(tmp_path_factory.mktemp("other") / "other.safetensors")


@pytest.fixture
def run(echo, tmp_path, capsys):
    """Runs the command on one picture; returns its exit code and what it printed."""
    Image.fromarray(scene()).save(tmp_path / "a.png")

    def call(*words, model=echo, ending="png"):
        words = [
            "-i",
            str(tmp_path / "a.png"),
            "-o",
            str(tmp_path / "out"),
            "--model",
            str(model),
            "--ext",
            ending,
            *words,
        ]
        code = main(words)
        shown = capsys.readouterr()
        return code, shown.err + shown.out

    return call


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tta"], "other flips"),
        (["--tile", "16"], "other tile"),
        (["--tile", "16", "--overlap", "4"], "other tile, overlap"),
        (["--outscale", "3"], "other size"),
        (["--backend", "float"], "other backend"),
    ],
)
def test_a_result_of_other_settings_is_made_again(run, words, said):
    assert "1 done" in run()[1]
    assert "0 done, 1 skipped" in run()[1]
    code, shown = run(*words)
    assert code == 0 and f"made again: {said}" in shown and "1 done" in shown
    assert "1 skipped" in run(*words)[1]
    assert "1 skipped" in run(*words, "--threads", "1", "--outscale", "3" if "3" in words else "2")[1]


def test_other_weights_and_qualities_are_noticed(run, other, tmp_path):
    assert run(ending="jpg")[0] == 0
    assert "made again: other quality" in run("--quality", "80", ending="jpg")[1]
    assert "made again: other weights" in run("--quality", "80", model=other, ending="jpg")[1]
    assert "1 skipped" in run("--skip-existing", ending="jpg")[1]
    assert run("--quality", "80")[0] == 0 and "1 skipped" in run("--quality", "70")[1]  # PNG has none


def test_a_changed_picture_is_restored_again_whatever_its_date(run, tmp_path):
    source, result = tmp_path / "a.png", tmp_path / "out" / "a.png"
    run()
    before = source.stat()
    Image.fromarray(scene()[::-1]).save(source)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "made again: other picture" in run()[1]
    first = result.stat().st_mtime_ns
    os.utime(source, (4e9, 4e9))
    assert "1 skipped" in run()[1] and result.stat().st_mtime_ns == first
    moved = tmp_path / "moved"
    result.parent.rename(moved)  # the record goes along
    moved.rename(tmp_path / "out")
    assert "1 skipped" in run()[1]
    assert "1 done" in run("--overwrite")[1] and result.stat().st_mtime_ns > first


def test_a_file_of_somebody_else_is_not_replaced(run, tmp_path):
    foreign = tmp_path / "out" / "a.png"
    foreign.parent.mkdir()
    Image.fromarray(scene()).save(foreign)
    content = foreign.read_bytes()
    code, shown = run()
    assert code == 1 and "does not say what it was made from" in shown and "--overwrite" in shown
    assert run("--dry-run")[0] == 1
    assert "1 skipped" in run("--skip-existing")[1] and foreign.read_bytes() == content
    assert run("--overwrite")[0] == 0 and "1 skipped" in run()[1]
    foreign.write_bytes(b"")  # of a program that was killed
    assert "1 done" in run()[1]
    foreign.unlink()
    foreign.mkdir()
    code, shown = run()
    assert code == 1 and "is a folder" in shown and not list(foreign.iterdir())


def test_what_has_no_effect_is_said(run):
    shown = run("--quality", "80", "--tile", "off", "--overlap", "4", "--dry-run", "--page", "--self-check")[1]
    assert "--quality has no effect" in shown and "--overlap has no effect with --tile off" in shown
    assert "--page has no effect with --dry-run" in shown and "--self-check has no effect" in shown
    assert "no effect" not in run("--quality", "80", "--tile", "16", "--overlap", "4", ending="jpg")[1]


def test_results_beside_their_pictures_are_found_again(echo, tmp_path, capsys):
    for name in ("a.png", "b.jpg"):
        Image.fromarray(scene()).save(tmp_path / name)
    words = ["-i", str(tmp_path), "-o", str(tmp_path), "--model", str(echo), "--suffix", "_x2"]
    assert main(words) == 0 and main(words) == 0
    assert "0 done, 2 skipped" in capsys.readouterr().out
    assert main([*words, "--tta"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "a_x2.png", "b.jpg", "b_x2.jpg"]


def test_results_beside_their_pictures_with_another_ending(echo, tmp_path, capsys):
    Image.fromarray(scene()).save(tmp_path / "a.png")
    words = ["-i", str(tmp_path), "-o", str(tmp_path), "--model", str(echo), "--ext", "jpg"]
    assert main(words) == 0 and main(words) == 0
    assert "0 done, 1 skipped" in capsys.readouterr().out
    Image.fromarray(scene()[::-1]).save(tmp_path / "a.jpg")  # a picture of its own
    assert main(words) == 0 and main(words) == 0
    assert "0 done, 2 skipped" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jpg", "a.jpg.jpg", "a.png", "a.png.jpg"]


def test_mistakes_leave_no_folder(echo, tmp_path):
    Image.fromarray(scene()).save(tmp_path / "a.png")
    words = ["-i", str(tmp_path / "a.png"), "-o", str(tmp_path / "out")]
    for more in (["--model", "no_such"], ["--model", str(echo), "--bits", "2"], ["-opt", "x.yml"]):
        assert main([*words, *more]) == 2
    assert main(["-i", "gone", *words[2:]]) == 2 and [p.name for p in tmp_path.iterdir()] == ["a.png"]
