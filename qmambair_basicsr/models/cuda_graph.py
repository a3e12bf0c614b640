"""Recording a computation as a CUDA graph, and what has to be put right when that fails."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn


class CudaGraph:
    """A computation as one CUDA graph.

    Args:
        device: of its tensors.
        stream: to record on, where graphs run side by side: no other one may use it. cuBLAS's workspaces belong to streams, also
            in a graph. None: any.
    """

    def __init__(self, device: torch.device, stream: torch.cuda.Stream | None = None) -> None:
        self._device = torch.cuda.current_device() if device.index is None else device.index
        self._stream = torch.cuda.Stream(self._device) if stream is None else stream
        self._graph: torch.cuda.CUDAGraph | None = None

    @contextlib.contextmanager
    def warm_up(self) -> Iterator[None]:
        """Inside, kernels run on the stream that will be recorded: its workspaces and gradient nodes are made."""
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)

    def record(self, computation: Callable[[], None]) -> None:
        """Record what ``computation`` launches; nothing is computed.

        Raises:
            Exception: what the computation raised; a RuntimeError of CUDA where a launch cannot be recorded.
        """
        self._graph = None  # its memory is free before that of the next one is taken
        graph, pool, failure = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), None
        outside = torch.cuda.current_stream(self._device)
        try:
            # the loader's threads go on allocating memory: only this thread's calls count
            with torch.cuda.graph(graph, pool, self._stream, "thread_local"):
                try:
                    computation()
                except Exception as error:
                    failure = error  # ending the recording then fails too, with less to say
                    raise
        except Exception as error:
            self._recover(outside, pool)
            if failure is None or failure is error:
                raise
            raise failure from error
        self._graph = graph

    def replay(self) -> None:
        """Compute what was recorded, on the current stream."""
        self._graph.replay()

    def _recover(self, outside: torch.cuda.Stream, pool: tuple[int, int]) -> None:
        """After a broken recording: torch's streams, memory and random numbers still expect its end."""
        torch.cuda.set_stream(outside)
        with contextlib.suppress(Exception):  # where the recording could be ended, this has been done
            torch._C._cuda_endAllocateToPool(self._device, pool)
        torch.cuda.synchronize(self._device)
        generator = torch.cuda.default_generators[self._device]
        generator.graphsafe_set_state(torch.Generator(f"cuda:{self._device}").graphsafe_get_state())


RECORDERS: dict[str, type] = {"cuda": CudaGraph}
"""Type of device -> what records and replays a computation there."""


def reason_of(error: BaseException, modules: Mapping[str, nn.Module]) -> str:
    """Why a recording failed: the module and the line that raised, and the message.

    Args:
        error: what it raised.
        modules: roots by name, whose modules are looked for.
    """
    names = {id(m): f"{root}.{name}" for root, net in modules.items() for name, m in net.named_modules() if name}
    where, line = "", ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if id(module) in names:
            where = f"{names[id(module)]} ({type(module).__name__}), "
        line = f"{Path(frame.f_code.co_filename).name}:{number} in {frame.f_code.co_name}"
    message = str(error).strip().splitlines()
    return f"{where}{line}: {type(error).__name__}: {message[0] if message else ''}"
