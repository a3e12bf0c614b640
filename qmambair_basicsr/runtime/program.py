"""Sequences of kernel calls on buffers that stay: worked out once for a size of the image, then run for every image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..ops import glue
from ..ops.glue.native import Codes8, DeltaWeights
from ..ops.integer.kernels import CodeRows, Rows
from ..ops.prepared import joined
from ..ops.table_scan import OnGrid
from .grids import NativeGrid
from .layers import NativeLayer

_MOST_CODES = 2  # grids that a kernel quantizes for at once


class Target(NamedTuple):
    """Codes that a step has to write.

    Attributes:
        grid: their grid.
        data: (M, C) uint8.
        shape: of the tensor in the network, for comparisons; None for (1, M, C).
        dims: order in which its dimensions are in the network, see :meth:`Step.seen`.
    """

    grid: NativeGrid
    data: Tensor
    layout: Callable[[Tensor], Tensor] | None = None

    @property
    def codes(self) -> Codes8:
        """As the kernels take them."""
        return Codes8(self.data, self.grid.values, self.grid.zero)

    def on_grid(self, *shape: int) -> OnGrid:
        """As the scan takes them."""
        return OnGrid(self.data.view(shape), self.grid.values, self.grid.bits)


class Workspace:
    """Memory that the programs of a network share: nothing in it lives longer than the run of one program.

    Attributes:
        generation: changes when a buffer moves, and programs that know its address have to be made again.
    """

    def __init__(self) -> None:
        self._stores: dict[str, Tensor] = {}
        self.generation = 0

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """A buffer, the same memory for the same name."""
        size = torch.Size(shape).numel() * torch.empty(0, dtype=dtype).element_size()
        store = self._stores.get(name)
        if store is None or store.numel() < size:
            self.generation += store is not None
            self._stores[name] = store = torch.empty(size, dtype=torch.uint8)
        return store[:size].view(dtype).view(shape)

    def bytes(self) -> int:
        """Memory in use."""
        return sum(store.numel() for store in self._stores.values())


Observer = Callable[[Target, Tensor], None]
"""Is given the codes that a step wrote and the values (M, C) that they were made of."""


class Program:
    """Steps in the order in which they run.

    Args:
        workspace: of the network.
        size: height and width of the map.
        observer: where every step that writes codes gives its values too, to compare them; None for speed.
    """

    def __init__(self, workspace: Workspace, size: tuple[int, int], observer: Observer | None = None):
        self.workspace, self.size, self.observer = workspace, size, observer
        self.steps: list[Callable[[], object]] = []
        self._joined: list[Callable[[], object]] | None = None
        self.tokens = size[0] * size[1]

    def run(self) -> None:
        """All steps, one after the other; there are no others from the first run on."""
        if self._joined is None:
            self._joined = joined(self.steps)
        for step in self._joined:
            step()

    def floats(self, name: str, columns: int, tokens: int | None = None) -> Tensor:
        """A float32 buffer (M, columns)."""
        return self.workspace.take(name, (tokens or self.tokens, columns))

    def target(self, name: str, grid: NativeGrid, columns: int, layout=None, tokens: int | None = None) -> Target:
        """A buffer for codes (M, columns) on a grid."""
        return Target(grid, self.workspace.take(name, (tokens or self.tokens, columns), torch.uint8), layout)

    def rows(self, x: Tensor, targets: Sequence[Target] = (), *, out: Tensor | None = None, **steps) -> None:
        """A pass over rows, see ``ops/glue``; grids that follow the image take one more over the result.

        Args:
            x: (M, C) float32.
            targets: codes of the result that are wanted.
            out: where the result goes; needed where a grid follows the image, unless it is x itself.
            steps: as ``glue.rows`` takes them.
        """
        followed = [t for t in targets if not t.grid.constant]
        fixed = [t for t in targets if t.grid.constant]
        if not steps and out is None:
            result = x
        else:
            result = out
            if out is None and (followed or self.observer):
                result = torch.empty(x.shape) if self.observer else self.floats("followed", *x.shape[::-1])
            out = result
        now, later = fixed[:_MOST_CODES], fixed[_MOST_CODES:]
        statistics = followed[0] if followed else None
        given = {name: t.codes for name, t in zip(("codes", "codes2"), now, strict=False)}
        given |= {} if statistics is None else _statistics(statistics.grid)
        if steps or out is not None or given:
            self.steps.append(glue.native.rows(x, out=out, **steps, **given))
        self._observe(result, now)
        self._quantize(result, later, followed, measured=statistics)

    def layer(
        self,
        layer: NativeLayer,
        x: Codes8,
        targets: Sequence[Target] = (),
        *,
        out: Tensor | None = None,
        residual: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        """A linear layer or a convolution, and the codes of its result.

        Args:
            layer: packed.
            x: codes (M, I).
            targets: codes of the result that are wanted.
            out: where the result goes; needed where a grid follows the image.
            residual: added to it; may be out.
            size: height and width of the input, where they are not those of the program.
        """
        followed = [t for t in targets if not t.grid.constant]
        fixed = [t for t in targets if t.grid.constant]
        if out is None and (self.observer or followed or len(fixed) > _MOST_CODES):
            tokens = targets[0].data.shape[0]
            out = (
                torch.empty(tokens, layer.outputs) if self.observer else self.floats("followed", layer.outputs, tokens)
            )
        now, later = fixed[:_MOST_CODES], fixed[_MOST_CODES:]
        rows, shape = Rows(*x), (1, *(size or self.size))
        codes = tuple(CodeRows(*t.codes) for t in now)
        self.steps.append(layer.layer.prepared(rows, shape, out=out, codes=codes, residual=residual))
        if out is not None:
            self._observe(out, now)
            self._quantize(out, later, followed)

    def delta(self, dt: Codes8, weights: DeltaWeights, target: Target) -> None:
        """Codes of the scan's delta."""
        out = torch.empty(target.data.shape) if self.observer else None
        if not target.grid.constant:
            self.steps.append(glue.native.delta(dt, weights, **_statistics(target.grid)))
        self.steps.append(glue.native.delta(dt, weights, out=out, codes=target.codes))
        if out is not None:
            self._observe(out, [target])

    def call(self, function: Callable[[], object]) -> None:
        """Anything else."""
        self.steps.append(function)

    def _quantize(self, x: Tensor, fixed: list[Target], followed: list[Target], measured: Target | None = None) -> None:
        for t in followed:
            if t is not measured:
                self.steps.append(glue.native.rows(x, **_statistics(t.grid)))
        rest = fixed + followed
        for first in range(0, len(rest), _MOST_CODES):
            some = rest[first : first + _MOST_CODES]
            given = {name: t.codes for name, t in zip(("codes", "codes2"), some, strict=False)}
            self.steps.append(glue.native.rows(x, **given))
        self._observe(x, rest)

    def _observe(self, x: Tensor, targets: Sequence[Target]) -> None:
        if self.observer is None:
            return
        observer = self.observer
        for target in targets:
            self.steps.append(lambda target=target: observer(target, x))


