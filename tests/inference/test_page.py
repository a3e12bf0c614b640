"""The page to look at: what it holds, and how it behaves in a browser."""

from __future__ import annotations

import os
import re
import shutil
import sys
from html.parser import HTMLParser
from typing import ClassVar

import numpy as np
import pytest
from picture_kinds import kinds, scene
from PIL import Image

from qmambair_basicsr.inference.page import Comparison, Detail, collecting, data_uri, detail_of, figure, write_page
from qmambair_basicsr.tools.inference import main


@pytest.fixture(scope="module")
def page(echo, tmp_path_factory):
    """A page of four pictures, one of them left as an earlier run wrote it, one that is broken."""
    folder = tmp_path_factory.mktemp("page")
    source, truth, out = folder / "in", folder / "truth", folder / "out"
    source.mkdir(), truth.mkdir()
    wanted = {"photo.jpg", "alpha.png", "ink.jpg", "sixteen grey.png"}
    for kind in kinds():
        if kind.name in wanted:
            kind.write(source / kind.name)
    (source / "<b>.png").write_bytes(b"no picture")
    Image.fromarray(scene().repeat(2, 0).repeat(2, 1)).save(truth / "photo.png")
    words = ["-o", str(out), "--model", str(echo), "--page", "--truth", str(truth)]
    assert main(["-i", str(source / "photo.jpg"), *words]) == 0
    assert main(["-i", str(source), *words]) == 1
    return out / "page.html"


def test_a_page_is_one_file_that_asks_for_nothing(page):
    text = page.read_text(encoding="utf-8")
    assert text.count('<figure class="compare">') == 4 and text.count("<img ") == 8
    assert not re.search(r"(src|href)=\"(?!data:)|https?://|@import|url\(", text)
    assert re.search(r"PSNR \d\d\.\d\d dB", text) and "no ground truth" in text
    assert "23x18 -&gt; 46x36" in text and "<b>" not in text
    assert [p.name for p in page.parent.glob(".*")] == []


def test_names_are_text(tmp_path):
    picture = scene()
    write_page(
        tmp_path / "p.html", "<script>", 'a & "b"', [figure(Comparison('<img src="x">', picture, picture, ["<i>"]))]
    )
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "<script>\n" in text and "<title>&lt;script&gt;</title>" in text
    assert "&lt;img src=&quot;x&quot;&gt;" in text and "<span>&lt;i&gt;</span>" in text


NAMES = [
    "<script>alert(1)<-script>.png",
    'q"uote.png',
    "apo'strophe.png",
    "amp&amp;.png",
    "[red]100%.png",
    "new\nline.png",
]


def test_names_of_files_are_text_on_the_page_and_in_the_terminal(echo, tmp_path, capsys):
    """With eight flips, and ground truth of another size; a WebP keeps its transparency."""
    source, truth = tmp_path / "in", tmp_path / "truth"
    source.mkdir(), truth.mkdir()
    for name in NAMES:
        Image.fromarray(scene()).save(source / name)
    other = os.fsdecode(b"\xff.png") if sys.platform == "linux" else "other.png"  # no text in UTF-8
    shutil.copy(source / NAMES[0], source / other)
    Image.fromarray(scene()).save(truth / NAMES[1])  # as small as the picture
    glass = scene(channels=4)
    glass[..., 3] = np.linspace(0, 255, glass.shape[1])
    Image.fromarray(glass).save(source / "glass.webp", lossless=True, exact=True)
    out = tmp_path / "out"
    words = ["-i", str(source), "-o", str(out), "--model", str(echo), "--page", "--tta", "--truth", str(truth)]
    assert main([*words, "--quality", "100"]) == 0
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == len(NAMES) + 4 and any("new\\nline.png (23x18" in line for line in shown)
    assert sum("ground truth of another size" in line for line in shown) == 1

    class Headings(HTMLParser):
        tags: ClassVar[list] = []
        texts: ClassVar[list] = []

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)

        def handle_data(self, data):
            self.texts.append((self.tags[-1] if self.tags else "", data))

    Headings().feed((out / "page.html").read_text(encoding="utf-8"))
    headings = [text for tag, text in Headings.texts if tag == "h2"]
    assert sorted(headings) == sorted([*NAMES, "glass.webp", other.replace("\udcff", r"\udcff")])
    assert Headings.tags.count("script") == 1  # the page's own
    with Image.open(out / "glass.webp") as result:
        assert result.mode == "RGBA"
        error = np.asarray(result)[..., 3].astype(int) - glass[..., 3].repeat(2, 0).repeat(2, 1)
        assert np.abs(error).max() <= 1


