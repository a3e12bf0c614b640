"""Scores, table and picture of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from basicsr.metrics import calculate_psnr, calculate_ssim
from PIL import Image, ImageDraw
from rich.table import Table

from ..data.image_files import list_images, read_image
from ..data.matlab_resize import imresize
from ..files import replaced
from ..layers.placement import placement, quantizer_scalars

SCALE = 2
PROTOCOL = {"crop_border": SCALE, "test_y_channel": True}


@dataclass(frozen=True)
class Result:
    """One way to enlarge the test photographs.

    Attributes:
        name: Row label.
        bits: Of weights and activations, as text.
        kib: Size of the network's parameters in KiB, None without a network.
        images: Stem of the photograph -> (H, W, 3) uint8 BGR.
        psnr: Mean over the photographs, on Y, in dB.
        ssim: Mean over the photographs, on Y.
    """

    name: str
    bits: str
    kib: float | None
    images: dict[str, np.ndarray]
    psnr: float
    ssim: float


def truth(root: Path) -> dict[str, np.ndarray]:
    """The test photographs: stem -> image."""
    return {p.stem: read_image(p) for p in list_images(root / "PhotosTest" / "HR")}


def bicubic(root: Path) -> dict[str, np.ndarray]:
    """The test inputs enlarged by MATLAB's bicubic."""
    folder = root / "PhotosTest" / "LR_bicubic" / f"X{SCALE}"
    return {p.stem.removesuffix(f"x{SCALE}"): imresize(read_image(p), SCALE) for p in list_images(folder)}


def saved(folder: Path, name: str) -> dict[str, np.ndarray]:
    """The images that a test run called ``name`` left below ``results``."""
    found = list_images(folder / "results" / name / "visualization" / "PhotosTest")
    return {p.stem.removesuffix(f"_{name}").removesuffix(f"x{SCALE}"): read_image(p) for p in found}


def score(name: str, bits: str, kib: float | None, images: dict, reference: dict) -> Result:
    """PSNR and SSIM as the benchmarks measure them: on Y, without a border of the scale's width."""
    psnr = [calculate_psnr(images[stem], img, **PROTOCOL) for stem, img in reference.items()]
    ssim = [calculate_ssim(images[stem], img, **PROTOCOL) for stem, img in reference.items()]
    return Result(name, bits, kib, images, float(np.mean(psnr)), float(np.mean(ssim)))


def stored_kib(net) -> float:
    """Size of a network's parameters in KiB: quantized ones at their bits, all others at 32."""
    rows = placement(net)
    bits = sum(r.quantized * r.weight_bits + r.full_precision * 32 for r in rows) + quantizer_scalars(net) * 32
    return bits / 8 / 1024


def table(results: list[Result]) -> Table:
    """The results, one row each."""
    out = Table(title=f"x{SCALE} super-resolution of {len(results[0].images)} photographs, PSNR and SSIM on Y")
    for column, justify in (
        ("", "left"),
        ("bits W/A", "center"),
        ("size", "right"),
        ("PSNR", "right"),
        ("SSIM", "right"),
    ):
        out.add_column(column, justify=justify)
    for r in results:
        size = "" if r.kib is None else f"{r.kib:,.0f} KiB"
        out.add_row(r.name, r.bits, size, f"{r.psnr:.2f} dB", f"{r.ssim:.4f}")
    return out


def picture(results: list[Result], reference: dict, path: Path, stem: str = "astronaut0", side: int = 96) -> None:
    """Write the same detail of one photograph from every result, side by side with the original.

    Args:
        results: Columns.
        reference: Original photographs.
        path: PNG to write.
        stem: Which photograph.
        side: Of the detail, in pixels; shown three times as large.
    """
    original = reference[stem]
    top, left = (original.shape[0] - side) // 2, (original.shape[1] - side) // 2
    columns = [("original", original)]
    for r in results:
        columns.append((f"{r.name} {calculate_psnr(r.images[stem], original, **PROTOCOL):.2f} dB", r.images[stem]))
    zoom, gap, caption = 3, 6, 18
    width = len(columns) * (side * zoom + gap) - gap
    sheet = Image.new("RGB", (width, side * zoom + caption), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (text, img) in enumerate(columns):
        detail = cv2.cvtColor(img[top : top + side, left : left + side], cv2.COLOR_BGR2RGB)
        x = i * (side * zoom + gap)
        sheet.paste(Image.fromarray(detail).resize((side * zoom, side * zoom), Image.Resampling.NEAREST), (x, caption))
        draw.text((x + 2, 3), text, fill="black")
    with replaced(path) as part:
        sheet.save(part, format="PNG")


def before_after(
    inputs: Path, results: Path, path: Path, stems: tuple[str, ...] = ("chelsea0", "coffee0"), side: int = 72
) -> None:
    """Write a detail of photographs beside the same detail of their results, as a JPEG.

    Args:
        inputs: Folder of the photographs.
        results: Folder of the results, of the same names.
        path: JPEG to write.
        stems: Which photographs; those that are not there are left out.
        side: Of the detail, in pixels of the photograph.
    """
    zoom, gap, panels = 4, 4, []
    for stem in stems:
        for folder, factor in ((inputs, 1), (results, SCALE)):
            file = folder / f"{stem}x{SCALE}.png"
            if not file.is_file():
                continue
            img = cv2.cvtColor(read_image(file), cv2.COLOR_BGR2RGB)
            size = min(side * factor, *img.shape[:2])
            top, left = ((n - size) // 2 for n in img.shape[:2])
            detail = Image.fromarray(img[top : top + size, left : left + size])
            panels.append(detail.resize((side * zoom, side * zoom), Image.Resampling.NEAREST))
    sheet = Image.new("RGB", (len(panels) * (side * zoom + gap) - gap, side * zoom), "white")
    for i, panel in enumerate(panels):
        sheet.paste(panel, (i * (side * zoom + gap), 0))
    with replaced(path) as part:
        sheet.save(part, format="JPEG", quality=88)
