"""Which settings a resumed run takes from its training state, and which from its option file.

A training state holds the optimizer's moments, and beside them the learning rate, weight decay and schedule it was written
with; BasicSR restores all of it and says nothing when the option file has other values. ``path: resume_schedule`` decides:

* ``state`` (default): the run goes on as it was. What the option file has otherwise is ignored, and listed once.
* ``option``: the moments are taken, everything else is the option file's; the schedule is where it would be had it been
  used from the start.

Adam and AdamW have the same moments: with ``state`` the kind of the state goes on, with ``option`` that of the option file.
What can be neither is one error: moments of another kind of optimizer, or of other parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..checkpoints import CheckpointError
from .optimizers import KINDS

SCHEDULES = ("state", "option")
IMPLEMENTATIONS = frozenset({"fused", "foreach", "capturable", "differentiable"})
"""Options of optimizers that choose how a step is computed, not what it is."""

_NOT_COMPARED = {"params", "lr", "maximize", "decoupled_weight_decay", *IMPLEMENTATIONS}
_PROGRESS = {"last_epoch", "base_lrs", "optimizer", "verbose"}  # of schedulers; so is what begins with "_"
_SAME_MOMENTS = ({"Adam", "AdamW"}, {"SGD"})


def kinds(things: Sequence[object]) -> list[str]:
    """Class names of optimizers or schedulers, as a training state records them."""
    return [type(thing).__name__ for thing in things]


def _optimizer_kinds(saved: Mapping) -> set[str]:
    """Kinds of optimizer that may have written a state without a record."""
    group = saved["param_groups"][0]
    if "betas" not in group:
        return {"SGD"}
    if "decoupled_weight_decay" not in group:  # torch before 2.7
        return {"Adam", "AdamW"}
    return {"AdamW" if group["decoupled_weight_decay"] else "Adam"}


def _settings(scheduler: Mapping) -> dict:
    """The schedule in a scheduler's state, without its position."""
    return {
        key: dict(value) if isinstance(value, Counter) else value
        for key, value in scheduler.items()
        if key not in _PROGRESS and not key.startswith("_")
    }


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


