"""The networks behind LPIPS and ST-LPIPS, built without ever downloading anything.

``lpips`` ships its linear heads, but the ImageNet weights of its trunk are torchvision files. They are read from
torch's cache, checked against the digest in their name, and never fetched in the middle of a test.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..files import hash_file

__all__ = ["MetricError", "distance", "lpips_network", "st_lpips_network"]

# trunk -> torchvision's file; the part after the dash is the start of its SHA-256
_TRUNKS = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
_SOURCE = "https://download.pytorch.org/models/"


class MetricError(RuntimeError):
    """A metric cannot be computed here; the message says what is missing and where to put it."""


def _check_trunk(net: str) -> None:
    if net not in _TRUNKS:
        raise ValueError(f"net: {net!r} is unknown; use one of {', '.join(_TRUNKS)}")


def _package(name: str) -> MetricError:
    return MetricError(f"the package {name} is not installed; pip install 'qmambair_basicsr[metrics]'")


def trunk_file(net: str) -> Path:
    """File with the ImageNet weights of a trunk.

    Raises:
        MetricError: the file is missing or is not the published one.
    """
    name = _TRUNKS[net]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        raise MetricError(
            f"LPIPS ({net}) needs the ImageNet weights {name}: download {_SOURCE}{name} and put it at {path} "
            "(TORCH_HOME moves that folder)"
        )
    digest = hash_file(path)
    expected = path.stem.rsplit("-", 1)[1]
    if not digest.startswith(expected):
        raise MetricError(
            f"{path} is damaged: its SHA-256 begins with {digest[:8]}, not {expected}; download {_SOURCE}{name} again"
        )
    return path


@functools.lru_cache(maxsize=4)
def lpips_network(net: str, device: str = "cpu") -> nn.Module:
    """LPIPS, version 0.1 (Zhang et al., "The unreasonable effectiveness of deep features", CVPR 2018).

    Args:
        net: trunk, ``alex`` or ``vgg``.
        device: where it runs.

    Raises:
        ValueError: unknown trunk.
        MetricError: the package or the trunk's weights are missing.
    """
    _check_trunk(net)
    try:
        import lpips
    except ImportError as err:
        raise _package("lpips") from err
    weights = torch.load(trunk_file(net), map_location="cpu", weights_only=True)
    network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)  # random trunk: no download
    trunk = network.net.state_dict()  # slice3.6.weight holds features.6.weight
    network.net.load_state_dict({key: weights[f"features.{key.split('.', 1)[1]}"] for key in trunk})
    return network.requires_grad_(False).to(device).eval()


@contextmanager
def _without_debug_imports() -> Iterator[None]:
    """Let ``stlpips_pytorch`` be imported without tools it only names.

    Symptom: ``ModuleNotFoundError: No module named 'IPython'`` (or ``torchsummary``), imported for debugging and not
    among its requirements. Delete when: a release no longer imports them.
    """
    placeholders = {"IPython": ("embed",), "torchsummary": ("summary",)}
    added = []
    for name, attributes in placeholders.items():
        try:
            __import__(name)
        except ImportError:
            sys.modules[name] = types.ModuleType(name)
            for attribute in attributes:
                setattr(sys.modules[name], attribute, None)
            added.append(name)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


@functools.lru_cache(maxsize=4)
def st_lpips_network(net: str, device: str = "cpu") -> nn.Module:
    """Shift-tolerant LPIPS (Ghildyal and Liu, "Shift-tolerant perceptual similarity metric", ECCV 2022).

    Its package ships trunk and heads, so nothing has to be downloaded.

    Args:
        net: trunk, ``alex`` or ``vgg``.
        device: where it runs.

    Raises:
        ValueError: unknown trunk.
        MetricError: the package is missing, or lacks a weight.
    """
    _check_trunk(net)
    try:
        with _without_debug_imports():
            from stlpips_pytorch import stlpips
    except ImportError as err:
        raise _package("stlpips_pytorch") from err
    network = stlpips.LPIPS(net=net, variant="shift_tolerant", pretrained=False, verbose=False)
    path = Path(stlpips.__file__).parent / "weights" / "vST0.0" / f"{net}_shift_tolerant.pth"
    if not path.is_file():
        raise MetricError(f"ST-LPIPS ({net}): its package lacks {path}; install stlpips_pytorch again")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    missing = network.load_state_dict(weights, strict=False).missing_keys
    # constants (blur kernels, normalisation) may be left out of the file; weights may not
    missing = [key for key in missing if key in dict(network.named_parameters())]
    if missing:
        raise MetricError(f"ST-LPIPS ({net}): {path} lacks {', '.join(missing[:5])}; install stlpips_pytorch again")
    return network.requires_grad_(False).to(device).eval()


def distance(network: nn.Module, img: np.ndarray, img2: np.ndarray, crop_border: int) -> float:
    """Perceptual distance of two images.

    Args:
        network: see :func:`lpips_network`.
        img, img2: uint8 (H, W, 3) BGR, or (H, W) or (H, W, 1) grey, which is repeated.
        crop_border: pixels left out at every edge.

    Raises:
        ValueError: shapes differ, or nothing is left after cropping.
    """
    if img.shape != img2.shape:
        raise ValueError(f"images of different shapes cannot be compared: {img.shape} and {img2.shape}")
    tensors = []
    for image in (img, img2):
        image = image.reshape(*image.shape[:2], -1)
        if crop_border:
            image = image[crop_border:-crop_border, crop_border:-crop_border]
        if image.size == 0:
            raise ValueError(f"nothing is left of {img.shape} after cropping {crop_border} pixels")
        image = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., ::-1]
        tensors.append(torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32)[None] / 127.5 - 1))
    device = next(network.parameters()).device
    with torch.no_grad():
        return network(*(t.to(device) for t in tensors)).item()
