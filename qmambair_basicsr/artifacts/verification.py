"""Comparing artifacts (packed checkpoints, ONNX files) with the fake-quantized network they were made from."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..inference.tiling import middle
from ..layers.convert import frozen, set_constant_grids
from ..layers.sites import parameter_sites, quantizers_of
from ..lowering import frozen_copy, lower
from ..lowering.capture import NO_CODE, captured_codes, equal_codes
from .checks import ActivationCheck, WeightCheck, same_scale
from .onnx.errors import ExportError
from .packed import load_packed


@dataclass(frozen=True)
class Artifact:
    """An artifact and what it is compared with.

    Attributes:
        name: file name.
        network: function of image tensors.
        reference: the fake-quantized network with the same DLS mode.
        mode: ``packed``, or the file's DLS mode: ``frozen`` | ``dynamic``.
        precision: ``fp32``, ``fp16`` or ``fp64``.
        grids: constants of DLS in the file, as text.
        size: (height, width) of its tiles, or None.
        weights: comparison of the parameters.
        activations: compares the activation codes on one image of a fitting size; the second argument wraps the list
            of runs that this takes, to show progress.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    reference: nn.Module
    mode: str
    precision: str
    grids: str
    size: tuple[int, int] | None
    weights: list[WeightCheck]
    activations: Callable[[Tensor, Callable[[list], Iterable]], list[ActivationCheck]]
    proof: Callable[[Tensor], tuple[int, int]] | None = None
    """Codes of the lowered network in FP64 on one image, and how many of them are the network's; None where an FP64
    file is the proof."""


BACKENDS = ("float", "integer")
"""What a packed checkpoint is run with: fake quantization, or native kernels on its integer codes."""


