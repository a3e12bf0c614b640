"""prepare_data: layout, resuming, worker counts, counts of known sets, bad files."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from skimage import data as photos

from qmambair_basicsr.data import ledger
from qmambair_basicsr.data.batch import Task, run_tasks
from qmambair_basicsr.data.benchmarks import IMAGE_COUNTS, check_count, subset_ids
from qmambair_basicsr.data.image_files import decode_image, match_channels, read_image, write_image
from qmambair_basicsr.data.jpeg_codec import jpeg_roundtrip
from qmambair_basicsr.data.lmdb_images import LmdbImages
from qmambair_basicsr.data.matlab_resize import bicubic_downscale
from qmambair_basicsr.data.prepare_jobs import windows
from qmambair_basicsr.tools.prepare_data import main


@pytest.fixture
def photographs(tmp_path):
    """Five images of different sizes."""
    folder = tmp_path / "download"
    for i in range(5):
        write_image(folder / f"p{i}.png", np.ascontiguousarray(photos.astronaut()[: 60 + i, 100 : 150 + 3 * i, ::-1]))
    return folder


def _run(tmp_path, command, *more):
    return main([command, "--root", str(tmp_path / "datasets"), *map(str, more)])


def _contents(folder):
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.name != ledger.FILE]
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def test_sr_layout(tmp_path, photographs):
    """HR is copied byte for byte, LR is MATLAB's."""
    assert _run(tmp_path, "sr", "--set", "Set5", "--input", photographs, "--workers", 1) == 0
    base = tmp_path / "datasets" / "Set5"
    for file in photographs.iterdir():
        assert (base / "HR" / file.name).read_bytes() == file.read_bytes()
        for s in (2, 3, 4):
            lr = read_image(base / "LR_bicubic" / f"X{s}" / f"{file.stem}x{s}.png")
            np.testing.assert_array_equal(lr, bicubic_downscale(read_image(file), s))


def test_set5_from_the_command_line(tmp_path, shared_dir):
    """The 15 published files, through the command."""
    set5 = shared_dir / "data" / "test" / "Set5"
    assert _run(tmp_path, "sr", "--set", "Set5", "--input", set5 / "HR", "--workers", 1) == 0
    ours = sorted((tmp_path / "datasets" / "Set5" / "LR_bicubic").rglob("*.png"))
    assert len(ours) == 15
    for file in ours:
        np.testing.assert_array_equal(read_image(file), read_image(set5 / "LR_bicubic" / file.parent.name / file.name))


def test_same_files_for_any_number_of_workers(tmp_path, photographs):
    """Every command, one process against two."""
    for command, more in (("sr", ()), ("jpeg", ("--quality", 10, 40)), ("noise", ("--sigma", 25, 50))):
        results = []
        for workers in (1, 2):
            root = tmp_path / f"{command}{workers}"
            argv = [command, "--set", "five", "--root", root, "--input", photographs, "--workers", workers, *more]
            assert main([str(a) for a in argv]) == 0
            results.append(_contents(root))
        assert results[0] == results[1]
        assert len(results[0]) == 5 + 5 * {"sr": 3, "jpeg": 3, "noise": 2}[command]


def test_resumes(tmp_path, photographs, caplog):
    """Finished files are kept as they are, missing ones are made; --overwrite makes all again."""
    argv = ("sr", "--set", "five", "--input", photographs, "--scales", 2, "--workers", 1)
    assert _run(tmp_path, *argv) == 0
    lr = tmp_path / "datasets" / "five" / "LR_bicubic" / "X2"
    (lr / "p1x2.png").write_bytes(b"kept")
    (lr / "p3x2.png").unlink()
    with caplog.at_level("INFO"):
        assert _run(tmp_path, *argv) == 0
    assert "1 written, 4 already there" in caplog.text
    assert (lr / "p1x2.png").read_bytes() == b"kept"
    assert (lr / "p3x2.png").is_file()
    assert _run(tmp_path, *argv, "--overwrite") == 0
    assert read_image(lr / "p1x2.png").shape[2] == 3


