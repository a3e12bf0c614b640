"""Adam and AdamW as torch has them, with less Python for each tensor: a quantized network has thousands of small ones.

torch's fused step collects every parameter's tensors anew and counts its steps in a tensor of its own, one addition after
the other on a CPU: 16 ms for the light network's 2,150 parameters, of which the arithmetic is 2. Here the counts of a group
are entries of one tensor, added to at once, and what is the same from step to step is remembered. The numbers, the state
and the files of a training are those of torch's classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Plan(NamedTuple):
    """A group's parameters that have a state.

    Attributes:
        params: of the group, all of them.
        trained: those with a state.
        others: those without.
        states: of the trained ones, as ``optimizer.state`` holds them.
        counts: their steps, (n,) float32.
        steps: the entries of ``counts``, which the states hold.
    """

    params: list[Tensor]
    trained: list[Tensor]
    others: list[Tensor]
    states: list[dict[str, Any]]
    counts: Tensor
    steps: list[Tensor]

    def holds(self, group: dict, state: dict) -> bool:
        """Whether nothing was loaded, added or put in place of something since the plan was made."""
        return (
            group["params"] is self.params
            and len(self.params) == len(self.trained) + len(self.others)
            and all(state.get(p) is own for p, own in zip(self.trained, self.states, strict=True))
            and all(own["step"] is step for own, step in zip(self.states, self.steps, strict=True))
            and not any(p in state for p in self.others)
        )

    def fits(self) -> bool:
        """Whether the parameters with a gradient are those with a state."""
        return all(p.grad is not None for p in self.trained) and all(p.grad is None for p in self.others)


class _Lean(torch.optim.Optimizer):
    """What both optimizers share; the other base is torch's."""

    _plans: list[_Plan] | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step, as torch's."""
        if closure is not None or not self._plain():
            return super().step(closure)
        if self._planned() and all(plan.fits() for plan in self._plans):
            for plan, group in zip(self._plans, self.param_groups, strict=True):
                self._update(plan, group)
            return None
        super().step()
        self._plan()
        return None

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's."""
        super().load_state_dict(state_dict)
        self._plan()

    @torch.no_grad()
    def _plan(self) -> None:
        """Make plans where there are none that hold; that moves the counts, which a recording takes for a loaded state."""
        if not self._planned():
            plans = [_plan(group, self.state) for group in self.param_groups] if self._plain() else [None]
            self._plans = None if None in plans else plans

    def _planned(self) -> bool:
        plans = self._plans
        return (
            plans is not None
            and len(plans) == len(self.param_groups)
            and all(plan.holds(group, self.state) for plan, group in zip(plans, self.param_groups, strict=True))
        )

    def _plain(self) -> bool:
        """Whether the step is the common one: fused, rates as numbers, nobody scales gradients or leaves steps out."""
        scaled = getattr(self, "grad_scale", None) is not None or getattr(self, "found_inf", None) is not None
        return not scaled and all(
            group.get("fused")
            and not (group["amsgrad"] or group["capturable"] or group["differentiable"])
            and not isinstance(group["lr"], Tensor)
            for group in self.param_groups
        )

    def _update(self, plan: _Plan, group: dict) -> None:
        if not plan.trained:
            return
        plan.counts.add_(1)
        beta1, beta2 = group["betas"]
        decoupled = group.get("decoupled_weight_decay", isinstance(self, torch.optim.AdamW))
        (torch._fused_adamw_ if decoupled else torch._fused_adam_)(
            plan.trained,
            [p.grad for p in plan.trained],
            [own["exp_avg"] for own in plan.states],
            [own["exp_avg_sq"] for own in plan.states],
            [],
            plan.steps,
            amsgrad=False,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )


def _plan(group: dict, state: dict) -> _Plan | None:
    """The plan of a group, with its counts in one tensor; None where torch's step is the one to take."""
    params = group["params"]
    trained = [p for p in params if p in state]
    states = [state[p] for p in trained]
    kinds = {(t.device, t.dtype) for p, own in zip(trained, states, strict=True) for t in (p, own["step"])}
    if len(kinds) > 1 or any(dtype is not torch.float32 for _, dtype in kinds):
        return None
    counts = torch.stack([own["step"] for own in states]) if states else torch.empty(0)
    steps = list(counts.unbind())
    for own, step in zip(states, steps, strict=True):
        own["step"] = step
    return _Plan(params, trained, [p for p in params if p not in state], states, counts, steps)


class Adam(_Lean, torch.optim.Adam):
    """``torch.optim.Adam``."""


class AdamW(_Lean, torch.optim.AdamW):
    """``torch.optim.AdamW``."""


KINDS = {"Adam": Adam, "AdamW": AdamW, "SGD": torch.optim.SGD}
"""What ``train: optim_g: type`` names."""
