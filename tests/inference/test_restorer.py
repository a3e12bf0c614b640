"""Opened networks: arrays in and out, tiles, one grid for all tiles, memory that ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from tiny_restorers import NETWORK

import qmambair_basicsr.inference as inference
from qmambair_basicsr.inference import backends, memory, restorer
from qmambair_basicsr.inference.backends import BackendError
from qmambair_basicsr.inference.restorer import RestoreError, Restorer

CPU = torch.device("cpu")


def photo(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A smooth picture with some structure, uint8."""
    y, x = np.mgrid[:height, :width]
    planes = [127 + 90 * np.sin(x / (5 + c)) * np.cos(y / (7 - c)) for c in range(channels)]
    return np.stack(planes, -1).round().astype(np.uint8)


@pytest.fixture(scope="module")
def opened(packed):
    return inference.open(packed, backend="float")


def test_an_opened_network_says_what_it_is(opened):
    assert (opened.scale, opened.channels, opened.bits, opened.task) == (2, 3, (4, 4), "sr")
    assert opened.architecture == "QMambaIR" and opened.follows and opened.backend == "float"


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 3), (1, 1), (1, 1, 3)])
def test_results_have_the_type_and_the_channels_of_the_image(opened, kind, shape):
    image = photo(*shape[:2], 3)[..., : shape[2] if len(shape) == 3 else 1].reshape(shape)
    whole = np.iinfo(kind).max if np.dtype(kind).kind == "u" else 1
    given = (image / 255 * whole).astype(kind)
    result = opened.restore(given)
    assert result.dtype == kind and result.shape == (2 * shape[0], 2 * shape[1], *shape[2:])
    eight = opened.restore(image).astype(float) / 255
    # floating point is not clipped
    assert np.abs((result.astype(float) / whole).clip(0, 1) - eight).max() <= 2 / 255


def test_a_grey_network_restores_each_colour():
    options = {k: v for k, v in NETWORK.items() if k != "quant"} | {"type": "MambaIR", "in_chans": 1}
    net = Restorer(build_network(options).eval(), "float", CPU, False)
    image = photo(6, 5)
    assert net.channels == 1 and net.bits == (32, 32)
    each = [net.restore(np.ascontiguousarray(image[..., c])) for c in range(3)]
    assert np.abs(net.restore(image).astype(int) - np.stack(each, -1)).max() <= 1


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8), np.zeros((3, 3), int), None, "a", [[1]]]
)
def test_what_is_no_image_is_refused(opened, image):
    with pytest.raises(ValueError, match="images are"):
        opened.restore(image)


@pytest.mark.parametrize("kind", [">u2", ">f4", ">f8", "<u2", "u1", "<f2"])
def test_arrays_of_either_order_of_bytes(opened, kind):
    native = np.dtype(kind).newbyteorder("=")
    image = (
        photo(20, 21)
        if native == np.uint8
        else (photo(20, 21) / 255 * (65535 if native == np.uint16 else 1)).astype(native)
    )
    result = opened.restore(image.astype(kind), tile=np.int64(16), overlap=np.uint8(4))
    assert result.dtype == np.dtype(kind) and np.array_equal(
        result.astype(native), opened.restore(image, tile=16, overlap=4)
    )


def test_the_usual_overlap_fits_small_tiles(opened):
    assert [opened.tiles(300, 300, tile).rows.spans[1].start for tile in (200, 64, 48, 33)] == [
        opened.tiles(300, 300, tile, overlap).rows.spans[1].start
        for tile, overlap in ((200, 32), (64, 32), (48, 24), (33, 16))
    ]
    assert opened.restore(photo(40, 40), tile=16).shape == (80, 80, 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"tile": True}, "tile: True"),
        ({"tile": 32.0}, r"tile: 32\.0"),
        ({"tile": 0}, "tile: 0"),
        ({"tile": "all"}, "tile: 'all'"),
        ({"overlap": -1}, "overlap: -1"),
        ({"overlap": "a"}, "overlap: 'a'"),
        ({"tile": 32, "overlap": 32}, "leave nothing of tiles of 32"),
    ],
)
def test_what_is_no_tile_is_refused(opened, words, said):
    with pytest.raises(ValueError, match=said):
        opened.restore(photo(40, 40), **words)


