"""Where the activation quantizers of Q-MambaIR go: the release's code and the paper disagree.

* ``code``: DLS on the input of every ``out_proj`` and on the seven scan inputs, LSQ with offset on all other inputs of
  convolutions and linears (what the published weights were trained with).
* ``paper``: DLS on every one of them ("embedded into all activation paths").

Here both are ordinary overrides: which type stands for "DLS" is what the option file gives under ``scan``, and which
for "LSQ with offset" what it gives under ``act``, so the same policies place any other pair of quantizers.
"""

from __future__ import annotations

from dataclasses import replace

from ..quantizers.spec import QuantizerSpec, QuantSpec, SpecError


def apply_policy(spec: QuantSpec) -> QuantSpec:
    """Write ``spec.act_policy`` out as overrides; those of the option file come later and win.

    Args:
        spec (QuantSpec): Settings as the option file gives them.

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
    pattern = "*out_proj" if spec.act_policy == "code" else "*"
    bits = 32 if spec.scan.bits == 32 else spec.act.bits
    return replace(spec, overrides=((pattern, {"act": replace(spec.scan, bits=bits)}), *spec.overrides))