class ResumePlan:
    """Compares a training state with what the option file has built, before the state is loaded.

    Args:
        schedule: ``path: resume_schedule``.
        optimizers, schedulers: as built from the option file; an optimizer may be replaced in the list.
        state: the training state.

    Raises:
        ValueError: another ``resume_schedule``.
        CheckpointError: what cannot be resumed; the message says why and what to do.
    """

    def __init__(
        self, schedule: str, optimizers: list[Optimizer], schedulers: Sequence[LRScheduler], state: Mapping
    ) -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f"path: resume_schedule: {schedule!r} is unknown; use {' or '.join(SCHEDULES)}")
        self.by_option = schedule == "option"
        self.optimizers, self.schedulers, self.state = optimizers, schedulers, state
        self.groups = [
            [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
            for optimizer in optimizers
        ]
        self.other_kinds: dict[int, str] = {}  # optimizer -> the kind that has written its state
        self._check_parameters()
        self._check_kinds()

    def _fail(self, reason: str, cure: str) -> None:
        raise CheckpointError(
            f"the training state of iteration {self.state.get('iter')} does not fit this option file's network or "
            f"optimizer: {reason}. {cure}"
        )

    def _check_parameters(self) -> None:
        cure = "Resume with the option file it was written by"
        for what, ours in (("optimizers", self.optimizers), ("schedulers", self.schedulers)):
            if len(self.state[what]) != len(ours):
                self._fail(f"it holds {len(self.state[what])} {what}, the run has {len(ours)}", cure)
        for optimizer, saved in zip(self.optimizers, self.state["optimizers"], strict=True):
            counts = [[len(g["params"]) for g in groups] for groups in (saved["param_groups"], optimizer.param_groups)]
            if counts[0] != counts[1]:
                self._fail(f"groups of {counts[0]} trained tensors there, of {counts[1]} here", cure)

    def _check_kinds(self) -> None:
        anew = "start a new run from the weights (path: pretrain_network_g, without resume_state and --auto_resume)"
        recorded = self.state.get("optimizer_kinds")
        for i, (optimizer, saved) in enumerate(zip(self.optimizers, self.state["optimizers"], strict=True)):
            ours = type(optimizer).__name__
            possible = {recorded[i]} if recorded else _optimizer_kinds(saved)
            if ours in possible:
                continue
            theirs = " or ".join(sorted(possible))
            if any({ours, *possible} <= same for same in _SAME_MOMENTS):
                self.other_kinds[i] = theirs
                continue
            self._fail(
                f"it was written by {theirs}, train: optim_g: type is {ours}",
                f"train: optim_g: type: {theirs} goes on with it, or {anew}",
            )
        if self.by_option:
            return
        recorded = self.state.get("scheduler_kinds")
        for i, (scheduler, saved) in enumerate(zip(self.schedulers, self.state["schedulers"], strict=True)):
            same = (
                recorded[i] == type(scheduler).__name__ if recorded else _settings(saved).keys() == self._own(i).keys()
            )
            if not same:
                name = recorded[i] if recorded else "another scheduler"
                self._fail(
                    f"it follows {name}, train: scheduler: type gives {type(scheduler).__name__}",
                    f"path: resume_schedule: option goes on with the option file's schedule, or {anew}",
                )

    def _own(self, index: int) -> dict:
        return _settings(self.schedulers[index].state_dict())

    def differences(self) -> list[str]:
        """Differences of the option file from the state: ``train: optim_g: lr: 1e-05 (state: 0.0005)``."""
        found = [
            f"train: optim_g: type: {type(self.optimizers[i]).__name__} (state: {kind})"
            for i, kind in self.other_kinds.items()
        ]
        for own, saved in zip(self.groups, self.state["optimizers"], strict=True):
            for i, (group, other) in enumerate(zip(own, saved["param_groups"], strict=True)):
                where = "train: optim_g" + (f" (parameter group {i + 1})" if i else "")
                for key in sorted((group.keys() & other.keys()) - _NOT_COMPARED):
                    if _plain(group[key]) != _plain(other[key]):
                        name = "lr" if key == "initial_lr" else key
                        found.append(f"{where}: {name}: {_plain(group[key])} (state: {_plain(other[key])})")
        if "scheduler_kinds" in self.state and self.state["scheduler_kinds"] != kinds(self.schedulers):
            now, then = (", ".join(names) for names in (kinds(self.schedulers), self.state["scheduler_kinds"]))
            return [*found, f"train: scheduler: type: {now} (state: {then})"]
        for i, saved in enumerate(self.state["schedulers"]):
            own, other = self._own(i), _settings(saved)
            for key in sorted(own.keys() & other.keys()):
                if own[key] != other[key]:
                    found.append(f"train: scheduler: {key}: {_shown(own[key])} (state: {_shown(other[key])})")
        return found

    def load(self) -> None:
        """Load the state into optimizers and schedulers, as ``resume_schedule`` says.

        With ``option`` schedulers are left as built, at their start: the model takes them to the iteration of the state.
        """
        for i, kind in self.other_kinds.items():
            if not self.by_option:
                self.optimizers[i] = _as_kind(kind, self.optimizers[i], self.schedulers)
        for optimizer, saved, own in zip(self.optimizers, self.state["optimizers"], self.groups, strict=True):
            optimizer.load_state_dict(saved)
            if self.by_option:
                for group, values in zip(optimizer.param_groups, own, strict=True):
                    group.update({key: value for key, value in values.items() if key not in IMPLEMENTATIONS})
        if not self.by_option:
            for scheduler, saved in zip(self.schedulers, self.state["schedulers"], strict=True):
                scheduler.load_state_dict(saved)


def _as_kind(kind: str, optimizer: Optimizer, schedulers: Sequence[LRScheduler]) -> Optimizer:
    """An optimizer of another kind over the same groups, in whose place the schedulers now step it."""
    groups = [{key: group[key] for key in ("params", "lr", "initial_lr")} for group in optimizer.param_groups]
    other = KINDS[kind](groups, lr=groups[0]["lr"])
    for scheduler in schedulers:
        if scheduler.optimizer is optimizer:
            scheduler.optimizer = other
    return other


def _shown(value: object) -> object:
    """Milestones as the list that the option file has."""
    return sorted(value) if isinstance(value, dict) else _plain(value)
