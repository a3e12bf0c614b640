"""Integer codes of an exported ONNX file beside those of the network it was made from.

Weights: every quantized parameter of the network is looked up in the file by the name of its node. Weights of
convolutions, linears and projections are stored as int8 codes; A, D and dt_bias of a scan, which take part in
floating-point arithmetic, as their dequantized values; prompt dictionaries (MambaIRv2) are folded into other constants
and are not found. Codes must be equal. Scales and values may differ by one part in a million: those of DLS are computed
from sums over the parameter, which the backends (``ops``) add up in another order.

Activations: for one image, the input and the output of every ``QuantizeLinear`` are read from the graph, which is run
as written. Two comparisons:

* own input: the network's quantizer is given the tensor that the graph quantizes. All codes must be equal.
* whole network: the network runs on the image by itself. The two round in different places (an integer product is
  scaled after the sum), so a value near the border of two codes may fall to either side: a share is reported. The
  same share is reported for DLS computed in the graph, whose statistics are sums in another order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ...layers.calibrate import quantizers_of
from ...layers.convert import FrozenCodes, frozen
from ...layers.sites import PlacedSite, parameter_sites
from ...lowering.capture import NO_CODE, captured_codes, codes_or_none, equal_codes
from .runtime import session

RUN_BYTES = 1 << 30
"""Memory that the tensors compared in one run of a graph may take, about."""
_BYTES_PER_CODE = 9  # an int8 code, and its input in float64 at most
_WITHOUT_SUFFIX = re.compile(r"^(?P<scope>.*)/(?P<op>[A-Za-z]+)(_\d+)?$")


@dataclass(frozen=True)
class WeightCheck:
    """One quantized parameter.

    Attributes:
        name: the parameter.
        stored: ``codes`` (int8), ``values`` (dequantized) or ``folded`` (not in the file by itself).
        equal: whether codes and scale (or values) are the network's; None where folded.
        count: number of values.
    """

    name: str
    stored: str
    equal: bool | None
    count: int


@dataclass(frozen=True)
class ActivationCheck:
    """One quantized activation on one image.

    Attributes:
        name: its quantizer.
        count: number of codes.
        own_input: codes equal when both quantize the graph's tensor; None for DLS computed in the graph, and for
            what the graph holds as a constant.
        whole_network: codes equal when each computes the whole network.
        not_finite: values that are NaN or infinite where a code is made of them, in the file or in the network. They
            equal nothing.
    """

    name: str
    count: int
    own_input: int | None
    whole_network: int
    not_finite: int = 0


def _initializers(model: onnx.ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _weight_nodes(site: PlacedSite) -> list[str]:
    """Names of the nodes that dequantize a parameter, one for each scan direction of dt_projs_weight."""
    scope = site.parameter.rpartition(".")[0]
    if site.site.parameter == "weight":
        return [f"{scope}.weight/DequantizeLinear"]
    if site.site.parameter == "x_proj_weight":
        return [f"{scope}.projections.x_proj.weight/DequantizeLinear"]
    if site.site.parameter == "dt_projs_weight":
        return [f"{scope}.projections.dt_projs.{k}.weight/DequantizeLinear" for k in range(site.tensor().shape[0])]
    return []


def _matches(stored: np.ndarray, scale: np.ndarray, expected: FrozenCodes, groups: int) -> bool:
    """Whether stored codes and scale are the expected ones; rows of ones (see ``modules``) are left out."""
    codes = expected.codes.numpy()
    rows = codes.shape[0] // groups
    grouped = stored.reshape(groups, -1, *stored.shape[1:])[:, :rows]
    wanted = expected.scale.reshape(-1).numpy()
    if scale.ndim and wanted.size > 1:
        scale = scale.reshape(groups, -1)[:, :rows].reshape(-1)
    return np.array_equal(grouped.reshape(codes.shape), codes) and same_scale(scale.reshape(-1), wanted)


def same_scale(got: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether two arrays of equal shape, finite both, differ by at most 1e-6 of the largest wanted value."""
    if got.shape != wanted.shape or not (np.isfinite(got).all() and np.isfinite(wanted).all()):
        return False
    return bool(np.abs(got - wanted).max() <= 1e-6 * np.abs(wanted).max())


