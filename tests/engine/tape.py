"""A CUDA graph on the CPU: records the operations of a step, and runs them again on its memory.

As in a graph, a replay runs no Python of the step: what was read from Python when the step was
recorded stays as it was, and tensors keep their places.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")


class TapeGraphs:
    """The ``Graphs`` of the engine, on the CPU."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def aside(self) -> AbstractContextManager[None]:
        """Nothing: the CPU has no streams."""
        return nullcontext()

    def capture(self, compute: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Record ``compute``. Unlike on a GPU it also runs, which must change nothing."""
        self.captures += 1
        tape = _Tape()
        with tape:
            result = compute()

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return replay, result


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Run the operations again; their results go where they were."""
        for func, args, kwargs, result in self.operations:
            # A view shares the memory of its base, and an operation in place has written already.
            aliases = [value.alias_info is not None for value in func._schema.returns]
            again = func(*args, **kwargs)
            if any(aliases):
                continue
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor):
                    old.copy_(new)
