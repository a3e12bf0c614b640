"""Block-wise reconstruction: each block of a network is trained by itself to return what it does in full precision.

Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", ICLR 2021; Wei et al., "QDrop",
ICLR 2022. For one block after the other, in the order in which the network runs them:

1. the block's inputs are captured once for every calibration image: in full precision, and behind the blocks that are
   done; its targets in full precision;
2. in each iteration a few images are drawn, the block's input is mixed element by element from both (QDrop), and what the
   block trains takes a step;
3. the next block.

Only the captured inputs and targets of one block are in memory. A unit is a block that the network names
(``NetworkInfo.blocks``), or a quantized layer outside of all of them; of a method that is confined to some modules
(``within.py``), one of these.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration.calibrate import evaluation
from ..layers.info import blocks_of
from ..layers.sites import activation_sites
from ..layers.transforms import places
from .training import TrainedMethod


def units_of(net: nn.Module) -> dict[str, nn.Module]:
    """Name -> module that is reconstructed by itself: blocks, and quantized layers outside, in module order."""
    blocks = blocks_of(net)
    inside = tuple(f"{name}." for name in blocks)
    outside = {
        name
        for name, place in places(net).items()
        if not name.startswith(inside) and not place.part and place.owner.get_submodule(place.weight_slot).bits != 32
    }
    return {name: module for name, module in net.named_modules() if name in blocks or name in outside}


class _Reached(Exception):
    """The module whose call was waited for has been called."""


@dataclass
class Captured:
    """What a module was given, image by image.

    Attributes:
        inputs: first argument for each image, (1, ...).
        others: the other arguments, which all images of one size share.
        outputs: what it returned, if that was asked for.
    """

    inputs: list[Tensor] = field(default_factory=list)
    others: tuple = ()
    outputs: list[Tensor] = field(default_factory=list)

    def run(self, module: nn.Module, x: Tensor) -> Tensor:
        """Call the module with another first argument, (N, ...), as the network would."""
        return module(x, *map(_fresh, self.others))


def _fresh(value: Any) -> Any:
    """An argument as it was when it was captured; what is used up when read (routing noise) has ``snapshot``."""
    return value.snapshot() if hasattr(value, "snapshot") else value


AT_ONCE = 8
"""Images in one pass that captures."""


def capture(net: nn.Module, name: str, images: Sequence[Tensor], outputs: bool = False) -> Captured:
    """Inputs of a module for each image; the network runs no further than it has to.

    Args:
        net: network; runs in evaluation.
        name: of the module.
        images: (1, C, H, W) each, of one size.
        outputs: keep what it returns as well.

    Nothing is trained meanwhile. Gradients are on all the same: without, some networks run the images of a batch apart, when
    testing, which takes a GPU as often as long.
    """
    module, found = net.get_submodule(name), Captured()

    def entered(_: nn.Module, given: tuple) -> None:
        found.inputs += given[0].detach().clone().split(1)
        found.others = tuple(map(_fresh, given[1:]))
        if not outputs:
            raise _Reached

    def left(_: nn.Module, given: tuple, result: Tensor) -> None:
        found.outputs += result.detach().clone().split(1)
        raise _Reached

    hooks = [module.register_forward_pre_hook(entered)]
    if outputs:
        hooks.append(module.register_forward_hook(left))
    try:
        with evaluation(net), torch.enable_grad():
            for first in range(0, len(images), AT_ONCE):
                try:
                    net(torch.cat(list(images[first : first + AT_ONCE])))
                except _Reached:
                    continue
                raise ValueError(f"{type(net).__name__} never calls {name}: it cannot be reconstructed by itself")
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def replaced_output(net: nn.Module, name: str, value: Tensor):
    """Inside, a module of the network returns a given value."""
    hook = net.get_submodule(name).register_forward_hook(lambda module, given, result: value)
    try:
        yield
    finally:
        hook.remove()


def output_gradient(
    net: nn.Module, name: str, image: Tensor, value: Tensor, loss: Callable[[Tensor], Tensor]
) -> Tensor:
    """Gradient of a loss of the network's output with respect to what one of its modules returns.

    Args:
        net: network whose parameters need no gradient.
        name: of the module.
        image: (1, C, H, W).
        value: what the module returns instead of its own result.
        loss: of the output.
    """
    value = value.detach().requires_grad_()
    with torch.enable_grad(), replaced_output(net, name, value):
        (gradient,) = torch.autograd.grad(loss(net(image)), value)
    return gradient


@contextmanager
def dropped(net: nn.Module, share: float, generator: torch.Generator):
    """Inside, every element of a quantized activation stays in full precision with probability ``share`` (QDrop)."""

    def hook(_: nn.Module, given: tuple, result: Tensor) -> Tensor:
        keep = torch.rand(result.shape, generator=generator).to(result.device) < share
        return torch.where(keep, given[0], result)

    hooks = [placed.quantizer.register_forward_hook(hook) for placed in activation_sites(net)] if share else []
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


class BlockReconstruction(TrainedMethod):
    """Base class of methods that reconstruct block by block.

    The iterations are shared out evenly among the units. A subclass says what a unit trains (:meth:`prepare_unit`) and
    with which loss (:meth:`losses`).

    Attributes:
        drop: probability that an element stays in full precision, of a unit's input and of the activations inside.
        batch: images of an iteration.
    """

    drop: float = 0.0
    batch: int = 4

    def calibrate(self, batches: Sequence[Tensor]) -> None:
        self.images = self.of_one_size(batches)
        self.start(batches)

    def start(self, batches: Sequence[Tensor]) -> None:
        """Set the starting values of everything."""
        raise NotImplementedError

    def of_one_size(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """The images of all batches, one by one.

        Raises:
            ValueError: they are of several sizes.
        """
        images = [image for batch in batches for image in batch.split(1)]
        sizes = {tuple(image.shape) for image in images}
        if len(sizes) > 1:
            shown = ", ".join("x".join(map(str, size[2:])) for size in sorted(sizes))
            raise ValueError(f"{type(self).__name__}: calibration images must be of one size, not {shown}")
        return images

    def open(self, net: nn.Module) -> None:
        super().open(net)
        self.units = [name.rstrip(".") for name in self.within] if self.confined else list(units_of(net))
        self.unit: str | None = None
        self.optimizers: list[torch.optim.Optimizer] = []

    def plan(self, total: int) -> None:
        super().plan(total)
        if total < len(self.units):
            raise ValueError(
                f"{type(self).__name__} reconstructs {len(self.units)} blocks one after the other: it needs at least as "
                f"many iterations, not {total}"
            )

    def place_of(self, iteration: int) -> tuple[str, int, int]:
        """Unit, iteration within it, and iterations of the unit."""
        index = iteration * len(self.units) // self.total
        first, last = (-(-i * self.total // len(self.units)) for i in (index, index + 1))
        return self.units[index], iteration - first, last - first

    # -- what a subclass says -------------------------------------------------------------------------------------

    def prepare_unit(self, name: str, module: nn.Module, length: int) -> list[torch.optim.Optimizer]:
        """Optimizers of what a unit trains."""
        raise NotImplementedError

    def losses(
        self, iteration: int, length: int, result: Tensor, target: Tensor, chosen: list[int]
    ) -> dict[str, Tensor]:
        """Name -> loss of a unit; their sum is minimised.

        Args:
            iteration, length: within the unit.
            result, target: (N, ...).
            chosen: indices of the images.
        """
        raise NotImplementedError

    def schedule(self, iteration: int, length: int) -> None:
        """Set learning rates for an iteration of a unit."""

    def before_update(self) -> None:
        """Called when gradients are there."""

    def after_update(self) -> None:
        """Called when what is trained has changed."""

    def enter_unit(self, name: str, resumed: bool) -> None:
        """Called when a unit's inputs and targets have been captured; ``resumed`` in the middle of it."""

    # -- iterations -----------------------------------------------------------------------------------------------

    def step(self, iteration: int, images: Tensor) -> dict[str, float]:
        name, inside, length = self.place_of(iteration)
        if name != self.unit:
            self._enter(name, length, resumed=False)
        module = self.net.get_submodule(name)
        generator = self.generator(iteration)
        self.schedule(inside, length)
        chosen = torch.randperm(len(self.images), generator=generator)[: self.batch].tolist()
        given, target = (torch.cat([kept[i] for i in chosen]) for kept in (self.behind.inputs, self.targets.outputs))
        if self.drop:
            exact = torch.cat([self.targets.inputs[i] for i in chosen])
            keep = torch.rand(given.shape, generator=generator).to(given.device) < self.drop
            given = torch.where(keep, exact, given)
        with dropped(module, self.drop, generator):
            result = self.behind.run(module, given)
        losses = self.losses(inside, length, result, target, chosen)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        sum(losses.values()).backward()
        self.before_update()
        for optimizer in self.optimizers:
            optimizer.step()
        self.after_update()
        return {key: loss.item() for key, loss in losses.items()}

    def _enter(self, name: str, length: int, resumed: bool) -> None:
        self.net.requires_grad_(False)
        self.unit = name
        self.behind = capture(self.net, name, self.images)
        self.targets = capture(self.full, name, self.images, outputs=True)
        self.optimizers = self.prepare_unit(name, self.net.get_submodule(name), length)
        self.enter_unit(name, resumed)

    def learning_rates(self) -> list[float]:
        return [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups] or [0.0]

    def training_state(self) -> dict[str, Any]:
        return {
            "unit": self.unit,
            "images": self.images,
            "optimizers": [copy.deepcopy(optimizer.state_dict()) for optimizer in self.optimizers],
            **self.unit_state(),
        }

    def unit_state(self) -> dict[str, Any]:
        """What a unit's losses depend on, beyond its inputs and targets."""
        return {}

    def load_unit_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`unit_state`."""

    def load_training_state(self, state: dict[str, Any]) -> None:
        self.images = list(state["images"])
        if state["unit"] is None:
            return
        length = next(n for i in range(self.total) for name, _, n in [self.place_of(i)] if name == state["unit"])
        self._enter(state["unit"], length, resumed=True)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.load_unit_state(state)