def open_artifact(path: str | Path, net: nn.Module, backend: str = "float") -> Artifact:
    """Read an artifact, and compare its parameters with the network's.

    Args:
        path: ``.safetensors`` or ``.onnx``.
        net: fake-quantized network.
        backend: of a packed checkpoint, one of ``BACKENDS``.

    Raises:
        ExportError: the file is damaged, of another network, or needs a TensorRT plugin.
        PackedCheckpointError: a packed checkpoint that cannot be read.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _packed(path, net, backend)
    if backend != "float":
        raise ExportError(f"{path}: the backend {backend} runs packed checkpoints (.safetensors); leave --backend out")
    return _onnx(path, net)


def _packed(path: Path, net: nn.Module, backend: str) -> Artifact:
    loaded = load_packed(path)
    _same_network(path, type(loaded).__name__, net)
    checks = _parameters(loaded, net)
    if backend == "integer":
        return _integer(path, loaded, net, checks)

    def activations(image: Tensor, track: Callable[[list], Iterable]) -> list[ActivationCheck]:
        theirs = {name: [(codes, None) for codes in calls] for name, calls in captured_codes(loaded, image).items()}
        return _compared(captured_codes(net, image), theirs, track)

    return Artifact(path.name, _without_gradients(loaded), net, "packed", "fp32", "", None, checks, activations)


def _integer(path: Path, loaded: nn.Module, net: nn.Module, checks: list[WeightCheck]) -> Artifact:
    """The network of a packed checkpoint on native kernels."""
    from ..runtime import native_network
    from ..runtime.observation import observed

    native = native_network(loaded)

    def activations(image: Tensor, track: Callable[[list], Iterable]) -> list[ActivationCheck]:
        return _compared(captured_codes(net, image), observed(native, image), track)

    def proof(image: Tensor) -> tuple[int, int]:
        exact = captured_codes(frozen_copy(loaded, torch.float64), image.double())
        lowered = captured_codes(lower(loaded, torch.float64), image.double())
        pairs = [pair for name, calls in exact.items() for pair in zip(calls, lowered.get(name, ()), strict=False)]
        return sum(c.size for calls in exact.values() for c in calls), sum(equal_codes(a, b) for a, b in pairs)

    name = f"{path.name}, integer"
    return Artifact(name, native, net, "packed", "fp32", "", None, checks, activations, proof)


def _compared(ours: dict, theirs: dict, track: Callable[[list], Iterable]) -> list[ActivationCheck]:
    """Codes of a network beside those of an artifact: (codes, how many are those of the same input, or None) per call."""
    found = []
    for name, calls in track(list(ours.items())):
        others = theirs.get(name, ())
        pairs = list(zip(calls, (codes for codes, _ in others), strict=False))
        count, equal = sum(c.size for c in calls), sum(equal_codes(a, b) for a, b in pairs)
        broken = sum(int(((a == NO_CODE) | (b == NO_CODE)).sum()) for a, b in pairs)
        own = [own for _, own in others]
        found.append(ActivationCheck(name, count, equal if None in own else sum(own), equal, broken))
    return found


def _parameters(loaded: nn.Module, net: nn.Module) -> list[WeightCheck]:
    stored = {site.parameter: frozen(site) for site in parameter_sites(loaded)}
    checks = []
    for site in parameter_sites(net):
        wanted, got = frozen(site), stored.get(site.parameter)
        equal = got is not None and got.kind is wanted.kind and torch.equal(got.codes, wanted.codes)
        if equal:
            ours, theirs = wanted.encoded.tables(), got.encoded.tables()
            equal = ours.keys() == theirs.keys()
            equal = equal and all(same_scale(theirs[key].numpy(), table.numpy()) for key, table in ours.items())
        checks.append(WeightCheck(site.parameter, "codes", equal, wanted.codes.numel()))
    return checks


def _onnx(path: Path, net: nn.Module) -> Artifact:
    from .onnx.codes import compare_activations, compare_weights
    from .onnx.precision import in_double
    from .onnx.runtime import OnnxNetwork, read_model

    network = OnnxNetwork(path, arena=False)
    _same_network(path, network.facts["arch"], net)
    precision, grids = network.facts["precision"], network.facts.get("grids", "")
    reference = in_double(net) if precision == "fp64" else net
    if grids:
        reference = copy.deepcopy(net) if reference is net else reference
        try:
            set_constant_grids(reference, json.loads(grids))
        except (ValueError, RecursionError) as err:
            raise ExportError(f"{path} was exported from another network: {err}") from err
    checks = compare_weights(read_model(path), reference)

    def activations(image: Tensor, track: Callable[[list], Iterable]) -> list[ActivationCheck]:
        return compare_activations(path, reference, image, track)

    return Artifact(
        path.name, network, reference, network.facts["dls"], precision, grids, network.size, checks, activations
    )


def _same_network(path: Path, arch: str, net: nn.Module) -> None:
    if arch != type(net).__name__:
        raise ExportError(f"{path} holds a {arch}, the checkpoint a {type(net).__name__}: give files of one network")
    if not quantizers_of(net):
        raise ExportError(f"{arch} is not quantized: there are no codes to compare (tools.run_onnx compares outputs)")


def _without_gradients(net: nn.Module) -> Callable[[Tensor], Tensor]:
    def network(x: Tensor) -> Tensor:
        with torch.no_grad():
            return net(x)

    return network


def with_rounding(net: nn.Module, size: float, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """A quantized network with noise as large as rounding at its input and at that of every activation quantizer.

    Other arithmetic of the same precision rounds in other places; this is how far its output may be off for that alone.

    Args:
        net: the network.
        size: standard deviation of the noise, in units of the largest absolute value of each tensor.
        seed: of the noise; other ones end elsewhere, by decibels where few codes turn.
    """

    def network(x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)

        def moved(t: Tensor) -> Tensor:
            return t + size * t.abs().amax() * torch.randn(t.shape, generator=generator)

        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple:
            return (moved(inputs[0]), *inputs[1:])

        handles = [q.register_forward_pre_hook(hook) for q in quantizers_of(net).values() if q.role == "act"]
        try:
            with torch.no_grad():
                return net(moved(x))
        finally:
            for handle in handles:
                handle.remove()

    return network


def probe(image: Tensor, size: tuple[int, int] | None, multiple: int, largest: int = 96) -> Tensor:
    """A part of an image to compare activation codes on: one tile, or the centre, at most ``largest`` pixels a side.

    Raises:
        ExportError: the image is smaller than a tile.
    """
    height, width = image.shape[-2:]
    wanted = size or tuple(max(multiple, min(n, largest) // multiple * multiple) for n in (height, width))
    if wanted[0] > height or wanted[1] > width:
        raise ExportError(
            f"the codes of activations are compared on a part of {wanted[1]}x{wanted[0]} pixels, the first image is "
            f"{width}x{height}: give larger images, or export a smaller size"
        )
    return middle(image, *wanted)


def summary_of(checks: list[ActivationCheck]) -> dict[str, float | int | None]:
    """Counts over all sites: codes, equal ones for the same input (of how many), equal ones over the whole network."""
    own = [c for c in checks if c.own_input is not None]
    return {
        "sites": len(checks),
        "codes": sum(c.count for c in checks),
        "whole_network_equal": sum(c.whole_network for c in checks),
        "own_input_codes": sum(c.count for c in own),
        "own_input_equal": sum(c.own_input for c in own if c.own_input is not None),
        "largest_share_different": float(np.max([1 - c.whole_network / c.count for c in checks])) if checks else None,
    }