def _replace(file, value):
    """Another picture of the same name, size in bytes and modification time."""
    before = file.stat()
    img = read_image(file)
    write_image(file, np.full_like(img, value))
    padding = before.st_size - file.stat().st_size
    assert padding >= 0
    file.write_bytes(file.read_bytes() + bytes(padding))  # decoders stop at IEND
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("recorded", [True, False])
def test_replaced_sources_are_noticed(tmp_path, photographs, caplog, workers, recorded):
    """Everything made from a replaced picture is made again and said so, with or without a record; the rest is kept."""
    argv = ("sr", "--set", "five", "--scales", 2, "--workers", workers)
    base = tmp_path / "datasets" / "five"
    hr, lr = base / "HR", base / "LR_bicubic" / "X2"
    assert _run(tmp_path, *argv, "--input", photographs) == 0
    before = _contents(base)
    stamps = {f.name: f.stat().st_mtime_ns for f in lr.iterdir()}
    _replace(photographs / "p1.png", 9)
    if not recorded:
        (base / ledger.FILE).unlink()
    with caplog.at_level("INFO"):
        assert _run(tmp_path, *argv, "--input", photographs) == 0
    reason = "has changed" if recorded else "not what"
    assert f"HR: 1 written, 4 already there, 0 left out\n  made again: {hr / 'p1.png'}: " in caplog.text
    assert f"made again: {lr / 'p1x2.png'}: " in caplog.text and reason in caplog.text
    assert (read_image(lr / "p1x2.png") == 9).all()
    _replace(hr / "p2.png", 5)  # in the set itself
    caplog.clear()
    with caplog.at_level("INFO"):
        assert _run(tmp_path, *argv) == 0
    assert "LR: 1 written, 4 already there" in caplog.text and "p2.png has changed" in caplog.text
    assert (read_image(lr / "p2x2.png") == 5).all()
    after = _contents(base)
    for name in ("p0", "p3", "p4"):
        assert after[f"LR_bicubic/X2/{name}x2.png"] == before[f"LR_bicubic/X2/{name}x2.png"]
        assert stamps[f"{name}x2.png"] == (lr / f"{name}x2.png").stat().st_mtime_ns
    caplog.clear()
    with caplog.at_level("INFO"):
        assert _run(tmp_path, *argv) == 0
        assert _run(tmp_path, *argv, "--rerun") == 0
    assert "LR: 0 written, 5 already there" in caplog.text and "LR: 5 written, 0 already there" in caplog.text


def test_images_that_the_input_has_no_longer(tmp_path, photographs, caplog):
    """They stay in the set, and are named."""
    argv = ("sr", "--set", "five", "--input", photographs, "--scales", 2, "--workers", 1)
    assert _run(tmp_path, *argv) == 0
    assert "keeps" not in caplog.text
    (photographs / "p3.png").unlink()
    assert _run(tmp_path, *argv) == 0
    assert "HR keeps 1 images that --input does not have: p3.png" in caplog.text


def test_other_options_are_noticed(tmp_path, photographs, caplog):
    """Another size of sub-images leaves none of the old ones; another modcrop, another HR; other scales, nothing."""
    base = tmp_path / "datasets" / "x"
    assert _run(tmp_path, "sr", "--set", "x", "--input", photographs, "--scales", 2, 3, "--workers", 1) == 0
    assert _run(tmp_path, "crop", "--set", "x", "--size", 24, "--step", 12, "--scales", 2, "--workers", 1) == 0
    many = len(list((base / "HR_sub").iterdir()))
    with caplog.at_level("INFO"):
        assert _run(tmp_path, "crop", "--set", "x", "--size", 36, "--step", 36, "--scales", 2, "--workers", 1) == 0
        assert _run(tmp_path, "sr", "--set", "x", "--scales", 2, "--workers", 1) == 0
    assert "made with other corners and size" in caplog.text and "LR: 0 written, 5 already there" in caplog.text
    subs = list((base / "HR_sub").iterdir())
    assert len(subs) < many and all(read_image(f).shape == (36, 36, 3) for f in subs)
    assert len(list((base / "LR_bicubic_sub" / "X2").iterdir())) == len(subs)
    with caplog.at_level("INFO"):
        argv = ("sr", "--set", "x", "--input", photographs, "--scales", 2, "--modcrop", 12, "--workers", 1)
        assert _run(tmp_path, *argv) == 0
    assert "made with other modcrop" in caplog.text
    assert all(n % 12 == 0 for f in (base / "HR").iterdir() for n in read_image(f).shape[:2])


