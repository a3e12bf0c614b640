"""QuantSR: the redistribution-driven learnable quantizer (RLQ) of QuantSR.

Qin et al., "QuantSR: Accurate Low-bit Quantization for Efficient Image Super-Resolution", NeurIPS 2023,
section 3.2.

==========  ===================================================================  ====================
paper       meaning                                                              here
==========  ===================================================================  ====================
v           step size, learned                                                   ``scale``
tau         shift of each input channel, learned, starts at 0 (activations)      ``tau``
phi         soft rounding of the backward pass                                   ``ste.soft_round``
==========  ===================================================================  ====================

Activations: x + tau_c is quantized as LSQ does, and tau is not subtracted again, so it redistributes the
activation. Weights: LSQ without tau. Both use phi backward. Where a site has no channels (a scan parameter), tau
is one number.

QuantSR's other part, the depth-dynamic architecture (DQA), changes the network and is not a quantizer.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from .forms import StaticForm
from .registry import register_quantizer
from .site import ACTIVATION, Site
from .soft_ste import SoftSTE


@register_quantizer
class QuantSR(SoftSTE):
    """Soft-rounded LSQ with a learned shift per channel; see the module docstring.

    Args:
        granularity: of the step, ``tensor`` (paper) or ``channel``.
    """

    def __init__(
        self,
        bits: int,
        site: Site = ACTIVATION,
        *,
        granularity: str = "tensor",
    ) -> None:
        super().__init__(bits, site, granularity=granularity)
        if self.role != "weight":
            whole = site.channels is None or site.channel_dim is None
            self.tau = nn.Parameter(torch.zeros(1 if whole else site.channels))

    @torch.no_grad()
    def static_form(self) -> StaticForm | None:
        form = super().static_form()
        return form if self.role == "weight" else replace(form, entering=self.tau, entering_dim=self.site.channel_dim)

    def parameter_health(self) -> dict[str, float]:
        report = super().parameter_health()
        return report if self.role == "weight" else report | {"tau": self.tau.detach().abs().mean().item()}

    def _entering(self, x: Tensor) -> Tensor:
        return self._full(x) if self.role == "weight" else self._full(x) + self._tau(x)

    def _tau(self, x: Tensor) -> Tensor:
        if self.tau.numel() == 1:
            return self.tau.reshape(())
        shape = [1] * x.ndim
        shape[self.site.channel_dim] = -1
        return self.tau.view(shape)
