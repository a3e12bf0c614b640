"""LMDBs: whole names, one environment for all readers of a process, packing that is whole or leaves nothing."""

from __future__ import annotations

import multiprocessing
import os
import shutil

import numpy as np
import pytest
import torch
from basicsr.data import build_dataset

from qmambair_basicsr.data import lmdb_images, make_lmdb
from qmambair_basicsr.data.image_files import ImageFileError, read_image, write_image

lmdb = pytest.importorskip("lmdb")
NAMES = ("photo", "photo.v2", "photo.v2.final", "two words", "照片", "ünïcode", "a#b", "1.5x")


@pytest.fixture
def packed(tmp_path):
    """``pack(names)`` writes one picture a name and packs them; returns (folder, LMDB)."""

    def pack(names=NAMES, side=24, folder="HR"):
        rng = np.random.default_rng(0)
        for name in names:
            write_image(tmp_path / folder / f"{name}.png", rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        return tmp_path / folder, make_lmdb.make_lmdb(tmp_path / folder, list(names), "{}")

    return pack


def options(root, name="t", **more):
    return {
        "name": name,
        "type": "JPEGDataset",
        "phase": "val",
        "quality": 90,
        "dataroot_gt": str(root),
        "io_backend": {"type": "lmdb"},
        **more,
    }


def stored(root, records, lines):
    """An LMDB as other programs write it."""
    with lmdb.open(str(root), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for key, image in records.items():
            transaction.put(key.encode(), image)
    (root / "meta_info.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return root


def content(folder, name):
    return (folder / f"{name}.png").read_bytes()


def test_every_name_gives_its_own_picture(packed):
    """Dots, spaces and other alphabets; results would be named after the whole name."""
    folder, root = packed()
    dataset = build_dataset(options(root))
    assert len(dataset) == len(NAMES)
    for i, name in enumerate(NAMES):
        gt = torch.from_numpy(read_image(folder / f"{name}.png")[..., ::-1].transpose(2, 0, 1) / np.float32(255))
        assert torch.equal(dataset[i]["gt"], gt)
        assert os.path.splitext(os.path.basename(dataset[i]["lq_path"]))[0] == name
    listed = folder.parent / "list.txt"
    listed.write_text("photo.v2\n照片.png (24,24,3)\n", encoding="utf-8")
    assert [build_dataset(options(root, meta_info_file=str(listed)))[i]["gt_path"] for i in (0, 1)] == [
        "photo.v2.png",
        "照片",
    ]


def test_sections_and_workers_share_an_environment(packed):
    """Two data sets at once, check_files in the parent, then forked and spawned workers, and the parent again."""
    _, root = packed()
    first, second = (build_dataset(options(root, name, check_files=True)) for name in "ab")
    expected = [item["gt"] for item in first]
    assert torch.equal(second[3]["gt"], expected[3])
    assert lmdb_images.environment(root) is lmdb_images.environment(f"{root}/.")
    for method in {"fork", "spawn"} & set(multiprocessing.get_all_start_methods()):
        loader = torch.utils.data.DataLoader(second, num_workers=1, multiprocessing_context=method)
        for item, other in zip(loader, expected, strict=True):
            assert torch.equal(item["gt"][0], other)
    assert torch.equal(first[0]["gt"], expected[0])


def test_an_lmdb_made_again_is_read_anew(packed):
    """The same path, other pictures."""
    folder, root = packed(("a",))
    dataset = build_dataset(options(root))
    before = dataset[0]["gt"]
    write_image(folder / "a.png", np.zeros((24, 24, 3), np.uint8))
    make_lmdb.make_lmdb(folder, ["a"], "{}", overwrite=True)
    assert not torch.equal(dataset[0]["gt"], before)
    assert dataset[0]["gt"].max() == 0


def test_records_cut_at_the_first_dot(packed, tmp_path):
    """As some programs pack: read where it is clear which picture a record is, else refused with both names."""
    folder, _ = packed()
    clear = stored(tmp_path / "clear.lmdb", {"a": content(folder, "photo")}, ["a.v2.png (24,24,3) 1"])
    assert len(build_dataset(options(clear))) == 1
    for records in ({"photo": content(folder, "photo")}, {"photo": b"", "x": b""}):
        root = tmp_path / "unclear.lmdb"
        shutil.rmtree(root, ignore_errors=True)
        stored(root, records, ["photo.png (24,24,3) 1", "photo.v2.png (24,24,3) 1"])
        with pytest.raises(ImageFileError, match=r"photo\.png and photo\.v2\.png share the record 'photo'"):
            build_dataset(options(root))


def test_map_grows(packed, monkeypatch):
    """The first batch says nothing about the size of the rest."""
    monkeypatch.setattr(make_lmdb, "_FIRST_MAP", 2**14)
    monkeypatch.setattr(make_lmdb, "_BATCH", 2)
    folder, root = packed(tuple(f"n{i}" for i in range(7)), side=64)
    assert len(build_dataset(options(root, check_files=True))) == 7
    assert {f.name for f in folder.parent.iterdir()} == {"HR", "HR.lmdb"}


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), lmdb.DiskError("full"), KeyboardInterrupt])
def test_a_packing_that_fails_leaves_nothing(packed, monkeypatch, failure):
    """The old LMDB stays, without a half-made one beside it."""
    folder, root = packed(("a", "b"))
    (folder.parent / ".0123456789ab.HR.lmdb").mkdir()  # as a killed process leaves it

    def fail(*args):
        raise failure

    monkeypatch.setattr(make_lmdb, "_put", fail)
    with pytest.raises((ImageFileError, KeyboardInterrupt)) as caught:
        make_lmdb.make_lmdb(folder, ["a", "b"], "{}", overwrite=True)
    assert failure is KeyboardInterrupt or "HR.lmdb: cannot be written (" in str(caught.value)
    assert {f.name for f in folder.parent.iterdir()} == {"HR", "HR.lmdb"}
    assert len(build_dataset(options(root, check_files=True))) == 2