def compare_weights(model: onnx.ModelProto, net: nn.Module) -> list[WeightCheck]:
    """Compare every quantized parameter of a network with a file exported from it."""
    constants = _initializers(model)
    nodes = {node.name: node for node in model.graph.node}
    scans = {"A_logs": "A", "Ds": "D", "dt_projs_bias": "delta_bias"}
    checks = []
    for site in parameter_sites(net):
        expected = frozen(site)
        count, scope = expected.codes.numel(), site.parameter.rpartition(".")[0]
        found = [nodes[name] for name in _weight_nodes(site) if name in nodes]
        if found:
            parts = [expected] if len(found) == 1 else [_direction(expected, k) for k in range(len(found))]
            parts = [_as_matrix(part) if site.site.parameter != "weight" else part for part in parts]
            groups = getattr(site.owner, "groups", 1)
            equal = all(
                _matches(
                    *(numpy_helper.to_array(constants[name]) for name in node.input[:2]), expected=part, groups=groups
                )
                for node, part in zip(found, parts, strict=True)
            )
            checks.append(WeightCheck(site.parameter, "codes", equal, count))
            continue
        # the scan is a method, so its node is named after the module that calls it
        key = f"{scope.removesuffix('.selectiveScan')}/SS2DScan.{scans.get(site.site.parameter)}"
        if key in constants:
            stored = numpy_helper.to_array(constants[key])
            value = expected.quantize(site.tensor()).numpy()
            checks.append(WeightCheck(site.parameter, "values", same_scale(stored.reshape(value.shape), value), count))
        else:
            checks.append(WeightCheck(site.parameter, "folded", None, count))
    return checks


def _direction(joined: FrozenCodes, k: int) -> FrozenCodes:
    scale, zero = (
        t if t.numel() == 1 else t.expand(*joined.codes.shape[:2], 1)[k] for t in (joined.scale, joined.zero)
    )
    return FrozenCodes(joined.bits, joined.codes[k], scale, zero)


def _as_matrix(joined: FrozenCodes) -> FrozenCodes:
    """Codes of a raw projection, (K, rows, columns) or (rows, columns), as a matrix."""
    if joined.codes.ndim == 2:
        return joined
    scale, zero = (
        t if t.numel() == 1 else t.expand(*joined.codes.shape[:2], 1).flatten(0, 1) for t in (joined.scale, joined.zero)
    )
    return FrozenCodes(joined.bits, joined.codes.flatten(0, 1), scale, zero)


def _quantizer_of(scope: str, names: set[str]) -> tuple[str, int | None] | None:
    """Name of the quantizer behind a module of the exported network, and its scan direction where it has one."""
    direction = None
    if found := re.fullmatch(r"(.*)\.projections\.dt_projs\.(\d+)\.act", scope):
        name, direction = f"{found[1]}.quantizers.dt_projs_input", int(found[2])
    elif scope.endswith(".projections.x_proj.act"):
        name = f"{scope.removesuffix('.projections.x_proj.act')}.quantizers.x_proj_input"
    elif scope.endswith(".act"):
        name = f"{scope}_quantizer"
    else:
        name = scope.removesuffix(".grid").replace(".quantizers.sites.", ".quantizers.")
        name = name.replace(".layer.act_quantizer", ".act_quantizer")
    return (name, direction) if name in names else None


def _site_input(scope: str, tensor: str, producers: dict[str, onnx.NodeProto], constants: dict) -> str:
    """The FP32 tensor that a site is given: what comes before the nodes of its own scope.

    In FP16 graphs that is the site's Cast. onnxruntime leaves out pairs of casts, so the FP16 tensor before it may be
    rounded more than what the site sees.
    """
    while tensor in producers and producers[tensor].name.startswith(f"{scope}/"):
        if producers[tensor].op_type == "Cast":
            break
        tensor = next(name for name in producers[tensor].input if name and name not in constants)
    return tensor


