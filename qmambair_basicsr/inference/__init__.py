"""Running a finished network: opening it from a file, images in and out, tiles.

>>> import qmambair_basicsr.inference as inference
>>> net = inference.open("sr_x2.safetensors")     # a file of weights, packed or .pth, or the name of a shipped one
>>> net.scale, net.channels, net.bits, net.task   # 2, 3, (4, 4), "sr"
>>> net.restore(photo)                            # (H, W, 3) uint8, uint16 or float -> (2 H, 2 W, 3) of the same type
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .restorer import Restorer

__all__ = ["open"]


def open(
    path: str | os.PathLike,
    backend: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    half: bool = False,
    opt: str | os.PathLike | None = None,
    bits: tuple[int, int] | None = None,
) -> Restorer:
    """Open a restoration network from a file of weights alone.

    Args:
        path: packed checkpoint (.safetensors), BasicSR checkpoint or bare state_dict (.pth, .safetensors), or the name of
            a shipped network.
        backend: ``integer`` (native kernels on integer codes; CPU, quantized networks), ``float`` (PyTorch), ``onnx``
            (exported on the fly, onnxruntime), or ``auto``: integer where it can run the network, else float.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto``.
        threads: of PyTorch and the native kernels, for the whole process; None leaves them as they are.
        half: compute in half precision (GPUs only).
        opt: option file whose ``network_g`` describes the network; found from the keys without it.
        bits: of weights and activations, where the keys of quantizers do not show them; never other than those shown.

    Returns:
        The network as an object with ``scale``, ``channels``, ``bits``, ``task`` and ``restore(array)``.

    Raises:
        CheckpointError, PackedCheckpointError: the file cannot be read, or is of no known network.
        OptionFileError: ``opt`` describes no network.
        BackendError: the backend or device is not there, or cannot run this network.
        ValueError: an argument of another kind; ``opt`` for a file that describes itself; ``bits`` that are not its own.
    """
    from .opening import open_restorer

    return open_restorer(path, backend, device, threads, half, opt, bits)
