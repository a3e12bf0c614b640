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

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ...layers.convert import FrozenCodes, frozen
from ...layers.sites import PlacedSite, parameter_sites, quantizers_of
from ...lowering import lower
from ...lowering.capture import NO_CODE, captured_codes, codes_or_none, equal_codes
from ...lowering.grids import DynamicGrid, StaticGrid
from ...lowering.layers import IntegerWeight
from ...quantizers.site import Site
from ..checks import ActivationCheck, WeightCheck, same_scale
from .runtime import session

RUN_BYTES = 1 << 30
"""Memory that the tensors compared in one run of a graph may take, about."""
_SCAN_INPUTS = {"dt_bias": "delta_bias"}
"""Part of a site -> name of the scan's input, where they differ."""
_MOST_NODES = 64  # scans in one scope
_BYTES_PER_CODE = 9  # an int8 code, and its input in float64 at most
_WITHOUT_SUFFIX = re.compile(r"^(?P<scope>.*)/(?P<op>[A-Za-z]+)(_\d+)?$")


def _initializers(model: onnx.ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


class _Places:
    """Names of nodes in an exported file, found by lowering the network again as the export did.

    Attributes:
        weights: quantizer of a parameter -> name of the node, part of the parameter and groups, for each place where
            its codes are dequantized.
        grids: module of the exported network -> quantizer that it stands for, and index of the slice of dimension -2
            that it is given, where it is given one.
    """

    def __init__(self, net: nn.Module):
        self.weights: dict[str, list[tuple[str, int | None, int]]] = {}
        self.grids: dict[str, tuple[str, int | None]] = {}
        seen: Counter[nn.Module] = Counter()
        if not quantizers_of(net):
            return
        for name, module in lower(net).named_modules(remove_duplicate=False):
            if isinstance(module, IntegerWeight):
                place = f"{name}/DequantizeLinear", module.part, module.groups
                self.weights.setdefault(module.site, []).append(place)
            elif isinstance(module, (StaticGrid, DynamicGrid)):
                sliced = isinstance(module, StaticGrid) and module.slices is not None
                self.grids[name] = module.site, seen[module] if sliced else None
                seen[module] += 1


def _matches(stored: np.ndarray, scale: np.ndarray, expected: FrozenCodes, groups: int) -> bool:
    """Whether stored codes and scale are the expected ones; rows of ones (see ``lowering/layers.py``) are left out."""
    codes = expected.codes.numpy()
    rows = codes.shape[0] // groups
    grouped = stored.reshape(groups, -1, *stored.shape[1:])[:, :rows]
    wanted = expected.scale.reshape(-1).numpy()
    if scale.ndim and wanted.size > 1:
        scale = scale.reshape(groups, -1)[:, :rows].reshape(-1)
    return np.array_equal(grouped.reshape(codes.shape), codes) and same_scale(scale.reshape(-1), wanted)


def compare_weights(model: onnx.ModelProto, net: nn.Module) -> list[WeightCheck]:
    """Compare every quantized parameter of a network with a file exported from it; one in full precision has none."""
    constants = _initializers(model)
    nodes = {node.name: node for node in model.graph.node}
    sites = parameter_sites(net)
    places = _Places(net).weights if sites else {}
    checks = []
    for placed in sites:
        expected = frozen(placed)
        count, name = expected.codes.numel(), placed.parameter
        found = [(nodes[node], *where) for node, *where in places.get(placed.name, ()) if node in nodes]
        if found:
            equal = True
            for node, part, groups in found:
                codes, scale = (numpy_helper.to_array(constants[tensor]) for tensor in node.input[:2])
                wanted = expected if part is None else expected.part(part)
                wanted = wanted.flattened() if wanted.codes.ndim > codes.ndim else wanted
                equal &= _matches(codes, scale, wanted, groups)
            checks.append(WeightCheck(name, "codes", equal, count))
            continue
        stored = _scan_constant(placed, constants)
        if stored is None:
            checks.append(WeightCheck(name, "folded", None, count))
        else:
            value = expected.quantize(placed.tensor()).numpy()
            checks.append(WeightCheck(name, "values", same_scale(stored, value.reshape(-1)), count))
    return checks


def _scan_constant(placed: PlacedSite, constants: Mapping[str, TensorProto]) -> np.ndarray | None:
    """Values of a parameter that a scan reads, in the file's order; None where the file has no constant for it.

    A scan is called in a method, so its nodes are named after the module whose ``forward`` calls that: the owner of the
    site or one around it. There is a node for each direction, or one for all; a module with several scans has the nodes of
    one after those of the other.
    """
    site, wanted = placed.site, _scan_input(placed.site)
    alike = [s for s in placed.owner.quantization_sites() if s.parameter is not None and _scan_input(s) == wanted]
    sizes = [math.prod(s.shape) for s in alike]
    place = [s.part for s in alike].index(site.part)
    scope = site.owner
    while True:
        found = [constants[key] for key in _numbered(f"{scope}/SS2DScan", wanted) if key in constants]
        if found or not scope:
            break
        scope = scope.rpartition(".")[0]
    values = [numpy_helper.to_array(tensor).reshape(-1) for tensor in found]
    if sum(map(len, values)) != sum(sizes):
        return None
    start = sum(sizes[:place])
    return np.concatenate(values)[start : start + sizes[place]]


def _scan_input(site: Site) -> str | None:
    """Name of the scan's input that a site is: parts of a scan with another operation than ``scan`` begin as that does."""
    if site.kind != "scan":
        return None
    part = site.part.removeprefix(site.operation.removesuffix("scan"))
    return _SCAN_INPUTS.get(part, part)


def _numbered(node: str, tensor: str) -> Iterator[str]:
    """Names of a tensor of the nodes ``node``, ``node_1``, ``node_2`` ... of a scope."""
    yield f"{node}.{tensor}"
    yield from (f"{node}_{i}.{tensor}" for i in range(1, _MOST_NODES))


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


def _sites(model: onnx.ModelProto, path: str | Path, net: nn.Module) -> list[_Site]:
    """Every place where a graph quantizes, in its order.

    Raises:
        ValueError: one belongs to no quantizer.
    """
    constants = _initializers(model)
    producers = {name: node for node in model.graph.node for name in node.output}
    grids = _Places(net).grids
    calls: dict[tuple[str, int | None], int] = {}
    sites = []
    for node in model.graph.node:
        scope = _WITHOUT_SUFFIX.match(node.name)["scope"] if _WITHOUT_SUFFIX.match(node.name) else ""
        found = grids.get(scope) if node.op_type in ("QuantizeLinear", "Round") else None
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
    sites = _sites(model, path, net)
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