@dataclass(frozen=True)
class _Site:
    """A place where a graph quantizes: the quantizer, its direction and call, its input and output tensors."""

    name: str
    direction: int | None
    call: int
    codes: str
    source: str | None  # None for DLS computed in the graph, and for a constant

    def label(self) -> str:
        return self.name if self.direction is None else f"{self.name} direction {self.direction}"

    def expected(self, reference: dict[str, list[np.ndarray]]) -> np.ndarray:
        codes = reference[self.name][self.call]
        return codes if self.direction is None else codes[..., self.direction, :]


def _sites(model: onnx.ModelProto, path: str | Path, quantizers: dict) -> list[_Site]:
    """Every place where a graph quantizes, in its order.

    Raises:
        ValueError: one belongs to no quantizer.
    """
    constants = _initializers(model)
    producers = {name: node for node in model.graph.node for name in node.output}
    calls: dict[tuple[str, int | None], int] = {}
    sites = []
    for node in model.graph.node:
        scope = _WITHOUT_SUFFIX.match(node.name)["scope"] if _WITHOUT_SUFFIX.match(node.name) else ""
        found = _quantizer_of(scope, set(quantizers)) if node.op_type in ("QuantizeLinear", "Round") else None
        if found:
            static = node.op_type == "QuantizeLinear"
            computed = static and node.input[0] not in constants
            source = _site_input(scope, node.input[0], producers, constants) if computed else None
            call = calls[found] = calls.get(found, -1) + 1
            sites.append(_Site(*found, call, node.output[0], source))
        elif node.op_type == "QuantizeLinear":
            raise ValueError(f"{path}: {node.name} belongs to no quantizer")
    return sites


def compare_activations(
    path: str | Path, net: nn.Module, image: Tensor, track: Callable[[list], Iterable] = iter
) -> list[ActivationCheck]:
    """Compare the codes of every quantized activation on one image; see the module docstring.

    The graph runs several times where its tensors would not fit into ``RUN_BYTES`` together.

    Args:
        path: exported file whose nodes are standard operators.
        net: the network with the same DLS mode, constants included.
        image: (1, C, H, W) of a size that the file takes.
        track: wraps the list of runs, to show progress.

    Raises:
        ValueError: the file quantizes at a place where the network does not, or another number of times.
    """
    model, quantizers = onnx.shape_inference.infer_shapes(onnx.load(str(path))), quantizers_of(net)
    sites = _sites(model, path, quantizers)
    reference = captured_codes(net, image)
    for site in sites:
        if site.call >= len(reference.get(site.name, ())):
            raise ValueError(f"{path} quantizes at {site.name} more often than {type(net).__name__} does")
    checks = []
    for group in track(_groups(sites, reference)):
        outputs = _run_with(model, image, group)
        for site in group:
            got, wanted = outputs[site.codes].reshape(-1), site.expected(reference).reshape(-1)
            broken = (wanted == NO_CODE) | ~np.isfinite(got)
            own = None
            if site.source is not None:
                given = torch.from_numpy(outputs[site.source])
                given = given.to(torch.promote_types(given.dtype, torch.float32))
                ours = codes_or_none(quantizers[site.name], given).reshape(-1)
                own, broken = equal_codes(ours, got), broken | (ours == NO_CODE)
            checks.append(ActivationCheck(site.label(), got.size, own, equal_codes(wanted, got), int(broken.sum())))
    return checks


def _groups(sites: list[_Site], reference: dict[str, list[np.ndarray]]) -> list[list[_Site]]:
    """Sites in their order, cut where the tensors of a run would take more than ``RUN_BYTES``."""
    groups, filled = [[]], 0
    for site in sites:
        size = site.expected(reference).size * _BYTES_PER_CODE
        if groups[-1] and filled + size > RUN_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(site)
        filled += size
    return groups


def _run_with(model: onnx.ModelProto, image: Tensor, sites: list[_Site]) -> dict[str, np.ndarray]:
    """Run a graph, whose types are inferred, as written and return the tensors of ``sites``."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    wanted = {name for site in sites for name in (site.codes, site.source) if name not in (None, "input")}
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    known = {value.name for value in model.graph.output}
    for name in sorted(wanted - known):
        extended.graph.output.append(helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None))
    names = sorted(wanted)
    values = session(extended, exact=True, arena=False).run(names, {"input": image.numpy()})
    return dict(zip(names, values, strict=True)) | {"input": image.numpy()}
