"""Pixels on their way from file to file: strips, PNG rows, other sizes, transparency, panoramas."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pytest
import tifffile
from picture_kinds import SRGB, scene
from PIL import Image

from qmambair_basicsr.data.image_files import ImageFileError
from qmambair_basicsr.data.matlab_resize import imresize
from qmambair_basicsr.inference.picture_files import FORMATS, Layout, mode_in, write_picture
from qmambair_basicsr.inference.pictures import About, Picture, read_picture, read_size
from qmambair_basicsr.inference.png_stream import write_png
from qmambair_basicsr.inference.resampling import resized_strips
from qmambair_basicsr.inference.restoring import without_hidden_colours


def cut(pixels, rows):
    """Strips of these heights, again and again."""
    top, number = 0, 0
    while top < len(pixels):
        yield pixels[top : top + rows[number % len(rows)]]
        top, number = top + rows[number % len(rows)], number + 1


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("whole", [255, 65535])
def test_png_rows(mode, whole):
    pixels = scene(150, 41, len(mode), whole)
    pixels[70:90] = np.random.default_rng(0).integers(0, whole, pixels[70:90].shape)
    file = io.BytesIO()
    write_png(file, cut(pixels, (1, 70, 3)), mode, 41, 150, whole > 255, SRGB, None, (300, 200))
    with Image.open(io.BytesIO(file.getvalue())) as image:
        image.load()
        assert image.size == (41, 150) and image.info["icc_profile"] == SRGB
        assert image.info["dpi"] == pytest.approx((300, 200), abs=0.01)
        if whole == 255:
            assert image.mode == mode and np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)
    got = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_UNCHANGED).reshape(150, 41, -1)
    order = {"L": [0], "LA": [0, -1], "RGB": [2, 1, 0], "RGBA": [2, 1, 0, 3]}[mode]
    assert np.array_equal(got[..., order], pixels)


@pytest.mark.parametrize("wrong", [scene(5, 8), scene(4, 9), scene(4, 8, 1), scene(4, 8, 3, 65535)])
def test_png_rows_of_another_picture_are_refused(wrong):
    with pytest.raises(ValueError, match="rows"):
        write_png(io.BytesIO(), [wrong], "RGB", 8, 4, False)


@pytest.mark.parametrize("wanted", [(45, 60), (20, 33), (31, 90), (1, 1), (30, 40)])
def test_strips_of_another_size(wanted):
    pixels = scene(30, 40, 3).astype(np.float32) / 255
    got = np.concatenate(list(resized_strips(cut(pixels, (7, 1, 12)), (30, 40), wanted)))
    assert got.shape == (*wanted, 3) and got.dtype == np.float32
    if (scale := wanted[0] / 30) == wanted[1] / 40:
        assert np.abs(got - imresize(pixels, scale)).max() < 1e-5
    eight = np.concatenate(list(resized_strips(cut(scene(30, 40), (9,)), (30, 40), wanted)))
    assert eight.dtype == np.uint8 and np.abs(eight / 255 - got.clip(0, 1)).max() < 1 / 255


def test_hidden_colours_do_not_bleed():
    colours = np.zeros((9, 9, 3), np.uint8)
    alpha = np.zeros((9, 9), np.uint8)
    colours[2:5, 2:5], alpha[2:5, 2:5] = (200, 100, 50), 255
    colours[4, 4], alpha[4, 4] = (10, 20, 30), 1  # hardly visible, but not hidden
    filled = without_hidden_colours(colours, alpha)
    assert np.array_equal(filled[alpha > 0], colours[alpha > 0])
    assert (filled[0, 0] == (200, 100, 50)).all() and (filled[8, 8] == (10, 20, 30)).all()
    assert without_hidden_colours(colours, alpha * 0) is colours


def test_what_a_format_has_no_room_for():
    assert mode_in(FORMATS["JPEG"], "RGBA") == "RGB" and mode_in(FORMATS["JPEG"], "LA") == "L"
    assert mode_in(FORMATS["WEBP"], "LA") == "RGBA" and mode_in(FORMATS["PNG"], "CMYK") == "RGB"
    with pytest.raises(ValueError, match="room for 16383"):
        write_picture("x.webp", [], FORMATS["WEBP"], Layout("RGB", 20000, 10), About())
    glass = Picture(np.array([[[100, 0], [100, 255]]], np.uint8), "LA", "PNG")
    assert glass.in_mode("RGB").pixels.tolist() == [[[255] * 3, [100] * 3]]


def test_animations_and_damaged_files_are_named(tmp_path):
    frames = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(3)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageFileError, match=r"film\.gif: an animation of 3 pictures"):
        read_size(tmp_path / "film.gif")
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    for read in (read_size, read_picture):
        with pytest.raises(ImageFileError, match=r"pages\.tif: a file of 3 pages"):
            read(tmp_path / "pages.tif")
    frames[0].save(tmp_path / "phone.mpo", save_all=True, append_images=frames[1:])
    assert read_picture(tmp_path / "phone.mpo").about.notes == ("the first of 3 pictures in it",)
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as writer:  # a small copy is no page
        writer.write(scene(40, 60), photometric="rgb")
        writer.write(scene(20, 30), photometric="rgb", subfiletype=1)
    assert read_picture(tmp_path / "pyramid.tif").pixels.shape == (40, 60, 3)
    Image.fromarray(scene(200, 200)).save(tmp_path / "photo.jpg", quality=95)
    content = (tmp_path / "photo.jpg").read_bytes()
    (tmp_path / "photo.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageFileError, match="truncated"):
        read_picture(tmp_path / "photo.jpg")
    cv2.imwrite(str(tmp_path / "deep.png"), scene(200, 200, whole=65535))
    content = (tmp_path / "deep.png").read_bytes()
    (tmp_path / "deep.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageFileError, match="truncated"):
        read_picture(tmp_path / "deep.png")


def test_planes_and_inverted_grey_are_read_as_they_are_meant(tmp_path):
    colour, grey = scene(whole=65535), scene(channels=1, whole=65535)[..., 0]
    for order in "<>":
        for planar, pixels in (("separate", np.moveaxis(colour, -1, 0)), ("contig", colour)):
            tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", planarconfig=planar, byteorder=order)
            assert np.array_equal(read_picture(tmp_path / "a.tif").pixels, colour)
    tifffile.imwrite(tmp_path / "a.tif", 65535 - grey, photometric="miniswhite")
    assert np.array_equal(read_picture(tmp_path / "a.tif").pixels[..., 0], grey)


@pytest.mark.parametrize(("kind", "channels"), [(np.float32, 1), (np.float32, 3), (np.float64, 1), (np.uint32, 3)])
def test_samples_of_other_kinds_are_named_with_what_to_do(tmp_path, kind, channels):
    pixels = scene(channels=channels).astype(kind)
    pixels = pixels[..., 0] if channels == 1 else pixels
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb" if channels == 3 else "minisblack")
    with pytest.raises(
        ImageFileError, match=r"a\.tif: .*samples.*; convert it to 8 or 16 bits per sample, such as a PNG$"
    ) as raised:
        read_size(tmp_path / "a.tif")
    assert "replace or remove" not in str(raised.value)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_large_pictures_are_written_as_they_come(tmp_path, ending):
    """A result of 108 MB: the process that writes it must not hold it."""
    code = f"""
        import resource, sys
        import numpy as np
        from qmambair_basicsr.inference.picture_files import FORMATS, Layout, write_picture
        from qmambair_basicsr.inference.pictures import About
        from qmambair_basicsr.inference.resampling import resized_strips
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        strips = (np.full((100, 6000, 3), i, np.uint8) for i in range(60))
        write_picture(sys.argv[1], strips, FORMATS["{"PNG" if ending == "png" else "TIFF"}"], Layout("RGB", 6000, 6000), About())
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024)
    """
    path = tmp_path / f"large.{ending}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60
    assert read_size(path).width == read_size(path).height == 6000