@pytest.mark.parametrize("name", [" a", "x" * 210, "a\udcff", "a\u2028b"])
def test_names_that_fit_no_record(packed, name, monkeypatch):
    monkeypatch.setattr(make_lmdb, "KEY_BYTES", 200)
    with pytest.raises(ImageFileError, match="does not fit a record"):
        packed((name,))


def _no_meta(root):
    (root / "meta_info.txt").unlink()


def _cut(root):
    with open(root / "data.mdb", "r+b") as file:
        file.truncate(file.seek(0, 2) - 4096)


def _nonsense(root):
    (root / "data.mdb").write_bytes(b"no database" * 1000)


def _unlisted(root):
    with open(root / "meta_info.txt", "a", encoding="utf-8") as file:
        file.write("gone.png (24,24,3) 1\n")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_no_meta, "meta_info.txt, the list of its images, is missing"),
        (_cut, "truncated LMDB"),
        (_nonsense, "damaged LMDB, or none"),
        (lambda root: (root / "data.mdb").unlink(), "no data.mdb"),
        (_unlisted, "lacks records of gone.png"),
        (lambda root: (root / "meta_info.txt").write_bytes(b"\xff\xfea\0"), "not UTF-8"),
        (lambda root: (root / "meta_info.txt").write_text(""), "no usable image"),
    ],
)
def test_what_is_wrong_with_an_lmdb(packed, damage, words):
    """One message that begins with its path."""
    _, root = packed(("a", "b"))
    damage(root)
    with pytest.raises(ValueError, match=words) as caught:
        build_dataset(options(root))
    assert str(root) in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "error", "words"),
    [
        ({"type": "disk"}, ImageFileError, r"an LMDB, read as a folder of images; set io_backend: \{type: lmdb\}"),
        (
            {"type": "lmbd"},
            ValueError,
            r"\{type: disk\} or \{type: lmdb\}, got \{'type': 'lmbd'\} \(did you mean 'lmdb'",
        ),
        ({}, ValueError, "io_backend must be"),
        ("tape", ValueError, "io_backend must be"),
    ],
)
def test_wrong_backend(packed, backend, error, words):
    _, root = packed(("a",))
    with pytest.raises(error, match=words):
        build_dataset(options(root, io_backend=backend))


def test_folder_read_as_lmdb(packed):
    folder, _ = packed(("a",))
    with pytest.raises(ImageFileError, match=r"HR: no LMDB .*set io_backend: \{type: disk\}"):
        build_dataset(options(folder))


def test_stock_data_sets_read_the_same_lmdb(packed):
    """BasicSR's own classes beside ours: shared environment, whole names."""
    _, root = packed()
    ours = build_dataset(options(root))
    single = build_dataset(
        {"name": "s", "type": "SingleImageDataset", "dataroot_lq": str(root), "io_backend": {"type": "lmdb"}}
    )
    pair = {"name": "p", "type": "PairedImageDataset", "phase": "val", "scale": 1, "filename_tmpl": "{}"}
    pair |= {"dataroot_gt": str(root), "dataroot_lq": str(root), "io_backend": {"type": "lmdb"}}
    paired = build_dataset(pair)
    truths = {item["gt_path"].removesuffix(".png"): item["gt"] for item in ours}
    for dataset in (single, paired):
        assert len(dataset) == len(NAMES)
        for i in range(len(dataset)):
            item = dataset[i]
            assert torch.equal(item["lq"], truths[item["lq_path"].removesuffix(".png")])
