"""What an optimizer step takes from the host, so that it can also run without the host.

On a GPU the engine captures a whole step as one CUDA graph and replays it: the kernels run again,
Python does not. Numbers and random draws that change from step to step must therefore be inputs.
``from_host`` declares them; components call it wherever they read the progress, a schedule or a
generator. On the CPU it is a plain call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from xmodal.batch import Progress

__all__ = ["as_input", "from_host", "on_device", "recording"]

Make = Callable[[Progress], Mapping[str, Any]]


class Inputs(Protocol):
    """Who answers ``from_host`` while a step is captured."""

    def take(self, make: Make, device: torch.device) -> Mapping[str, Any]:
        """The values of the next call of this step."""


_inputs: Inputs | None = None


def from_host(make: Make, progress: Progress, device: torch.device) -> Mapping[str, Any]:
    """The values of ``make(progress)``; its tensors arrive on ``device``.

    ``make`` runs on the host, once in every step: also in a step that is replayed, where its
    tensors are copied into the places that the captured kernels read. It gives a mapping with the
    same names every time. Numbers that change from step to step are 0-d tensors (counts int64,
    others float64), random draws are CPU tensors. All other values (bool, int, str, tuples of
    them) decide which operations the step consists of; for every combination that occurs, the
    engine captures a step of its own, so there should be few.

    ``make`` must not use tensors of the step, nor ``progress`` of the outer call: it is kept, and
    called with the progress of later steps.

    A component that changes with the progress, or that draws random numbers, without ``from_host``
    cannot be captured; the engine finds that out, and the run goes on without graphs.
    """
    if _inputs is not None:
        return _inputs.take(make, device)
    return {name: on_device(value, device) for name, value in make(progress).items()}


def as_input(value: float, *forms: float) -> float | Tensor:
    """A number for ``make`` to give: a 0-d tensor, or as it is if it is one of ``forms``.

    ``forms`` are the values at which the step consists of other operations, such as a share of 0 at
    which nothing is mixed. An int becomes int64, a float float64.
    """
    if value in forms:
        return value
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def on_device(value: Any, device: torch.device) -> Any:
    """A tensor on ``device``, without waiting for the kernels queued before; others as they are."""
    if not isinstance(value, Tensor) or value.device == device:
        return value
    if device.type == "cuda":
        return value.pin_memory().to(device, non_blocking=True)
    if device.type == "mps" and value.dtype == torch.float64:
        value = value.float()  # it has no float64
    return value.to(device)


def recording() -> bool:
    """Whether a step is being recorded; otherwise, numbers on the CPU may be read as they are."""
    return _inputs is not None


@contextmanager
def answered_by(inputs: Inputs) -> Iterator[None]:
    """A block in which ``inputs`` answers ``from_host``; used by the engine."""
    global _inputs
    before, _inputs = _inputs, inputs
    try:
        yield
    finally:
        _inputs = before
