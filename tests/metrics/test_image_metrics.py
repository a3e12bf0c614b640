"""PSNR and SSIM against scikit-image on photographs; LPIPS and its messages."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_metric
from skimage import data as photos
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from qmambair_basicsr.data.jpeg_codec import jpeg_roundtrip
from qmambair_basicsr.metrics import perceptual
from qmambair_basicsr.metrics.perceptual import MetricError

SSIM_OF_THE_PAPER = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}


@pytest.fixture(scope="module", params=["astronaut", "coffee"])
def pair(request):
    """A photograph (BGR) and its JPEG version."""
    img = np.ascontiguousarray(getattr(photos, request.param)()[:150, :200, ::-1])
    return jpeg_roundtrip(img, 30), img


@pytest.fixture(scope="module")
def small_pair():
    """A piece of a photograph, for the networks."""
    img = np.ascontiguousarray(photos.astronaut()[60:124, 180:260, ::-1])
    return jpeg_roundtrip(img, 30), img


def _metric(pair, kind, **options):
    return calculate_metric({"img": pair[0], "img2": pair[1]}, {"type": f"calculate_{kind}", **options})


def _crop(img, border):
    return img[border:-border, border:-border] if border else img


def _ssim(a, b, **options):
    """Mean over windows that lie inside the image, as the original MATLAB code takes it."""
    _, full = structural_similarity(a, b, full=True, **SSIM_OF_THE_PAPER, **options)
    return full[5:-5, 5:-5].mean()


@pytest.mark.parametrize("border", [0, 2, 4])
def test_rgb_against_scikit_image(pair, border):
    """Denoising protocol: all channels."""
    a, b = (_crop(img, border) for img in pair)
    options = {"crop_border": border, "test_y_channel": False}
    assert _metric(pair, "psnr", **options) == pytest.approx(peak_signal_noise_ratio(b, a), abs=1e-9)
    assert _metric(pair, "ssim", **options) == pytest.approx(_ssim(b, a, channel_axis=2), abs=1e-9)


@pytest.mark.parametrize("border", [2, 3, 4])
def test_y_against_scikit_image(pair, border):
    """Super-resolution protocol: Y of BT.601 in floating point, border cropped."""
    a, b = (rgb2ycbcr(_crop(img, border)[..., ::-1])[..., 0] for img in pair)
    options = {"crop_border": border, "test_y_channel": True}
    # BasicSR computes Y in float32
    assert _metric(pair, "psnr", **options) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=255), abs=1e-4)
    assert _metric(pair, "ssim", **options) == pytest.approx(_ssim(b, a), abs=1e-6)


def test_grey_against_scikit_image(pair):
    """JPEG protocol: one channel, nothing cropped."""
    grey = [cv2.cvtColor(img, cv2.COLOR_BGR2GRAY) for img in pair]
    psnr = calculate_metric({"img": grey[0], "img2": grey[1]}, {"type": "calculate_psnr", "crop_border": 0})
    assert psnr == pytest.approx(peak_signal_noise_ratio(grey[1], grey[0]), abs=1e-9)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_st_lpips(small_pair, net):
    """Works with what its package ships; zero for equal images, grows with the damage, symmetric, deterministic."""
    pytest.importorskip("stlpips_pytorch")
    damaged, clean = small_pair
    worse = jpeg_roundtrip(clean, 5)
    mild = _metric((damaged, clean), "st_lpips", net=net, crop_border=2)
    assert _metric((clean, clean), "st_lpips", net=net) == pytest.approx(0, abs=1e-6)
    assert 0 < mild < _metric((worse, clean), "st_lpips", net=net, crop_border=2) < 2
    assert _metric((damaged, clean), "st_lpips", net=net, crop_border=2) == mild
    assert _metric((clean, damaged), "st_lpips", net=net, crop_border=2) == pytest.approx(mild, rel=1e-5)
    assert _metric((damaged[..., 0], clean[..., 0]), "st_lpips", net=net) > 0


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """An empty cache for downloaded weights."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    perceptual.lpips_network.cache_clear()
    yield tmp_path / "checkpoints"
    perceptual.lpips_network.cache_clear()


@pytest.mark.parametrize(("net", "file"), [("alex", "alexnet-owt-7be5be79.pth"), ("vgg", "vgg16-397923af.pth")])
def test_lpips_says_what_to_download(small_pair, torch_home, net, file):
    """Missing, then damaged weights: what, from where, to where."""
    pytest.importorskip("lpips")
    with pytest.raises(MetricError, match=file) as caught:
        _metric(small_pair, "lpips", net=net)
    assert str(torch_home / file) in str(caught.value)
    assert f"https://download.pytorch.org/models/{file}" in str(caught.value)
    torch_home.mkdir()
    (torch_home / file).write_bytes(b"half a download")
    with pytest.raises(MetricError, match="is damaged: its SHA-256 begins with"):
        _metric(small_pair, "lpips", net=net)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_uses_the_file_that_is_there(small_pair, torch_home, net, monkeypatch):
    """With a trunk of torchvision's layout in place the metric is that of ``lpips`` with these weights."""
    lpips = pytest.importorskip("lpips")
    from torchvision import models

    torch.manual_seed(3)
    trunk = {"alex": models.alexnet, "vgg": models.vgg16}[net](weights=None)
    file = torch_home / "any.pth"
    file.parent.mkdir()
    torch.save({k: v for k, v in trunk.state_dict().items() if k.startswith("features.")}, file)
    monkeypatch.setattr(perceptual, "trunk_file", lambda name: file)
    torch.manual_seed(4)
    ours = _metric(small_pair, "lpips", net=net)
    reference = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    names = {key: f"features.{key.split('.', 1)[1]}" for key in reference.net.state_dict()}
    reference.net.load_state_dict({key: trunk.state_dict()[name] for key, name in names.items()})
    a, b = (torch.from_numpy(lpips.im2tensor(img[..., ::-1].copy()).numpy()) for img in small_pair)
    with torch.no_grad():
        assert ours == pytest.approx(reference(a, b).item(), rel=1e-4)
    assert ours > 0


@pytest.mark.parametrize("kind", ["lpips", "st_lpips"])
def test_errors(small_pair, kind):
    """Unknown trunks, unequal shapes, nothing left."""
    with pytest.raises(ValueError, match="'squeeze' is unknown; use one of alex, vgg"):
        _metric(small_pair, kind, net="squeeze")
    pytest.importorskip("stlpips_pytorch")
    network = perceptual.st_lpips_network("alex")
    with pytest.raises(ValueError, match="different shapes"):
        perceptual.distance(network, small_pair[0], small_pair[1][:-1], 0)
    with pytest.raises(ValueError, match="nothing is left"):
        perceptual.distance(network, small_pair[0][:4], small_pair[1][:4], 2)


def test_missing_package_is_named(monkeypatch):
    """Without the extra, the message says which package and how to get it."""
    import sys

    monkeypatch.setitem(sys.modules, "lpips", None)
    perceptual.lpips_network.cache_clear()
    with pytest.raises(MetricError, match=r"lpips is not installed; pip install 'qmambair_basicsr\[metrics\]'"):
        perceptual.lpips_network("alex")


def test_equal_images_have_infinite_psnr(pair):
    """The convention of the tables."""
    assert math.isinf(_metric((pair[1], pair[1]), "psnr", crop_border=0))