def test_of_large_pictures_the_part_with_structure_is_shown():
    pixels = np.zeros((900, 2000, 3), np.uint8)
    pixels[500:, 1300:] = np.random.default_rng(0).integers(0, 255, (400, 700, 3))
    shown = detail_of(pixels, 2)
    assert (shown.height, shown.width) == (600, 800)
    assert shown.top >= 200 and shown.left >= 800
    assert detail_of(pixels[:10, :10], 2) == Detail(0, 0, 10, 10)
    strips = [pixels[i : i + 70] for i in range(0, 900, 70)]
    found = []
    assert np.array_equal(np.concatenate(list(collecting(strips, shown, found))), pixels)
    assert np.array_equal(np.concatenate(found), shown.of(pixels))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pictures_inside_are_those_given(channels):
    import base64
    import io

    pixels = scene(channels=channels)
    uri = data_uri(pixels, exact=True)
    assert uri.startswith("data:image/png;base64,")
    got = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    if channels != 2:
        assert np.array_equal(got.reshape(pixels.shape), pixels)
    assert data_uri(pixels).startswith("data:image/")


@pytest.fixture(scope="module")
def browser():
    """Chromium of the system, driven by playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


def value(view, name):
    return view.evaluate(f"e => e.style.getPropertyValue('{name}')")


def test_in_a_browser(page, browser):
    context = browser.new_context(viewport={"width": 900, "height": 700}, has_touch=True)
    tab = context.new_page()
    problems, asked = [], []
    tab.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    sizes = tab.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth])")
    assert len(sizes) == 8 and all(done and width > 0 for done, width in sizes)
    view, slider = tab.locator(".view").first, tab.locator("input").first
    assert value(view, "--split") == "50%"
    slider.focus()
    tab.keyboard.press("End")
    assert value(view, "--split") == "100%"
    box = view.bounding_box()
    at = box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2
    tab.mouse.move(at[0] + 5, at[1])
    tab.mouse.down()
    tab.mouse.move(*at)
    tab.mouse.up()
    assert abs(float(value(view, "--split").rstrip("%")) - 25) < 3
    clip = "e => getComputedStyle(e.querySelector('.after')).clipPath"
    assert value(view, "--split").split(".")[0] in view.evaluate(clip)
    # one zoom for both pictures, by buttons, keys and wheel
    transforms = "e => [...e.querySelectorAll('img')].map(i => getComputedStyle(i).transform)"
    tab.locator("button.in").first.click()
    before, after = view.evaluate(transforms)
    assert before == after != "matrix(1, 0, 0, 1, 0, 0)"
    view.focus()
    tab.keyboard.press("+")
    assert float(value(view, "--zoom")) == pytest.approx(2.25)
    tab.keyboard.press("Shift+ArrowRight")
    tab.keyboard.press("0")
    assert value(view, "--zoom") == "1"
    tab.mouse.move(*at)
    tab.mouse.wheel(0, -300)
    tab.wait_for_function("document.querySelector('.view').style.getPropertyValue('--zoom') > 1.5")
    before, after = view.evaluate(transforms)
    assert before == after
    tab.locator("button.whole").first.click()
    tab.touchscreen.tap(box["x"] + box["width"] * 0.8, at[1])
    assert abs(float(value(view, "--split").rstrip("%")) - 80) < 3
    tab.keyboard.press(" ")
    # two fingers apart
    fingers = """e => {
        const box = e.getBoundingClientRect(), put = (kind, id, x) => e.dispatchEvent(new PointerEvent(kind,
            {pointerId: id, clientX: box.left + x, clientY: box.top + 10, bubbles: true, pointerType: 'touch'}));
        e.setPointerCapture = () => {};
        put('pointerdown', 11, 10); put('pointerdown', 12, 20); put('pointermove', 12, 21); put('pointermove', 12, 32);
        put('pointerup', 11, 10); put('pointerup', 12, 32);
        return +e.style.getPropertyValue('--zoom');
    }"""
    assert view.evaluate(fingers) == pytest.approx(2)
    # the others are where they were
    assert value(tab.locator(".view").nth(1), "--split") == "50%"
    assert not problems
    assert all(url.startswith(("file:", "data:")) for url in asked)
    context.close()
