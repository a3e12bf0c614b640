"""Running an artifact on whole images."""

from __future__ import annotations

from torch import Tensor

from ..inference.tiling import fixed_spans, pad_to, run_padded, run_tiled


def restore(network, image: Tensor, size: tuple[int, int] | None, multiple: int = 1, overlap: int = 16) -> Tensor:
    """Run a network on an image of any size.

    Args:
        network: function of image tensors.
        image: (1, C, H, W).
        size: (height, width) of the tiles of a network with fixed sides; None for the whole image at once.
        multiple: sides of a whole image are padded to multiples of this.
        overlap: pixels that neighbouring tiles share at least; less where a tile is not larger.

    Returns:
        (1, C, H * scale, W * scale).
    """
    height, width = image.shape[-2:]
    if size is None:
        return run_padded(network, image, multiple)[0]
    filled = pad_to(image, max(height, size[0]), max(width, size[1]))

    def plan(side: int):
        return lambda length: fixed_spans(length, side, min(overlap, side - 1))

    y = run_tiled(network, filled, plan(size[0]), column_plan=plan(size[1]))
    scale = y.shape[-1] // filled.shape[-1]
    return y[..., : height * scale, : width * scale]
