"""Reading and writing checkpoints and training states.

Reading never runs code: files go through ``torch.load(weights_only=True)`` on every torch version, and whatever
is wrong with a file ends in one :class:`CheckpointError` that names the file and says what to do. Writing is
atomic: a file is written beside its destination and renamed over it, so a full disk or a kill leaves the previous
one as it was.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from . import constants
from .files import write_bytes
from .layers.declared import transform_keys, with_increments
from .layers.sites import for_each_channel, other_quantizers, quantizer_keys
from .pickled import foreign_global

_LISTED = 20  # keys shown per kind of mismatch

# BasicSR's MultiStepRestartLR keeps its milestones in a Counter; torch 2.4 and 2.5 do not know it as harmless
torch.serialization.add_safe_globals([Counter])


class CheckpointError(RuntimeError):
    """A checkpoint or training state cannot be read, does not fit, or cannot be written."""


class UnsafeCheckpointError(CheckpointError):
    """A file would run code when unpickled."""


class NonFiniteWeightsError(CheckpointError):
    """A checkpoint holds NaN or infinity; whatever is computed with it means nothing."""

    exit_code = 1


class CheckpointMismatchError(CheckpointError):
    """The tensors of a file are not those of the network."""


def _listed(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f"\n    ... and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return "".join(f"\n    {key}" for key in keys[:_LISTED]) + more


def read_file(path: str | os.PathLike, what: str = "checkpoint") -> object:
    """Read a file written by ``torch.save``, or a plain state_dict as .safetensors, on the CPU and without running code from it.

    Args:
        path: the file.
        what: what to call it in messages.

    Returns:
        What the file holds: tensors and plain containers.

    Raises:
        UnsafeCheckpointError: the pickle refers to something other than tensors and plain data.
        CheckpointError: missing, a folder, empty, truncated, packed, or not written by torch.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{what} {path} {kind}; check the path (relative paths start at the working folder)")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{what} {path} is empty (0 bytes); delete it and use another copy")
    try:
        if (header := _header_of_safetensors(path)) is not None:
            return _read_safetensors(path, header, what)
        if path.suffix == ".safetensors":  # torch.load would hand it to safetensors, whose error is none of those below
            raise ValueError("it has no header of a safetensors file")
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError,
            IndexError, OverflowError, UnicodeDecodeError, AssertionError, OSError, MemoryError) as err:  # fmt: skip
        foreign = foreign_global(path)
        if foreign is not None:
            raise UnsafeCheckpointError(
                f"{what} {path} is refused: its pickle refers to {foreign}, which is not plain tensor data and could run "
                "code. Ask its author for a plain state_dict, or convert it yourself where you trust it: "
                "torch.save({'params': net.state_dict()}, ...)"
            ) from err
        first = (str(err).strip().splitlines() or [type(err).__name__])[0]
        advice = "it is truncated or was not written by torch.save. Delete it and use another copy"
        if path.suffix.lower() not in ("", ".pth", ".pt", ".ckpt", ".bin", ".state", ".safetensors"):  # a picture, say
            advice = "name a .pth or .safetensors file (tools.run_onnx runs ONNX files)"
        raise CheckpointError(f"{what} {path} cannot be read ({first[:160]}): {advice}") from err


