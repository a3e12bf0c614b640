"""Where the activation quantizers of Q-MambaIR go: the release's code and the paper disagree.

* ``code``: DLS on the seven scan inputs and on the inputs of the layers that the network names (``behind_scan``: every
  ``out_proj``), LSQ with offset on all other inputs of convolutions and linears (what the published weights were trained
  with).
* ``paper``: DLS on every one of them ("embedded into all activation paths").

Here both are ordinary overrides: which type stands for "DLS" is what the option file gives under ``scan``, and which
for "LSQ with offset" what it gives under ``act``, so the same policies place any other pair of quantizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..quantizers.spec import QuantizerSpec, QuantSpec, SpecError


def remark(quant: Mapping[str, Any]) -> str:
    """What a table must add to the name of a network or method with these ``quant:`` settings; nothing in most cases."""
    return ", conv FP" if quant.get("conv") == "fp" else ""


def leave_group_convs(spec: QuantSpec, names: Sequence[str]) -> QuantSpec:
    """Write ``conv: fp`` out as overrides; those of the option file come later and win.

    Args:
        spec (QuantSpec): Settings as the option file gives them.
        names (Sequence[str]): The convolutions behind groups of blocks, or the modules around them.
    """
    full = {"weight": QuantizerSpec(), "act": QuantizerSpec()}
    left = [(pattern, full) for name in names for pattern in (name, f"{name}.*")]
    return replace(spec, overrides=(*left, *spec.overrides))


def apply_policy(spec: QuantSpec, behind_scan: Sequence[str]) -> QuantSpec:
    """Write ``spec.act_policy`` out as overrides; those of the option file come later and win.

    Args:
        spec (QuantSpec): Settings as the option file gives them.
        behind_scan (Sequence[str]): Patterns of the layers that ``code`` gives the scan's quantizer, from the network's
            :class:`NetworkInfo`.

    Returns:
        QuantSpec: Settings whose ``overrides`` say everything.

    Raises:
        SpecError: The policy ``paper`` without a ``scan`` quantizer.
    """
    unquantized = QuantizerSpec().type
    if spec.act.bits == 32:
        return spec
    if spec.scan.type == unquantized:
        if spec.act_policy == "paper":
            raise SpecError(
                "quant.act_policy: 'paper' uses the scan quantizer everywhere, but quant.scan is not given."
            )
        return spec
    patterns = tuple(behind_scan) if spec.act_policy == "code" else ("*",)
    chosen = replace(spec.scan, bits=32 if spec.scan.bits == 32 else spec.act.bits)
    return replace(spec, overrides=(*((pattern, {"act": chosen}) for pattern in patterns), *spec.overrides))
