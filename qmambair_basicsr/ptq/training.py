"""Methods that train: the contract that BasicSR's loop (``models/ptq_model.py``) and ``quantize`` share.

Life of such a method::

    method.open(net)            what it attaches, by shapes alone: a resumed run stops here and loads its state
    method.plan(total)          how many iterations there are
    method.calibrate(batches)   starting values, from images
    method.step(i, images)      one iteration, i = 0, 1, ...
    method.finish(copy)         at any time: turns a copy of the network into an ordinary quantized one

Everything that training changes is in ``net.state_dict()`` and ``training_state()``; random draws of an iteration come
from :meth:`TrainedMethod.generator`. So a run that is cut off goes on to the same bits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..layers.sites import PlacedSite, network_sites
from ..quantizers.identity import Identity
from ..quantizers.spec import Option
from .method import PTQMethod

SEED = Option(0, "seed of what the method draws", low=0, high=2**31)


def full_precision(net: nn.Module) -> nn.Module:
    """A copy of a prepared network without quantization, in evaluation, that nothing trains."""
    full = copy.deepcopy(net)
    leave_out(network_sites(full))
    return full.requires_grad_(False).eval()


def leave_out(sites: Sequence[PlacedSite]) -> None:
    """Put some sites into full precision, in place."""
    for placed in sites:
        if placed.site.kind == "state":
            del placed.owner.quantizers[placed.site.part]  # the fused scan, which keeps no states
        else:
            placed.replace(Identity(32, placed.quantizer.site))


class TrainedMethod(PTQMethod):
    """Base class of methods that train.

    Attributes:
        default_iterations: of ``quantize`` where nothing else is said.
        net: the network that is quantized; all of it in evaluation, whatever is trained.
        full: its full-precision counterpart, as it was when the method was opened.
    """

    trains = True
    default_iterations: ClassVar[int] = 100
    net: nn.Module
    full: nn.Module

    def open(self, net: nn.Module) -> None:
        """Take a prepared network, and attach what the method trains; values come later."""
        self.net, self.full = net.eval(), full_precision(net)
        net.requires_grad_(False)
        self.attach()

    def attach(self) -> None:
        """Attach transforms, put quantizers in place of others: what shapes alone tell."""

    def calibrate(self, batches: Sequence[Tensor]) -> None:
        """Set the starting values from images, (B, C, H, W) each."""
        raise NotImplementedError

    def plan(self, total: int) -> None:
        """Take the number of iterations.

        Raises:
            ValueError: too few.
        """
        if not isinstance(total, int) or isinstance(total, bool) or total < 0:
            raise ValueError(f"{type(self).__name__}: iterations must be a whole number, at least 0; got {total!r}")
        self.total = total

    def step(self, iteration: int, images: Tensor) -> dict[str, float]:
        """Carry out one iteration.

        Args:
            iteration: from 0 on.
            images: training images (B, C, H, W), for methods that train on more than the calibration images.

        Returns:
            Name -> loss, for the log.
        """
        raise NotImplementedError

    def learning_rates(self) -> list[float]:
        """Rates of the next step, for the log."""
        return [0.0]

    def training_state(self) -> dict[str, Any]:
        """What :meth:`step` goes on from, beyond the network: tensors, numbers, plain containers."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`training_state`; the network has its own state by then."""

    def finish(self, net: nn.Module) -> None:
        """Turn a network that this method has trained, or a copy of it, into an ordinary quantized one, in place."""
        raise NotImplementedError

    def generator(self, iteration: int) -> torch.Generator:
        """Random numbers of an iteration."""
        return torch.Generator().manual_seed(self.settings.get("seed", 0) * 1_000_003 + iteration)

    def apply(
        self,
        net: nn.Module,
        batches: Sequence[Tensor],
        iterations: int | None = None,
        report: Callable[[int, int, dict[str, float]], None] | None = None,
    ) -> None:
        """Run from beginning to end; iteration i trains on batch i, over and over again.

        Args:
            net, batches: as for :meth:`PTQMethod.apply`.
            iterations: None for ``default_iterations``.
            report: called after every iteration with its number from 1 on, their number, and the losses.
        """
        trained = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
        self.open(net)
        self.plan(self.default_iterations if iterations is None else iterations)
        self.calibrate(batches)
        for i in range(self.total):
            losses = self.step(i, batches[i % len(batches)])
            if report is not None:
                report(i + 1, self.total, losses)
        self.finish(net)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(trained.get(name, False))


class OptimizedMethod(TrainedMethod):
    """A method whose optimizers live as long as it does.

    A subclass builds them in :meth:`build_optimizers`, at the end of :meth:`open`, over parameters that stay the same
    objects, and implements :meth:`losses`.
    """

    optimizers: list[torch.optim.Optimizer]

    def open(self, net: nn.Module) -> None:
        super().open(net)
        self.optimizers = self.build_optimizers()

    def build_optimizers(self) -> list[torch.optim.Optimizer]:
        """Optimizers of everything that is trained."""
        raise NotImplementedError

    def losses(self, iteration: int, images: Tensor) -> dict[str, Tensor]:
        """Name -> loss; their sum is minimised."""
        raise NotImplementedError

    def schedule(self, iteration: int) -> None:
        """Set learning rates, and what is trained, for an iteration."""

    def stage(self, iteration: int) -> object:
        """Two iterations of the same stage differ in their rates alone; None where nothing is known of that."""
        return None

    def update(self, iteration: int, images: Tensor) -> dict[str, Tensor]:
        """What an iteration computes once rates are set; asks the device nothing, so that it can be recorded.

        Returns:
            Name -> loss, detached.
        """
        losses = self.losses(iteration, images)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        sum(losses.values()).backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def step(self, iteration: int, images: Tensor) -> dict[str, float]:
        self.schedule(iteration)
        return {name: loss.item() for name, loss in self.update(iteration, images).items()}

    def learning_rates(self) -> list[float]:
        return [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]

    def training_state(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_training_state(self, state: dict[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