def test_stale_lmdb_is_packed_again(tmp_path, photographs, caplog):
    pytest.importorskip("lmdb")
    base = tmp_path / "datasets" / "x"
    argv = ("lmdb", "--set", "x", "--scales", "--workers", 1)
    assert _run(tmp_path, *argv, "--input", photographs) == 0

    def first():
        images = LmdbImages(base / "HR.lmdb")
        return decode_image(images.read("p0"), "p0"), len(images.keys)

    with caplog.at_level("INFO"):
        assert _run(tmp_path, *argv) == 0
    assert "HR.lmdb: already there" in caplog.text
    _replace(base / "HR" / "p0.png", 3)
    with caplog.at_level("INFO"):
        assert _run(tmp_path, *argv) == 0
    assert "HR.lmdb: made again: " in caplog.text and "p0.png has changed" in caplog.text
    assert (first()[0] == 3).all()
    (base / "HR" / "p4.png").unlink()
    with caplog.at_level("INFO"):
        assert _run(tmp_path, *argv) == 0
    assert "made with other names" in caplog.text and first()[1] == 4


def test_too_small_images_come_in_neither_folder(tmp_path, photographs, caplog):
    """``--on-error skip`` leaves no HR image without its LR image."""
    for name, shape in (("dot", (1, 1, 3)), ("thin", (90, 1, 3))):
        write_image(photographs / f"{name}.png", np.zeros(shape, np.uint8))
    argv = ("sr", "--set", "x", "--input", photographs, "--scales", 2, 3, "--workers", 1)
    assert _run(tmp_path, *argv) == 1
    assert "dot.png: 1 x 1 pixels are too small for scale 3" in caplog.text
    assert _run(tmp_path, *argv, "--on-error", "skip") == 0
    names = {f.stem for f in (tmp_path / "datasets" / "x" / "HR").iterdir()}
    assert names == {f"p{i}" for i in range(5)}


def test_two_files_of_one_name_in_a_set(tmp_path, photographs, caplog):
    """They would be reduced to one file."""
    hr = shutil.copytree(photographs, tmp_path / "datasets" / "x" / "HR")
    shutil.copy(hr / "p1.png", hr / "p0.bmp")
    assert _run(tmp_path, "sr", "--set", "x", "--workers", 1) == 1
    assert "holds 2 images called p0" in caplog.text


def test_jpeg_files_are_what_the_dataset_makes(tmp_path, photographs):
    """Stored and on-the-fly pairs agree: Y channel by default, colour on demand."""
    assert _run(tmp_path, "jpeg", "--set", "x", "--input", photographs, "--quality", 30, "--workers", 1) == 0
    assert _run(tmp_path, "jpeg", "--set", "x", "--quality", 30, "--colour", "rgb", "--workers", 1) == 0
    base, img = tmp_path / "datasets" / "x", read_image(photographs / "p2.png")
    grey = match_channels(img, 1)
    np.testing.assert_array_equal(read_image(base / "HR_grey" / "p2.png"), grey)
    np.testing.assert_array_equal(read_image(base / "JPEG_grey" / "q30" / "p2.png"), jpeg_roundtrip(grey, 30))
    np.testing.assert_array_equal(read_image(base / "JPEG_rgb420" / "q30" / "p2.png"), jpeg_roundtrip(img, 30))


