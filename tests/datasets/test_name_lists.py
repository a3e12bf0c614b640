"""Lists of file names as people and programs write them; partners that are not clear are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from basicsr.data import build_dataset

from qmambair_basicsr.data.image_files import ImageFileError, write_image
from qmambair_basicsr.data.name_lists import without_ending


@pytest.fixture
def files(tmp_path):
    """Pairs with blanks, dots and a number sign in their names."""
    for name in ("p0", "p1", "photo 1", "photo (1)", "#7", "v1.2"):
        for folder, stem in (("HR", name), ("LR", f"{name}x2")):
            write_image(tmp_path / folder / f"{stem}.png", np.zeros((2, 2, 3), np.uint8))
    return tmp_path


def pairs(root, **more):
    opt = {"name": "t", "type": "RestorationPairDataset", "phase": "val", "scale": 2, "filename_tmpl": "{}x2"}
    return opt | {"dataroot_gt": str(root / "HR"), "dataroot_lq": str(root / "LR"), **more}


def chosen(root, content, **more):
    (root / "list.txt").write_bytes(content.encode() if isinstance(content, str) else content)
    items = build_dataset(pairs(root, meta_info_file=str(root / "list.txt"), **more)).items
    assert all(Path(item.lq).stem == f"{Path(item.gt).stem}x2" for item in items)
    return [Path(item.gt).stem for item in items]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("p0.png\np1.png", ["p0", "p1"]),
        ("p1.png (2,2,3)\np0.png (2,2,3) 1\n", ["p1", "p0"]),
        ("\ufeffp0.png\r\np1.png\r\n\r\n", ["p0", "p1"]),
        ("p0.png\rp1.png\r", ["p0", "p1"]),
        ("# my list\n\n  p0.png  \n#p1.png\n", ["p0"]),
        ("p0.png # the best; not p1.png\n", ["p0"]),
        ("photo 1.png (2,2,3)\nphoto (1).png\nphoto (1).png (2, 2)\n", None),
        ("photo 1.png (2,2,3)\nphoto (1).png (2,2,3)\n", ["photo 1", "photo (1)"]),
        ("photo 1.png\tx\np0.png,0.7\np1.png;x", ["photo 1", "p0", "p1"]),
        ('"photo 1.png"\n', ["photo 1"]),
        ("#7.png\n", ["#7"]),
        ("./v1.2.png\n", ["v1.2"]),
    ],
)
def test_names_of_a_list(files, content, expected):
    if expected is None:
        with pytest.raises(ImageFileError, match=r"photo \(1\)\.png is listed twice \(lines 2 and 3\)"):
            chosen(files, content)
    else:
        assert chosen(files, content) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "p0.png\nq8.png (2,2,3)\nq9.png\n",
            r"2 of 3 listed images are not in .*HR: q8\.png \(line 2\), q9\.png \(line 3\)",
        ),
        ("p0.png p1.png\n", "line 1 names more than one file"),
        ("p0.png, LR/p0x2.png\n", "line 1 names more than one file"),
        ("\n# nothing\n", "lists no image"),
        ("", "lists no image"),
        ("p0.png".encode("utf-16"), "not UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0\xff", "not UTF-8"),
        ("p0\0.png\n", "1 of 1 listed images are not in"),
    ],
)
def test_lists_that_do_not_belong_to_the_set(files, content, words):
    with pytest.raises(ImageFileError, match=words) as caught:
        chosen(files, content)
    assert str(caught.value).startswith(str(files / "list.txt"))


def test_home_folder(files, monkeypatch):
    """``~`` in every path."""
    monkeypatch.setenv("HOME", str(files))
    (files / "list.txt").write_text("p0.png\n")
    paths = {"dataroot_gt": "~/HR", "dataroot_lq": "~/LR", "meta_info_file": "~/list.txt"}
    assert len(build_dataset(pairs(files, **paths))) == 1


def test_a_repeated_name_weighs_a_training_set(files):
    assert chosen(files, "p0.png\np0.png\n", phase="train", gt_size=2) == ["p0", "p0"]


@pytest.mark.parametrize(
    "template", ["x2", "{}_{}", "{name}x2", "{1}", "{}x2{", "{}x2.png", "{:3}x2", "{!r}", "{.a}", 2, None]
)
def test_filename_template(files, template):
    with pytest.raises(ValueError, match=r"filename_tmpl must hold \{\} once.*got"):
        build_dataset(pairs(files, filename_tmpl=template))


def test_misspelt_template_names_the_nearest_file(files):
    with pytest.raises(ImageFileError, match=r"its input '#7x3' is not in .* \(did you mean '#7x2'\?\)"):
        build_dataset(pairs(files, filename_tmpl="{}x3"))


def test_files_that_differ_in_their_ending(files):
    """Partners of one ending belong together; one input for two images is nobody's."""
    for folder, stem in (("HR", "p0"), ("LR", "p0x2")):
        shutil.copy(files / folder / f"{stem}.png", files / folder / f"{stem}.bmp")
    found = {Path(i.gt).name: Path(i.lq).name for i in build_dataset(pairs(files)).items}
    assert (found["p0.png"], found["p0.bmp"]) == ("p0x2.png", "p0x2.bmp")
    (files / "LR" / "p0x2.bmp").unlink()
    with pytest.raises(ImageFileError, match=r"p0x2\.png: the only input of .*p0\.bmp and of .*p0\.png"):
        build_dataset(pairs(files))
    for folder in ("HR", "LR"):
        for file in (files / folder).glob("p0*.bmp"):
            file.rename(file.with_suffix(".tif"))
    shutil.move(files / "LR" / "p0x2.png", files / "LR" / "p0x2.ppm")
    shutil.copy(files / "LR" / "p0x2.ppm", files / "LR" / "p0x2.pgm")
    (files / "HR" / "p0.tif").unlink()
    with pytest.raises(ImageFileError, match=r"p0\.png: .*p0x2\.pgm and .*p0x2\.ppm could both be its input"):
        build_dataset(pairs(files))


def test_endings():
    assert [without_ending(n) for n in ("a.png", "a.v2.PNG", "a.v2", "a", "a.tar.jpeg")] == [
        "a",
        "a.v2",
        "a.v2",
        "a",
        "a.tar",
    ]