@pytest.mark.parametrize("threads", [0, -1, "a", 1.5, True])
def test_what_is_no_number_of_threads_is_refused(packed, threads):
    with pytest.raises(ValueError, match=r"threads: .* is no whole number of at least 1"):
        inference.open(packed, threads=threads)


@pytest.mark.parametrize(
    "words", [{"device": None}, {"device": 3}, {"device": "cpuu"}, {"backend": None}, {"backend": 1}]
)
def test_what_is_no_device_or_backend_is_refused(packed, words):
    with pytest.raises(BackendError, match="is unknown"):
        inference.open(packed, **words)


@pytest.mark.parametrize("path", [None, 3, b"sr_x2", ["sr_x2"]])
def test_what_is_no_file_is_refused(path):
    with pytest.raises(ValueError, match="is no file of weights"):
        inference.open(path)


def test_what_a_file_says_of_itself_is_not_asked_for_otherwise(packed, tmp_path):
    with pytest.raises(ValueError, match=r"4/4 bits .*, not of the 2/2 asked for"):
        inference.open(packed, bits=(2, 2))
    with pytest.raises(ValueError, match="describes its network itself"):
        inference.open(packed, opt=tmp_path / "options.yml")
    with pytest.raises(ValueError, match="is no pair"):
        inference.open(packed, bits=4)
    assert inference.open(packed, bits=[4, 4]).bits == (4, 4)


def test_tiles_share_one_grid(opened, monkeypatch):
    """A picture of a dark and a bright half: grids that follow each tile would differ, one for all tiles does not."""
    seen = []
    build = backends.build
    monkeypatch.setattr(backends, "build", lambda net, *rest: seen.append(net) or build(net, *rest))
    image = photo(40, 70)
    image[:, 35:] //= 8
    result = opened.restore(image, tile=40, overlap=8)
    assert len(seen) == 1 and not any(q.dynamic for q in seen[0].modules() if hasattr(q, "dynamic") and q.role == "act")
    whole = opened.restore(image, tile="off")
    assert len(seen) == 1  # one tile: the grid of the image itself
    assert abs(float(result.mean()) - float(whole.mean())) < 2


def test_progress_counts_every_tile(opened):
    told = []
    opened.restore(photo(50, 50), tile=30, overlap=6, progress=lambda done, total: told.append((done, total)))
    assert told == [(i + 1, 4) for i in range(4)]


def test_strips_are_the_whole_image(opened):
    image = photo(50, 31)
    strips = list(opened.strips(image, tile=24, overlap=4))
    assert len(strips) > 1
    assert np.array_equal(np.concatenate(strips), opened.restore(image, tile=24, overlap=4))


def test_eight_flips_commute_with_the_flips_of_the_image(opened):
    image = photo(12, 9)
    result = opened.restore(image, tta=True)
    for turn in (lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a.swapaxes(0, 1)):
        turned = turn(opened.restore(np.ascontiguousarray(turn(image)), tta=True))
        assert np.abs(turned.astype(int) - result).max() <= 1
    assert np.abs(opened.restore(image).astype(int) - result).max() > 0


@pytest.mark.parametrize("tile", ["auto", 40])
def test_memory_that_ends_makes_smaller_tiles(opened, monkeypatch, caplog, tile):
    asked = []

    def scarce(net, *rest):
        def network(x):
            asked.append(tuple(x.shape[-2:]))
            if max(x.shape[-2:]) > 30:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
            return torch.nn.functional.interpolate(x, scale_factor=2)

        return network, "float"

    monkeypatch.setattr(restorer, "SMALLEST_TILE", 8)
    monkeypatch.setattr(opened, "_network", scarce(None)[0])
    monkeypatch.setattr(opened, "_limit", restorer._Limit())
    monkeypatch.setattr(backends, "build", scarce)
    image = photo(64, 40)
    result = opened.restore(image, tile=tile, overlap=4)
    assert np.array_equal(result, image.repeat(2, 0).repeat(2, 1))
    assert max(map(max, asked[-3:])) <= 30
    assert len([r for r in caplog.records if "memory ended" in r.message]) == 1


