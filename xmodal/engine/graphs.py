"""How the kernels of a step are captured and replayed: CUDA graphs, on a stream of their own."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")


class Graphs(Protocol):
    """How kernels are captured and replayed: CUDA graphs, or what stands for them in a test."""

    def aside(self) -> AbstractContextManager[object]:
        """A block for the warm-up."""

    def capture(self, compute: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """What replays the kernels of ``compute``, and its result, which every replay renews."""


class CudaGraphs:
    """CUDA graphs of one run. They share memory, because they are never replayed at once."""

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        # Libraries keep work space by stream. A run that takes turns with others has a stream of
        # its own: its graphs are captured where they are replayed, and so share space with nobody.
        self._stream = torch.cuda.current_stream(device)
        self._moves = self._stream == torch.cuda.default_stream(device)  # it cannot be captured
        if self._moves:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A stream of its own: libraries keep what they set up by stream."""
        current = torch.cuda.current_stream()
        if self._moves:
            # What is left of an earlier backward pass would draw the gradients of a parameter into
            # its own stream, the one that cannot be captured.
            gc.collect()
            self._moves = False
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    def capture(self, compute: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Capture on the stream of the warm-up; other threads may use the device meanwhile."""
        graph, outside = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        results: list[T] = []
        error: Exception | None = None
        try:
            with _uncollected(), self._into(graph, self._pool):
                try:
                    results.append(compute())
                except Exception as raised:  # the capture must end all the same
                    error = raised
        except Exception as broken:
            torch.cuda.set_stream(outside)
            self._clear_up(graph)
            error = error or broken  # what came first is the reason
        # Preparing a capture sets numbers on its stream that replays set on theirs.
        outside.wait_stream(self._stream)
        if error is not None:
            try:
                raise error
            finally:
                del error  # it holds this frame, which holds it
        return graph.replay, results[0]

    def _into(self, graph: torch.cuda.CUDAGraph, pool: Any = None) -> torch.cuda.graph:
        return torch.cuda.graph(
            graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
        )

    def _clear_up(self, graph: torch.cuda.CUDAGraph) -> None:
        """End what a capture that broke has begun; versions of torch before 2.13 leave it open."""
        graph.reset()
        device = self._stream.device_index
        try:
            torch._C._cuda_endAllocateToPool(device, self._pool)
        except (AttributeError, RuntimeError):
            return  # it was ended
        torch._C._cuda_releasePool(device, self._pool)
        _BROKEN.append(graph)
        # The generator still believes in the capture, and refuses to draw, until one ends well.
        with self._into(torch.cuda.CUDAGraph()):
            torch.zeros((), device=torch.device("cuda", device))


_BROKEN: list[torch.cuda.CUDAGraph] = []
"""Older versions of torch may ask these which memory is theirs."""


@contextmanager
def _uncollected() -> Iterator[None]:
    """A block in which no garbage is collected: it may hold graphs, events or pinned memory."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
