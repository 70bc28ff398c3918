"""What runs that take turns in one thread must not share: random streams, a CUDA stream, a clock.

PyTorch, NumPy and Python each have one global generator, which a run seeds and draws from. So each
run has its own state of them, in place during its turns and put aside in between. That happens once
for every step of every run and must take microseconds; ``randomness.global_state`` takes many more.
"""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.random import mtrand

from xmodal import randomness


class OwnState:
    """The global random state and the CUDA stream of one run; it begins as those of here and now.

    On a GPU the work of a run goes into a stream of its own, so that kernels of several runs
    overlap. The state of the GPU's generator is an object of its own, because a captured graph goes
    on using the one that it was captured with.
    """

    def __init__(self, device: torch.device) -> None:
        self._torch = torch.default_generator.get_state()
        self._python = random.getstate()
        self._numpy = _NumpyState()
        self._on_gpu = device.type == "cuda"
        if self._on_gpu:
            self._cuda = _cuda_generator().clone_state()
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def put(self) -> None:
        """Begin a turn."""
        torch.default_generator.set_state(self._torch)
        random.setstate(self._python)
        self._numpy.put()
        if self._on_gpu:
            _cuda_generator().graphsafe_set_state(self._cuda)
            torch.cuda.set_stream(self._stream)

    def keep(self) -> None:
        """End a turn; what happens until the next one changes nothing for the run."""
        self._torch = torch.default_generator.get_state()
        self._python = random.getstate()
        self._numpy.keep()
        # The state of the GPU's generator needs no copy: draws have changed the object itself.


@contextmanager
def turns(device: torch.device) -> Iterator[None]:
    """A block in which states are put in place; afterwards everything is as it was before."""
    with randomness.state_kept():
        numpy = mtrand.get_bit_generator()
        if device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]
            cuda, stream = _cuda_generator().graphsafe_get_state(), torch.cuda.current_stream()
        try:
            yield
        finally:
            mtrand.set_bit_generator(numpy)
            if device.type == "cuda":
                _cuda_generator().graphsafe_set_state(cuda)
                torch.cuda.set_stream(stream)


def _cuda_generator() -> torch.Generator:
    generator: torch.Generator = torch.cuda.default_generators[torch.cuda.current_device()]
    return generator


class _NumpyState:
    """NumPy's part: a bit generator to put in place, which is fast; copying its state is slow.

    Beside the bit generator NumPy keeps one normal number for the next call, as they come in pairs.
    Putting a bit generator in place drops it, so it is then copied. It can only have come up since
    the turn began if the bit generator has moved on; reading all of its memory tells.
    """

    SIZE = 4 * (624 + 1)  # bytes of a Mersenne twister

    def __init__(self) -> None:
        state: Any = np.random.get_state(legacy=False)
        self._generator = np.random.MT19937()
        self._generator.state = state
        self._address = self._generator.ctypes.state_address
        self._whole: Any = state if state["has_gauss"] else None
        self._begun = b""

    def put(self) -> None:
        mtrand.set_bit_generator(self._generator)
        if self._whole is not None:
            np.random.set_state(self._whole)
        self._begun = self._content()

    def keep(self) -> None:
        if self._whole is not None or self._content() != self._begun:
            state = np.random.get_state(legacy=False)
            self._whole = state if state["has_gauss"] else None

    def _content(self) -> bytes:
        return ctypes.string_at(self._address, self.SIZE)


class OwnClock:
    """Counts the seconds of a run's own turns: it stands still between ``stop`` and ``go``."""

    def __init__(self) -> None:
        self._away = self._stopped = time.perf_counter()

    def __call__(self) -> float:
        """Seconds, from any beginning."""
        return time.perf_counter() - self._away

    def go(self) -> None:
        """Begin a turn."""
        self._away += time.perf_counter() - self._stopped

    def stop(self) -> None:
        """End a turn."""
        self._stopped = time.perf_counter()