def test_memory_that_ends_with_small_tiles_too_is_an_error(opened, monkeypatch):
    def none_left(x):
        raise MemoryError

    monkeypatch.setattr(opened, "_network", none_left)
    monkeypatch.setattr(opened, "_limit", restorer._Limit())
    with pytest.raises(RestoreError, match="memory ends even with tiles"):
        opened.restore(photo(20, 20))


def test_nan_is_no_picture(opened, monkeypatch):
    monkeypatch.setattr(opened, "_network", lambda x: x.repeat(1, 1, 2, 2) * float("nan"))
    with pytest.raises(RestoreError, match="NaN"):
        opened.restore(photo(8, 8))


def test_wider_networks_get_smaller_tiles(opened, monkeypatch):
    wide = torch.nn.Linear(64, 4096)
    monkeypatch.setattr(memory, "available", lambda: 1 << 30)
    assert 64 <= memory.tile_side(wide, CPU) < memory.tile_side(opened.net, CPU) <= 256


def test_backends_that_are_not_there_are_named(opened, packed):
    with pytest.raises(BackendError, match="did you mean 'float'"):
        inference.open(packed, backend="floats")
    with pytest.raises(BackendError, match="device 'gpu' is unknown"):
        inference.open(packed, device="gpu")
    with pytest.raises(BackendError, match="half precision is for GPUs"):
        inference.open(packed, half=True)
    full = build_network({k: v for k, v in NETWORK.items() if k != "quant"} | {"type": "MambaIR"})
    with pytest.raises(BackendError, match="not quantized"):
        backends.runs_on(full, "integer", CPU, False)
    assert backends.runs_on(full, "auto", CPU, False) == "float"


def test_the_onnx_backend_runs_what_is_exported(packed, monkeypatch):
    """Exporting takes a minute, and is tested where it is at home; here it writes a graph that doubles every pixel."""
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    from qmambair_basicsr.artifacts.onnx import file

    def export(net, path, settings):
        assert settings.dynamic and net.eval_only is True
        shape = [1, 3, "h", "w"], [1, 3, "h2", "w2"]
        given, made = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
            for name, dims in zip(("input", "output"), shape, strict=True)
        )
        scales = helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, 2, 2])
        node = helper.make_node(
            "Resize",
            ["input", "", "scales"],
            ["output"],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        model = helper.make_model(
            helper.make_graph([node], "g", [given], [made], [scales]), opset_imports=[helper.make_opsetid("", 18)]
        )
        model.ir_version = 9
        helper.set_model_props(model, {"size_multiple": "1", "scale": "2"})
        path.write_bytes(model.SerializeToString())

    monkeypatch.setattr(file, "export_onnx", export)
    net = inference.open(packed, backend="float").net
    net.eval_only = True
    made = Restorer(net, "onnx", CPU, False)
    image = photo(20, 24)
    assert made.backend == "onnx" and np.array_equal(made.restore(image), image.repeat(2, 0).repeat(2, 1))


def test_tiles_of_a_network_of_convolutions_have_no_seam():
    """With the default overlap, where the context is that of convolutions alone, a tile knows what the whole knows."""
    net = build_network(
        {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 4, "upscale": 2, "img_range": 1.0}
    )
    opened = Restorer(net.eval(), "float", CPU, False)
    image = np.random.default_rng(0).random((110, 90, 3)).astype(np.float32)
    whole = opened.restore(image, tile="off")
    assert opened.tiles(110, 90, 64).count == 6
    tiled = opened.restore(image, tile=64)
    assert np.abs(tiled - whole).max() < 1 / 255
