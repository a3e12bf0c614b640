"""Operators that take any number of tensors in one call: what those of the quantizers share.

An item is what one tensor needs: a ``NamedTuple`` that begins with its tensors, the quantized one first. An operator's
function of one tensor is that of several with one item, so results do not depend on what is quantized together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .layout import alike


class Layout(NamedTuple):
    """How a flat list of tensors and the constants of each item become items.

    Attributes:
        kind: class of the items.
        tensors: how many tensors an item begins with.
        constants: the rest of every item.
    """

    kind: type
    tensors: int
    constants: tuple[tuple, ...]

    def items(self, tensors: Sequence[Tensor | None]) -> list[Any]:
        """The items that :func:`flat` took apart."""
        n = self.tensors
        if len(self.constants) == 1:
            return [self.kind(*tensors[:n], *self.constants[0])]
        return [self.kind(*tensors[i * n : i * n + n], *rest) for i, rest in enumerate(self.constants)]


def flat(items: Sequence[Any], tensors: int) -> tuple[Layout, Sequence[Tensor | None]]:
    """Items as their layout and a list of all their tensors, as an autograd function takes them."""
    if len(items) == 1:
        item = items[0]
        return Layout(type(item), tensors, (item[tensors:],)), item[:tensors]
    layout = Layout(type(items[0]), tensors, tuple([item[tensors:] for item in items]))
    return layout, [t for item in items for t in item[:tensors]]


def carried_back(
    backward: Callable[[list[Tensor], list[Any], Sequence[Tensor]], Sequence[Sequence[Tensor | None]]],
    grads: Sequence[Tensor | None],
    items: list[Any],
    kept: Sequence[Tensor],
    tensors: int,
) -> Sequence[Tensor | None]:
    """Gradients of all tensors of all items, in a flat list; None for items whose result nobody used.

    Args:
        backward: the backend's, for a list of gradients of results that lie in memory as their items do.
        grads: of the results; None where a result was not used.
        items, kept: as the forward pass had and left them.
        tensors: how many tensors an item begins with.
    """
    if len(items) == 1:
        grad = grads[0]
        return [None] * tensors if grad is None else backward([alike(grad, items[0][0])], items, kept)[0]
    if all(grad is not None for grad in grads):
        gradients = backward([alike(grad, item[0]) for grad, item in zip(grads, items, strict=True)], items, kept)
        return [t for of_item in gradients for t in of_item]
    used = [i for i, grad in enumerate(grads) if grad is not None]
    found: list[Tensor | None] = [None] * (len(items) * tensors)
    if used:
        per_item = len(kept) // len(items)
        chosen = [items[i] for i in used]
        left = [t for i in used for t in kept[i * per_item : (i + 1) * per_item]]
        results = backward([alike(grads[i], items[i][0]) for i in used], chosen, left)
        for i, gradients in zip(used, results, strict=True):
            found[i * tensors : (i + 1) * tensors] = gradients
    return found
