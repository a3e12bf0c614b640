"""Packed checkpoints: a quantized network in one safetensors file, its weights as codes of 1 to 8 bits.

Content of a file of version 1, or of version 2 where some codes are not affine (see ``quantizers/encoded.py``):

* one uint8 tensor per quantized parameter, under the parameter's name: codes minus the smallest code, ``bits`` bits
  each, least significant bit first, without gaps (2 bits: four codes a byte);
* ``quantizers``, float32: scale and zero (or the tables of another kind) of every quantized parameter, then what the
  activation quantizers learned, in the order of the network's modules (so the file is not burdened with a header entry per scalar);
* every other parameter as it is (norms, biases, layers kept in full precision), but no constant that the constructor
  computes; one that a file holds all the same is compared;
* metadata: format, version, the network's type and constructor keys as JSON, and the SHA-256 of the tensors; in version 2
  also ``kinds``: quantizer -> kind of its codes and shapes of its tables, for those that are not affine.

Reading runs no code of the file. What training needs and inference does not (thresholds, full-precision weights,
calibration counters) is not kept: a loaded network computes the same outputs, but cannot be trained further.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from basicsr.archs import build_network
from torch import Tensor, nn

from ..checkpoints import NonFiniteWeightsError, first_non_finite
from ..constants import constants_of, differences
from ..files import write_bytes
from ..layers.convert import FrozenCodes, freeze_parameters
from ..layers.declared import Hadamard
from ..layers.merging import merge
from ..layers.sites import PlacedSite, parameter_sites, quantizer_keys, quantizers_of
from ..layers.transforms import transforms_of
from ..quantizers.encoded import AffineCodes, fits_along
from ..quantizers.transform_spec import without_increments
from .packing import pack_codes, unpack_codes

FORMAT = "qmambair_basicsr packed checkpoint"
AFFINE, ANY_KIND = 1, 2
"""Versions: all codes affine, or some of another kind."""
_BLOB = "quantizers"
_COUNTERS = ("initialized", "observed")  # bookkeeping of calibration, always "done" in a file


class PackedCheckpointError(RuntimeError):
    """A packed checkpoint cannot be written, read or trusted; the message says why and what to do."""


@dataclass(frozen=True)
class SizeReport:
    """Sizes in bytes.

    Attributes:
        fp32: all parameters of the full-precision network at 4 bytes each.
        codes: packed codes.
        quantizers: scales, zeros and the state of activation quantizers.
        full_precision: everything kept in full precision.
        file: the whole file, header included.
    """

    fp32: int
    codes: int
    quantizers: int
    full_precision: int
    file: int

    @property
    def ratio(self) -> float:
        """How many times smaller the whole file is than the FP32 parameters."""
        return self.fp32 / self.file


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _frozen_sites(net: nn.Module) -> list[tuple[str, str, FrozenCodes]]:
    """(name, parameter, codes) of every frozen parameter, in module order."""
    sites = parameter_sites(net)
    return [(s.name, s.parameter, s.quantizer) for s in sites if isinstance(s.quantizer, FrozenCodes)]


def _learned_state(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """State of all other quantizers, bookkeeping left out, in module order."""
    for name, quantizer in quantizers_of(net).items():
        if not isinstance(quantizer, FrozenCodes):
            for key, tensor in quantizer.state_dict().items():
                if key not in _COUNTERS:
                    yield f"{name}.{key}", tensor


def _plain_state(net: nn.Module) -> dict[str, Tensor]:
    """Everything that neither is quantized nor belongs to a quantizer."""
    quantized = {parameter for _, parameter, _ in _frozen_sites(net)} | quantizer_keys(net)
    return {key: tensor for key, tensor in net.state_dict().items() if key not in quantized}


def save_packed(net: nn.Module, network: Mapping[str, Any], path: str | os.PathLike) -> SizeReport:
    """Write the packed checkpoint of a quantized network.

    Args:
        net: calibrated or trained network; left as it is.
        network: its ``network_g`` block: ``type`` and constructor keys, plain data.
        path: destination; replaced in one step.

    Returns:
        Sizes of the parts and of the file.

    Raises:
        ValueError: the network is not quantized, or ``network`` does not build it.
        UncalibratedError: it was never calibrated.
        PackedCheckpointError: the file cannot be written, or an input is transformed by what cannot be merged.
    """
    from safetensors.torch import save

    described = json.dumps(without_increments(network))
    net = copy.deepcopy(net)
    merge(net)
    ours = quantizer_keys(net)
    full_precision = sum(p.numel() for k, p in net.named_parameters() if k not in ours)
    net = freeze_parameters(net).cpu()
    fresh = build_network(json.loads(described))
    _require_declared(net, fresh)
    if type(fresh) is not type(net) or dict(_shapes(fresh)) != dict(_shapes(net)):
        raise ValueError(f"network_g describes another network than the {type(net).__name__} given.")
    tensors: dict[str, Tensor] = {}
    values: list[Tensor] = []
    shapes: dict[str, list[int]] = {}
    kinds: dict[str, dict] = {}
    bounded = []
    for name, parameter, quantizer in _frozen_sites(net):
        tensors[parameter] = pack_codes(quantizer.codes, quantizer.bits)
        if quantizer.kind is not AffineCodes:
            tables = quantizer.encoded.tables()
            kinds[name] = {"type": quantizer.kind.__name__, "tables": {k: list(t.shape) for k, t in tables.items()}}
            values += tables.values()
            continue
        values += [quantizer.scale, quantizer.zero]
        if quantizer.scale.shape != quantizer.zero.shape:
            raise ValueError(f"{name}: scale and zero have different shapes.")
        if quantizer.scale.ndim:
            shapes[name] = list(quantizer.scale.shape)
        if quantizer.bounds is not None:
            bounded.append(name)
            values.append(quantizer.bounds)
    values += [tensor for _, tensor in _learned_state(net)]
    codes = sum(t.numel() for t in tensors.values())
    tensors[_BLOB] = torch.cat([v.detach().float().flatten() for v in values])
    plain, constant = _plain_state(net), constants_of(net)
    changed = differences(net, plain)
    if changed:
        raise ValueError(f"{type(net).__name__} was changed after it was built: {changed[0]}")
    tensors |= {key: tensor.detach().contiguous() for key, tensor in plain.items() if key not in constant}
    metadata = {
        "format": FORMAT,
        "version": str(ANY_KIND if kinds else AFFINE),
        "network": described,
        "scale_shapes": json.dumps(shapes),
        "bounded": json.dumps(bounded),
        "sha256": _digest(tensors),
    }
    if kinds:
        metadata["kinds"] = json.dumps(kinds)
    content = save(tensors, metadata)
    _write(Path(path), content)
    blob = tensors[_BLOB].numel() * 4
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    return SizeReport(full_precision * 4, codes, blob, total - codes - blob, len(content))


def _require_declared(net: nn.Module, fresh: nn.Module) -> None:
    """Refuse a transform of an input that the described network has not: the file would not hold it."""
    known = transforms_of(fresh)
    for name, transform in transforms_of(net).items():
        if not (isinstance(transform, Hadamard) and isinstance(known.get(name), Hadamard)):
            raise PackedCheckpointError(
                f"{name}: its input is transformed ({type(transform).__name__}), which a packed file does not hold; merge it "
                "into what computes the input (layers/merging.py), or use a rotation that `quant: transforms:` names"
            )


def _shapes(net: nn.Module) -> Iterator[tuple[str, torch.Size]]:
    ours = quantizer_keys(net)
    return ((key, tensor.shape) for key, tensor in net.state_dict().items() if key not in ours)


def _write(path: Path, content: bytes) -> None:
    try:
        write_bytes(path, content)
    except OSError as err:
        raise PackedCheckpointError(f"cannot write {path} ({len(content):,} bytes): {err.strerror or err}") from err


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise PackedCheckpointError(f"there is no packed checkpoint {path}; write one with tools.export --packed")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as err:
        raise PackedCheckpointError(
            f"{path} is damaged or no safetensors file ({path.stat().st_size:,} bytes; {str(err)[:160]}); use another copy"
        ) from err
    if metadata.get("format") != FORMAT:
        raise PackedCheckpointError(f"{path} is a safetensors file, but no packed checkpoint of this package")
    version = metadata.get("version", "")
    if version not in (str(AFFINE), str(ANY_KIND)):
        raise PackedCheckpointError(
            f"{path} has format version {version!r}, this package reads {AFFINE} and {ANY_KIND}; update the package, or "
            "export again"
        )
    if metadata.get("sha256") != _digest(tensors):
        raise PackedCheckpointError(f"{path}: the tensors do not match their checksum; use another copy")
    return tensors, metadata


@torch.no_grad()
def load_packed(path: str | os.PathLike) -> nn.Module:
    """Rebuild a network from a packed checkpoint.

    Args:
        path: file written by :func:`save_packed`.

    Returns:
        The network in eval mode, on the CPU, with the codes and the outputs of the one that was saved.

    Raises:
        PackedCheckpointError: missing, damaged, of a newer version, or not what its metadata describes.
        NonFiniteWeightsError: a tensor holds NaN or infinity.
    """
    path = Path(path)
    tensors, metadata = _read(path)
    if bad := first_non_finite(tensors):
        raise NonFiniteWeightsError(f"packed checkpoint {path}: {bad} holds NaN or infinity; pack other weights")
    try:
        network = json.loads(metadata["network"])
        shapes, bounded = json.loads(metadata["scale_shapes"]), json.loads(metadata["bounded"])
        kinds = json.loads(metadata.get("kinds", "{}"))
        with torch.device("meta"):  # a header may describe anything: compare sizes before using memory
            _check_size(build_network(copy.deepcopy(network)), tensors)
        net = build_network(network).eval()
        _fill(net, dict(tensors), shapes, bounded, kinds)
    except PackedCheckpointError as err:
        raise PackedCheckpointError(f"{path}: {err}") from err
    except (LookupError, ArithmeticError, ValueError, TypeError, AttributeError, AssertionError, RuntimeError,
            MemoryError) as err:  # fmt: skip
        raise PackedCheckpointError(f"{path}: the content does not fit its description: {err}") from err
    return net


def _check_size(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    sites = {site.parameter: site for site in parameter_sites(net)}
    for key, tensor in net.state_dict().items():
        if key in sites:
            expected = -(-tensor.numel() * sites[key].quantizer.bits // 8)
            if key not in tensors or tensors[key].numel() != expected:
                raise PackedCheckpointError(f"the codes of {key} are missing or not {expected} bytes")
    ours, constant = quantizer_keys(net), constants_of(net)
    plain = {k: t for k, t in net.state_dict().items() if k not in sites and k not in ours}
    for key, tensor in plain.items():
        if key in tensors and tensors[key].shape != tensor.shape:
            raise PackedCheckpointError(f"{key} is {tuple(tensors[key].shape)}, expected {tuple(tensor.shape)}")
        if key not in tensors and key not in constant:
            raise PackedCheckpointError(f"{key} is missing")
        if key in tensors and key not in constant:
            _require_type(key, tensors[key], tensor.dtype)
    unknown = sorted(tensors.keys() - plain.keys() - sites.keys() - {_BLOB})
    if unknown or _BLOB not in tensors:
        raise PackedCheckpointError(f"unknown tensors: {', '.join(unknown[:5])}" if unknown else f"no {_BLOB!r}")


def _require_type(key: str, tensor: Tensor, kind: torch.dtype = torch.float32) -> None:
    if tensor.dtype != kind:
        raise PackedCheckpointError(f"{key} is {tensor.dtype}, expected {kind}")


def _grid_shape(site: PlacedSite, held: object, shape: torch.Size) -> tuple[int, ...]:
    """Shape of the scale of a parameter of a shape, as the metadata give it."""
    fits = isinstance(held, list) and len(held) <= len(shape)
    fits = fits and all(type(n) is int and fits_along(n, m) for n, m in zip(held[::-1], shape[::-1], strict=False))
    if not fits:
        raise PackedCheckpointError(f"{site.name}: a scale of shape {held!r:.100} for a parameter {tuple(shape)}")
    return tuple(held)


def _codes_of(site: PlacedSite, packed: Tensor) -> Tensor:
    """The codes of a site, after a look at each.

    Raises:
        PackedCheckpointError: a code outside the quantizer's range.
    """
    codes = unpack_codes(packed, site.quantizer.bits, site.tensor().shape)
    lowest, highest = site.quantizer.qmin, site.quantizer.qmax
    outside = (codes < lowest) | (codes > highest)
    if outside.any():
        place = outside.nonzero()[0].tolist()
        raise PackedCheckpointError(
            f"{site.parameter}: code {place} is {codes[tuple(place)].item()}, its quantizer has {lowest} to {highest}"
        )
    return codes


def _tables_of(site: PlacedSite, described: object, take: Callable[[tuple[int, ...]], Tensor]) -> dict[str, Tensor]:
    """The tables of codes that are not affine, which follow in the file."""
    fits = isinstance(described, dict) and described.keys() == {"type", "tables"}
    tables = described["tables"] if fits and described["type"] == site.quantizer.kind.__name__ else None
    if not isinstance(tables, dict):
        raise PackedCheckpointError(f"{site.name}: {described!r:.100} are no codes of {site.quantizer.kind.__name__}")
    for name, shape in tables.items():
        if name not in site.quantizer.kind.table_names():
            raise PackedCheckpointError(f"{site.name}: {site.quantizer.kind.__name__} has no table {name!r:.100}")
        if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
            raise PackedCheckpointError(f"{site.name}: a table of shape {shape!r:.100}")
    return {name: take(tuple(shape)) for name, shape in tables.items()}


def _fill(net: nn.Module, tensors: dict[str, Tensor], shapes: object, bounded: object, kinds: object) -> None:
    blob = tensors.pop(_BLOB)
    _require_type(_BLOB, blob)
    sites = parameter_sites(net)
    affine = [site for site in sites if site.quantizer.kind is AffineCodes]
    if not isinstance(shapes, dict) or not shapes.keys() <= {site.name for site in sites}:
        raise PackedCheckpointError(f"scale_shapes names other quantizers than the network has: {shapes!r:.100}")
    if not isinstance(bounded, list) or bounded != [s.name for s in affine if not s.quantizer.affine]:
        raise PackedCheckpointError(f"bounded names other quantizers than those with bounds: {bounded!r:.100}")
    others = {site.name for site in sites} - {site.name for site in affine}
    if not isinstance(kinds, dict) or kinds.keys() != others:
        raise PackedCheckpointError(
            f"kinds names other quantizers than those whose codes are not affine: {kinds!r:.100}"
        )
    position = 0

    def take(shape: tuple[int, ...]) -> Tensor:
        nonlocal position
        count = math.prod(shape)
        if position + count > blob.numel():
            raise PackedCheckpointError("it holds too few quantizer values")
        position += count
        return blob[position - count : position].view(shape)

    for transform in transforms_of(net).values():
        transform.fold_weight()  # codes are those of transformed weights
    for site in sites:
        original, codes = site.tensor(), _codes_of(site, tensors.pop(site.parameter))
        if site.name in kinds:
            encoded = site.quantizer.kind(codes, **_tables_of(site, kinds[site.name], take))
        else:
            shape = _grid_shape(site, shapes.get(site.name, []), original.shape)
            scale, zero = take(shape), take(shape)
            encoded = AffineCodes(codes, scale, zero, take((2, *shape)) if site.name in bounded else None)
        wrong = encoded.defect(site.quantizer.bits)
        if wrong:
            raise PackedCheckpointError(f"{site.name}: {wrong}")
        quantizer = FrozenCodes(site.quantizer.bits, encoded, site.quantizer.site)
        site.replace(quantizer)
        # nothing reads the parameter any more; it shows what the network computes with
        site.set_tensor(quantizer.quantize(original))
    for _, tensor in list(_learned_state(net)):
        tensor.copy_(take(tuple(tensor.shape)))
    if position != blob.numel():
        raise PackedCheckpointError("it holds too many quantizer values")
    for quantizer in quantizers_of(net).values():
        quantizer.initialized.fill_(True)
    changed = differences(net, tensors)
    if changed:
        raise PackedCheckpointError(changed[0])
    own = net.state_dict()
    for key in tensors.keys() - constants_of(net).keys():
        own[key].copy_(tensors[key])
    net.requires_grad_(False)