def _statistics(grid: NativeGrid) -> dict[str, object]:
    return {"statistics": torch.zeros(4), "rule": grid.rule, "new_grid": grid.values}


class Programs:
    """The programs of one part of a network, by the size of the map.

    Args:
        make: ``make(program)`` adds the steps.
    """

    MOST = 4

    def __init__(self, workspace: Workspace, make: Callable[[Program], None]):
        self.workspace, self.make = workspace, make
        self.kept: dict[tuple, tuple[int, Program]] = {}
        self.observer: Observer | None = None

    def of(self, height: int, width: int) -> Program:
        """The program of this size, made if need be."""
        key = (height, width, torch.get_num_threads())
        if self.observer is None and key in self.kept:
            generation, program = self.kept[key]
            if generation == self.workspace.generation:
                return program
        for _ in range(2):  # a buffer that moves while a program is made moves once
            generation = self.workspace.generation
            program = Program(self.workspace, (height, width), self.observer)
            self.make(program)
            if generation == self.workspace.generation:
                break
        if self.observer is None:
            self.kept.pop(key, None)
            while len(self.kept) >= self.MOST:
                self.kept.pop(next(iter(self.kept)))
            self.kept[key] = (generation, program)
        return program


class Fused(nn.Module):
    """Base of the parts of a network that run as programs.

    Args:
        workspace: of the network.
    """

    def __init__(self, workspace: Workspace):
        super().__init__()
        self.programs = Programs(workspace, self.emit)

    def emit(self, program: Program) -> None:
        """Add the steps."""
        raise NotImplementedError
