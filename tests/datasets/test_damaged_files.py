"""Damaged inputs: one clear error that names the file, or left out and reported."""

from __future__ import annotations

import logging
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataset

from qmambair_basicsr.data.image_files import ImageFileError, decode_image, read_image, write_image

VICTIM = "img001"  # the file that is damaged


def _encode(img, suffix=".png"):
    return cv2.imencode(suffix, img)[1].tobytes()


def _truncate(part):
    def damage(path):
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])

    return damage


def _write(content):
    return lambda path: path.write_bytes(content)


def _image(make):
    return lambda path: path.write_bytes(_encode(make(cv2.imread(str(path)))))


def _flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def _truncated_jpeg(path):
    content = _encode(cv2.imread(str(path)), ".jpg")
    path.write_bytes(content[: len(content) * 2 // 3])


def _png_without_pixels(path):
    """Valid chunks and checksums, but no IDAT."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 48, 48, 8, 2, 0, 0, 0)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def _replace_by_folder(path):
    path.unlink()
    path.mkdir()


def _dangling_link(path):
    path.unlink()
    path.symlink_to(path.with_name("gone.png"))


# what happens to a file, and a word its error must contain besides the file's name; both sides suffer each
CONTENT = {
    "zero bytes": (_write(b""), "empty"),
    "one byte": (_write(b"\x89"), "not an image"),
    "signature only": (_write(b"\x89PNG\r\n\x1a\n"), "truncated"),
    "cut at 10 %": (_truncate(0.1), "truncated"),
    "cut at half": (_truncate(0.5), "truncated"),
    "cut at 99 %": (_truncate(0.99), "truncated"),
    "flipped byte": (_flip_byte, "damaged|truncated"),
    "no pixel data": (_png_without_pixels, "decod|not an image"),
    "text": (_write(b"this is not an image\n" * 50), "not an image"),
    "html error page": (_write(b"<!DOCTYPE html><title>404</title>" * 9), "not an image"),
    "truncated jpeg": (_truncated_jpeg, "truncated JPEG"),
    "alpha channel": (_image(lambda i: cv2.cvtColor(i, cv2.COLOR_BGR2BGRA)), "4 channels"),
    "16 bits": (_image(lambda i: i.astype(np.uint16) * 257), "16 bits"),
    "grey beside colour": (_image(lambda i: i[..., 0]), "channels"),
    "1 x 1": (_image(lambda i: i[:1, :1]), "pixels"),
    "odd size": (_image(lambda i: i[:-3, :-5]), "pixels"),
    "transposed strip": (_image(lambda i: i[:, :13]), "pixels"),
    "larger": (_image(lambda i: np.concatenate([i, i])), "pixels"),
    "missing": (lambda path: path.unlink(), "is not in|no ground truth"),
    "renamed": (lambda path: path.rename(path.with_name("other.png")), "is not in|no ground truth"),
    "folder of that name": (_replace_by_folder, "directory"),
    "dangling link": (_dangling_link, "No such file"),
}
CASES = [(side, kind) for kind in CONTENT for side in ("gt", "lq")]


def _options(hr, lr, **more):
    return {
        "name": "damaged",
        "type": "RestorationPairDataset",
        "phase": "val",
        "scale": 2,
        "dataroot_gt": str(hr),
        "dataroot_lq": str(lr),
        "filename_tmpl": "{}x2",
        "io_backend": {"type": "disk"},
        **more,
    }


def test_at_least_thirty_kinds():
    """The bar: 30 damaged inputs."""
    assert len(CASES) >= 30


@pytest.mark.parametrize(("side", "kind"), CASES)
def test_error_names_the_file(image_set, side, kind):
    """Found when the sample is read, and before that with ``check_files``; the message is one line."""
    hr, lr = image_set(3)
    damage, words = CONTENT[kind]
    damage(hr / f"{VICTIM}.png" if side == "gt" else lr / f"{VICTIM}x2.png")
    for check in (False, True):
        with pytest.raises(ImageFileError, match=words) as caught:
            dataset = build_dataset(_options(hr, lr, check_files=check))
            assert not check, "the check let it pass"
            for i in range(len(dataset)):
                dataset[i]
        message = str(caught.value)
        assert VICTIM in message or "other" in message
        assert "\n" not in message


@pytest.mark.parametrize("kind", ["cut at half", "1 x 1", "missing"])
def test_error_names_the_file_through_worker_processes(image_set, kind):
    """The name survives the way from a loader's worker process."""
    hr, lr = image_set(3)
    damage, _ = CONTENT[kind]
    with pytest.raises(ImageFileError, match=VICTIM):
        damage(hr / f"{VICTIM}.png")
        dataset = build_dataset(_options(hr, lr, phase="train", gt_size=16))
        list(torch.utils.data.DataLoader(dataset, batch_size=3, num_workers=1))


def test_a_hundred_images_with_three_damaged(image_set, caplog):
    """``on_error: skip`` leaves out exactly the damaged ones and lists them; ``stop`` names all three at once."""
    hr, lr = image_set(100, side=26)
    bad = ["img007", "img050", "img099"]
    CONTENT["cut at half"][0](hr / "img007.png")
    CONTENT["zero bytes"][0](lr / "img050x2.png")
    CONTENT["missing"][0](lr / "img099x2.png")
    logging.getLogger("basicsr").propagate = True
    with caplog.at_level(logging.WARNING, logger="basicsr"):
        dataset = build_dataset(_options(hr, lr, on_error="skip"))
    assert len(dataset) == 97
    names = {dataset[i]["gt_path"].rsplit("/", 1)[1].removesuffix(".png") for i in range(97)}
    assert names.isdisjoint(bad)
    assert "3 bad files" in caplog.text
    assert all(name in caplog.text for name in bad)
    (hr / "img099.png").unlink()
    with pytest.raises(ImageFileError, match="2 bad files") as caught:
        build_dataset(_options(hr, lr, check_files=True))
    assert all(name in str(caught.value) for name in bad[:2])


def test_all_damaged(image_set):
    """Leaving out everything is an error, not an empty epoch."""
    hr, lr = image_set(2)
    for file in hr.iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="no usable image"):
        build_dataset(_options(hr, lr, on_error="skip"))


def test_unreadable_file_says_so(tmp_path):
    """A path that is not there."""
    with pytest.raises(ImageFileError, match=r"gone\.png: No such file"):
        read_image(tmp_path / "gone.png")


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("restart", [0, 2])
def test_a_jpeg_ends_where_its_image_ends(tmp_path, progressive, restart):
    """What phones append (a video, a second picture) is not looked at; every shorter file is truncated."""
    img = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8), (5, 5), 0)
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_RST_INTERVAL, restart]
    content = cv2.imencode(".jpg", img, options)[1].tobytes()
    expected = decode_image(content, "plain")
    for trailer in (b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 9, content[: len(content) // 2], b"\xff\xd8\xff\xda"):
        np.testing.assert_array_equal(decode_image(content + trailer, "motion photo"), expected)
    # a preview in the header is no end
    preview = b"\xff\xe1" + (2 + len(content)).to_bytes(2, "big") + content
    np.testing.assert_array_equal(decode_image(content[:2] + preview + content[2:], "preview"), expected)
    for size in (3, len(content) // 3, len(content) - 2, len(content) - 1):
        with pytest.raises(ImageFileError, match=r"cut\.jpg: truncated JPEG"):
            decode_image(content[:size], "cut.jpg")


def test_write_image_leaves_nothing_behind_on_failure(tmp_path, monkeypatch):
    """An interrupted write keeps the old file and no temporary one."""
    target = tmp_path / "a.png"
    write_image(target, np.zeros((4, 4, 3), np.uint8))
    before = target.read_bytes()

    def fail(source, destination):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_image(target, np.ones((4, 4, 3), np.uint8))
    assert target.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["a.png"]