def select_params(
    content: object, path: str | os.PathLike, param_key: str | None, stage_bits: int | None = None
) -> dict[str, Tensor]:
    """The state_dict a checkpoint holds under one key.

    Args:
        content: what :func:`read_file` returned.
        path: the file it came from, for messages.
        param_key: ``params``, ``params_ema`` ...; None when the file is the state_dict itself.
        stage_bits: the stage of ``quant_train: progressive`` whose network may be read.

    Returns:
        Parameter and buffer names to tensors, without the prefixes of wrappers (see :func:`without_wrappers`).

    Raises:
        CheckpointError: the key is missing (those present are listed) or does not hold tensors.
        NonFiniteWeightsError: one of them is NaN or infinite; it is named.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"checkpoint {path} holds a {type(content).__name__}, not a state_dict")
    if (bits := content.get("stage_bits")) is not None and bits != stage_bits:
        raise CheckpointError(
            f"checkpoint {path} is of a stage with {bits} bits (quant_train: progressive), whose grids mean nothing at other "
            "widths; take one that the same training has saved later"
        )
    if param_key is None:
        state = content
    elif param_key in content:
        state = content[param_key]
    else:
        bare = bool(content) and all(isinstance(v, Tensor) for v in content.values())
        held = ", ".join(map(str, list(content)[:_LISTED])) or "nothing"
        advice = (
            "the file is a bare state_dict: set `path: param_key_g: ~`"
            if bare
            else f"it holds: {held}; set `path: param_key_g` (tools: --param-key)"
        )
        raise CheckpointError(f"checkpoint {path} has no {param_key!r}; {advice}")
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"checkpoint {path}: {param_key!r} is not a state_dict or is empty")
    wrong = [key for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if wrong:
        raise CheckpointError(
            f"checkpoint {path}: {wrong[0]!r} is a {type(state[wrong[0]]).__name__}, not a tensor; "
            f"top-level keys are {', '.join(map(str, list(content)[:_LISTED]))}: set `path: param_key_g`"
        )
    if bad := first_non_finite(state):
        raise NonFiniteWeightsError(
            f"checkpoint {path}: {bad} holds NaN or infinity; use weights of an earlier iteration"
        )
    return without_wrappers(state, path)


_WRAPPERS = ("module.", "net_g.")  # of DDP; of trainers that save a whole model


def without_wrappers(state: Mapping[str, Tensor], path: str | os.PathLike) -> dict[str, Tensor]:
    """A state_dict without the names that wrappers put around a network's own.

    ``module.`` (DDP) and ``net_g.`` go where every key begins with them, ``_orig_mod.`` (torch.compile) wherever it stands.
    What is taken off is said in the log, ``module.`` excepted, which BasicSR takes off without a word.

    Raises:
        CheckpointError: two keys would be called the same.
    """
    renamed = {key: key.replace("_orig_mod.", "") for key in state}
    taken = ["_orig_mod."] if any(new != old for old, new in renamed.items()) else []
    while prefix := next((p for p in _WRAPPERS if all(new.startswith(p) for new in renamed.values())), None):
        renamed = {old: new.removeprefix(prefix) for old, new in renamed.items()}
        taken.append(prefix)
    names = Counter(renamed.values())
    if twice := next((name for name, count in names.items() if count > 1), None):
        raise CheckpointError(f"checkpoint {path} holds {twice!r} twice, with and without the prefix of a wrapper")
    if set(taken) - {"module."}:
        logging.getLogger("basicsr").warning("%s: the prefix %s of its keys is left out", path, " and ".join(taken))
    return {renamed[key]: value for key, value in state.items()}


def _header_of_safetensors(path: Path) -> dict | None:
    """The header of a .safetensors file; None for any other file."""
    with open(path, "rb") as file:
        start = file.read(8)
        size = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= size <= min(path.stat().st_size, 1 << 26):
            return None
        try:
            header = json.loads(file.read(size))
        except (UnicodeDecodeError, ValueError, RecursionError):
            return None
    return header if isinstance(header, dict) else None


def is_packed_file(path: str | os.PathLike) -> bool:
    """Whether a file is a packed checkpoint, by its header; False where it cannot be read."""
    try:
        return _says_packed(_header_of_safetensors(Path(path)) or {})
    except OSError:
        return False


def _says_packed(header: Mapping) -> bool:
    about = header.get("__metadata__")
    return isinstance(about, Mapping) and "packed checkpoint" in str(about.get("format", ""))


def _read_safetensors(path: Path, header: Mapping, what: str) -> dict[str, Tensor]:
    """Tensors of a .safetensors file that is not a packed checkpoint."""
    if _says_packed(header):
        raise CheckpointError(
            f"{what} {path} is a packed checkpoint: integer codes for inference, without the weights that training and an "
            "option file need. Give the .pth it was made from here; export, verify and run commands take it as it is"
        )
    try:
        from safetensors.torch import load_file
    except ImportError as err:
        raise CheckpointError(f"{what} {path} needs the package safetensors: pip install safetensors") from err
    try:
        return load_file(path)
    except Exception as err:  # the package's own classes
        raise CheckpointError(
            f"{what} {path} cannot be read ({' '.join(str(err).split())[:160]}); use another copy"
        ) from err


def _differences(net: nn.Module, state: Mapping[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Keys the network lacks in ``state``, keys it does not know, and keys of another shape (with both shapes)."""
    own = net.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key}: network {tuple(own[key].shape)}, file {tuple(state[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    return missing, unexpected, shapes


def _changed(net: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Constants of the network that ``state`` holds with other values; those of another shape are listed elsewhere."""
    own = net.state_dict()
    return constants.differences(net, {k: v for k, v in state.items() if k in own and v.shape == own[k].shape})


def _refuse(net: nn.Module, path: str | os.PathLike, problems: Mapping[str, Sequence[str]], hint: str) -> None:
    """Raise CheckpointMismatchError if there is a problem; ``problems``: kind -> keys."""
    parts = [f"  {len(keys)} {kind}:{_listed(keys)}\n" for kind, keys in problems.items() if keys]
    if parts:
        raise CheckpointMismatchError(f"checkpoint {path} does not fit {type(net).__name__}:\n{''.join(parts)}{hint}")


def load_state(net: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike, strict: bool = True) -> list[str]:
    """Load a state_dict; a tensor of another shape is never skipped silently.

    A quantizer with a value for each channel takes one value for all of them: the network computes the same then, and
    training goes on from there. The log says so.

    Args:
        net: bare network.
        state: names to tensors.
        path: where it came from, for messages.
        strict: refuse missing and unknown keys too. When False they are returned for the caller to report.

    Returns:
        Lines naming the keys that were skipped; empty when strict.

    Raises:
        CheckpointMismatchError: listing every kind of mismatch.
    """
    if spread := for_each_channel(net, state):
        message = "%s: %d values of quantizers for a whole tensor are taken for each of its channels"
        logging.getLogger("basicsr").info(message, path, len(spread))
        state = {**state, **spread}
    state = with_increments(net, state)
    missing, unexpected, shapes = _differences(net, state)
    changed = _changed(net, state)
    problems = {"of another shape": shapes, "constant, with other values": changed}
    if strict or shapes:
        problems |= {"missing in the file": missing, "unknown to the network": unexpected}
    hint = "Shapes are never ignored: make" if shapes else "Make"
    hint += " `network_g` describe the network the file was trained with."
    _refuse(net, path, problems, "The file is damaged: use another copy." if changed and not shapes else hint)
    net.load_state_dict(dict(state), strict=strict)
    return [f"not in the file: {key}" for key in missing] + [f"not in the network: {key}" for key in unexpected]


def with_own_quantizers(net: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike) -> dict[str, Tensor]:
    """A state in which quantizers that it has of another kind than the network are the network's own. The log names them.

    Args:
        net: bare network.
        state: names to tensors, of a network with other quantizers at some sites.
        path: where it came from, for the log.
    """
    others = other_quantizers(net, state)
    if not others:
        return dict(state)
    listed = ", ".join(list(others)[:3]) + (" ..." if len(others) > 3 else "")
    message = "%s: %d quantizers are of another kind than in the file and start anew: %s"
    logging.getLogger("basicsr").warning(message, path, len(others), listed)
    dropped = set().union(*others.values())
    own = {key: t for key, t in net.state_dict().items() if key.startswith(tuple(f"{name}." for name in others))}
    return {key: tensor for key, tensor in state.items() if key not in dropped} | own


def load_fp_state(net: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike = "(in memory)") -> list[str]:
    """Load a full-precision state_dict into a quantized network, whose quantizers stay as they are.

    Exactly the keys of quantizers and transforms may be missing. Nothing is loaded if anything else is wrong.

    Args:
        net: bare network, quantized or full precision.
        state: names to tensors of the full-precision network.
        path: where it came from, for messages.

    Returns:
        The quantizers' keys, which the file lacks, sorted.

    Raises:
        CheckpointMismatchError: missing, unknown (quantizers' keys included) or mis-shaped keys, all listed.
    """
    ours = quantizer_keys(net) | transform_keys(net)
    missing, unexpected, shapes = _differences(net, {key: value for key, value in state.items() if key not in ours})
    problems = {
        "of another shape": shapes,
        "constant, with other values": _changed(net, state),
        "missing in the file": [key for key in missing if key not in ours],
        "unknown to the network": unexpected,
        "of quantizers (this is not a full-precision checkpoint)": sorted(ours & state.keys()),
    }
    _refuse(net, path, problems, "Give the weights of the network that is to be quantized.")
    net.load_state_dict(dict(state), strict=False)
    return sorted(ours)


def first_non_finite(state: Mapping[str, Tensor]) -> str | None:
    """Name of the first floating-point tensor with NaN or infinity in it, None when all are finite."""
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return key
    return None


def write_file(content: object, path: str | os.PathLike) -> None:
    """Write with ``torch.save`` so that ``path`` always holds either the old or the whole new content.

    Args:
        content: tensors and plain containers.
        path: destination; missing folders are made.

    Raises:
        CheckpointError: the file cannot be written (full disk, no permission); what was at ``path`` is untouched.
    """
    path = Path(path)
    # serialised in memory first: torch's own file writer hides the operating system's reason
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        write_bytes(path, buffer.getbuffer(), durable=True)
    except OSError as err:
        raise CheckpointError(
            f"cannot write {path} ({buffer.getbuffer().nbytes:,} bytes): {err.strerror or err}. Files saved earlier "
            "are intact; free space or permit writing, then continue with --auto_resume"
        ) from err


def load_training_state(path: str | os.PathLike) -> dict:
    """Read a BasicSR training state (``*.state``) without running code from it; tensors arrive on the CPU.

    Args:
        path: the file.

    Returns:
        Mapping with at least ``epoch``, ``iter``, ``optimizers`` and ``schedulers``.

    Raises:
        CheckpointError: unreadable, unsafe, or not a training state.
    """
    state = read_file(path, "training state")
    wanted = ("epoch", "iter", "optimizers", "schedulers")
    lacking = [key for key in wanted if not isinstance(state, dict) or key not in state]
    if lacking:
        raise CheckpointError(
            f"{path} is not a training state: it lacks {', '.join(lacking)}. `path: resume_state` takes an "
            "experiments/NAME/training_states/ITERATION.state; network weights belong in `pretrain_network_g`"
        )
    return state