def test_noise_files(tmp_path, photographs):
    """npy holds the unclipped protocol noise; png its clipped and rounded version."""
    assert _run(tmp_path, "noise", "--set", "x", "--input", photographs, "--sigma", 50, "--workers", 1) == 0
    assert _run(tmp_path, "noise", "--set", "x", "--sigma", 50, "--format", "png", "--workers", 1) == 0
    base = tmp_path / "datasets" / "x"
    noisy = np.load(base / "noise_npy" / "s50" / "p0.npy")
    assert noisy.dtype == np.float32
    assert noisy.min() < 0
    rounded = np.clip(np.floor(noisy * 255 + 0.5), 0, 255)
    np.testing.assert_array_equal(read_image(base / "noise_png" / "s50" / "p0.png"), rounded)


@pytest.mark.parametrize("scales", [(2, 3, 4), ()])
def test_sub_images_show_the_same_part(tmp_path, photographs, scales):
    """Sub-images tile the image, and LR sub-images are the matching windows of the LR image."""
    assert _run(tmp_path, "sr", "--set", "x", "--input", photographs, "--workers", 1) == 0
    argv = ("crop", "--set", "x", "--size", 36, "--step", 12, "--workers", 1, "--scales", *scales)
    assert _run(tmp_path, *argv) == 0
    base = tmp_path / "datasets" / "x"
    img = read_image(photographs / "p4.png")  # 64 x 62
    corners = list(windows(64, 62, 36, 12, 12 if scales else 1))
    assert len(list((base / "HR_sub").glob("p4_*"))) == len(corners)
    for i, (top, left) in enumerate(corners, start=1):
        sub = read_image(base / "HR_sub" / f"p4_s{i:03d}.png")
        np.testing.assert_array_equal(sub, img[top : top + 36, left : left + 36])
        for s in scales:
            lr = read_image(base / "LR_bicubic" / f"X{s}" / f"p4x{s}.png")
            sub = read_image(base / "LR_bicubic_sub" / f"X{s}" / f"p4_s{i:03d}x{s}.png")
            np.testing.assert_array_equal(sub, lr[top // s : (top + 36) // s, left // s : (left + 36) // s])


@pytest.mark.parametrize(("length", "size", "step", "unit"), [(100, 40, 20, 1), (101, 40, 20, 4), (40, 40, 20, 12)])
def test_windows_cover_the_image(length, size, step, unit):
    """Every pixel up to the last full unit is in a window, and none reaches over the edge."""
    tops = sorted({top for top, _ in windows(length, length, size, step, unit)})
    covered = {p for top in tops for p in range(top, top + size)}
    assert max(covered) < length
    assert len(covered) > length - unit
    assert all(top % unit == 0 for top in tops)
    assert not list(windows(size - 1, length, size, step, unit))


def test_known_counts(tmp_path, photographs, caplog):
    """A set with a published size must have it."""
    assert _run(tmp_path, "sr", "--set", "Set14", "--input", photographs) == 1
    assert "Set14 has 14 images, but 5 were found" in caplog.text
    assert not (tmp_path / "datasets").exists()
    assert _run(tmp_path, "sr", "--set", "Set14", "--input", photographs, "--any-count", "--workers", 1) == 0


def test_counts_of_the_shared_sets(shared_dir):
    """The table of sizes agrees with the images at hand."""
    for name in ("Set5", "Set14", "B100", "McMaster", "LIVE1", "classic5"):
        check_count(name, list((shared_dir / "data" / "test" / name / "HR").iterdir()))
    assert IMAGE_COUNTS["Urban100"] == 100
    assert IMAGE_COUNTS["DF2K"] == IMAGE_COUNTS["DIV2K"] + IMAGE_COUNTS["Flickr2K"]


def test_cbsd68_out_of_b100(tmp_path, shared_dir, caplog):
    """68 images; a missing one is named."""
    b100 = shared_dir / "data" / "test" / "B100" / "HR"
    assert _run(tmp_path, "subset", "--set", "CBSD68", "--input", b100, "--workers", 1) == 0
    made = {f.stem for f in (tmp_path / "datasets" / "CBSD68" / "HR").iterdir()}
    assert made == set((shared_dir / "data" / "test" / "CBSD68_ids.txt").read_text().split()) == subset_ids("CBSD68")
    partial = tmp_path / "partial"
    shutil.copytree(tmp_path / "datasets" / "CBSD68" / "HR", partial)
    (partial / "101085.png").unlink()
    assert _run(tmp_path, "subset", "--set", "CBSD68", "--input", partial) == 1
    assert "lacks 1 images: 101085" in caplog.text
    with pytest.raises(ValueError, match="known: CBSD68"):
        subset_ids("Set5")


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_file(tmp_path, photographs, caplog, workers):
    """Stops at a damaged file and names it, or leaves it out and says so; the rest is done."""
    (photographs / "p3.png").write_bytes((photographs / "p3.png").read_bytes()[:200])
    argv = ("sr", "--set", "x", "--input", photographs, "--workers", workers)
    assert _run(tmp_path, *argv) == 1
    assert "p3.png: truncated PNG" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        assert _run(tmp_path, *argv, "--on-error", "skip") == 0
    assert "left out: " in caplog.text
    assert {f.stem for f in (tmp_path / "datasets" / "x" / "HR").iterdir()} == {"p0", "p1", "p2", "p4"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("sr", "--scales", "1"), "at least 2, got 1"),
        (("sr", "--scales", "70"), "too small for scale 70"),
        (("crop", "--size", "50"), "--size must be a positive multiple of 12"),
        (("crop", "--size", "36", "--step", "0"), "--step must be"),
        (("crop", "--size", "36", "--step", "12"), "LR_bicubic"),
        (("subset",), "needs --input"),
        (("sr", "--workers", "0"), "workers must be at least 1"),
        (("sr", "--input", "no/such"), "no/such: no such folder"),
        (("lmdb", "--scales", "2"), "x2.png: missing"),
    ],
)
def test_errors(tmp_path, photographs, caplog, argv, words):
    """Wrong arguments stop with one line that says what is wrong."""
    shutil.copytree(photographs, tmp_path / "datasets" / "x" / "HR")
    assert _run(tmp_path, argv[0], "--set", "x", "--workers", 1, *argv[1:]) == 1
    assert words in caplog.text


@pytest.mark.parametrize("quality", ["0", "101", "-1", "high"])
def test_impossible_quality_is_refused_while_arguments_are_read(tmp_path, capsys, quality):
    """Before anything of the data is looked at, as for every argument with a range of its own."""
    with pytest.raises(SystemExit) as stop:
        _run(tmp_path, "jpeg", "--set", "x", f"--quality={quality}")
    assert stop.value.code == 2
    assert f"--quality: {quality!r} is no quality from 1 to 100" in capsys.readouterr().err


def test_two_inputs_of_one_name(tmp_path, photographs, caplog):
    """Two folders with a file of the same name would overwrite each other."""
    other = shutil.copytree(photographs, tmp_path / "other")
    assert _run(tmp_path, "sr", "--set", "x", "--input", photographs, other) == 1
    assert "p0.png" in caplog.text


def _break(task):
    raise TypeError(task.source.name)


def test_a_bug_is_not_a_bad_file(tmp_path):
    """Only errors about the input are skipped."""
    with pytest.raises(TypeError):
        run_tasks([Task(tmp_path / "a", (tmp_path / "b",))], _break, on_error="skip")
    with pytest.raises(ValueError, match="'stop' or 'skip'"):
        run_tasks([], _break, on_error="ignore")
