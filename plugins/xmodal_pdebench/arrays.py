"""Data sets of inputs and labels as two arrays on disk: converted, generated, and opened again.

``x.npy`` and ``y.npy`` are float32 ``[N, C, *grid]``; they are written piece by piece and opened
as memory maps, so that memory grows with neither of them.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from xmodal.data.mapped import ArrayWriter, check_room
from xmodal.errors import DataError
from xmodal.files import atomically
from xmodal_pdebench.layout import Floats

log = logging.getLogger(__name__)

X, Y = "x.npy", "y.npy"

Solver = Callable[[int, int, int], tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]
"""``solve(first, count, resolution)``: inputs and labels ``[count, C, *grid]`` of the samples
``first`` to ``first + count - 1``. A sample depends on its number and the resolution alone."""


@dataclass(frozen=True)
class Making:
    """How samples are made: ``solver`` is 'module:function', which solves ``chunk`` at a time.

    ``version``: a new number where the computation changes its results.
    """

    solver: str
    chunk: int
    version: int = 1

    @property
    def name(self) -> str:
        """What tells its results from those of others."""
        return f"{self.solver} {self.version}"


def write(folder: Path, samples: int, pieces: Iterable[tuple[Floats, Floats]]) -> None:
    """Write ``samples`` pairs, which come in pieces, to ``x.npy`` and ``y.npy``."""
    left = iter(pieces)
    first = next(left)
    shapes = [part.shape[1:] for part in first]
    check_room(folder, 4 * samples * sum(prod(shape) for shape in shapes))
    with (
        ArrayWriter(folder / X, shapes[0], np.float32, samples) as x,
        ArrayWriter(folder / Y, shapes[1], np.float32, samples) as y,
    ):
        for piece in chain([first], left):
            x.add(piece[0])
            y.add(piece[1])


def read(folder: Path) -> tuple[Floats, Floats]:
    """The two arrays, as private maps: what is not used is not read. Raises DataError."""
    try:
        x, y = (np.load(folder / name, mmap_mode="c", allow_pickle=False) for name in (X, Y))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no {X} and {Y} that can be read ({error})") from None
    for name, array in ((X, x), (Y, y)):
        if array.dtype != np.float32 or array.ndim < 3:
            raise DataError(
                f"{folder / name}: holds {array.dtype} of shape {list(array.shape)}, expected "
                "float32 [samples, channels, points ...]"
            )
    if len(x) != len(y):
        raise DataError(f"{folder}: {X} has {len(x)} samples and {Y} has {len(y)}")
    return x, y


def generate(
    recipe: Making,
    samples: int,
    resolution: int,
    folder: Path,
    scratch: Path,
    jobs: int,
    count: Callable[[int], None],
) -> None:
    """Compute samples 0 to ``samples - 1`` chunk by chunk and write them to ``folder``.

    Chunks that lie finished in ``scratch`` are not computed again. The result depends neither on
    ``jobs`` nor on interruptions. Raises DataError if the solver diverges.
    """
    module, name = recipe.solver.split(":")
    solve: Solver = getattr(importlib.import_module(module), name)
    chunk = recipe.chunk
    scratch.mkdir(parents=True, exist_ok=True)

    def piece(start: int) -> Path:
        return scratch / f"{name}-{recipe.version}-{resolution}-{start:06d}.npz"

    def make(start: int) -> int:
        stop = min(start + chunk, samples)
        found = _kept(piece(start))
        if found is None or len(found[0]) < stop - start:
            x, y = solve(start, stop - start, resolution)
            _finite(start, x, y)
            with atomically(piece(start), durable=False) as new, new.open("wb") as stream:
                np.savez(stream, x=x.astype(np.float32), y=y.astype(np.float32))
        return stop - start

    starts = range(0, samples, chunk)
    pool = ThreadPoolExecutor(max(1, jobs))
    try:
        for finished in pool.map(make, starts):
            count(finished)
    except KeyboardInterrupt:
        log.warning("stopping when the samples in work are done: %d a core", chunk)
        raise
    finally:
        pool.shutdown(cancel_futures=True)

    def pieces() -> Iterator[tuple[Floats, Floats]]:
        for start in starts:
            found = _kept(piece(start))
            assert found is not None
            wanted = min(chunk, samples - start)
            yield found[0][:wanted], found[1][:wanted]

    write(folder, samples, pieces())


def _kept(file: Path) -> tuple[Floats, Floats] | None:
    """A finished chunk; None if it is not there or damaged."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            return kept["x"], kept["y"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _finite(start: int, *arrays: npt.NDArray[np.float64]) -> None:
    for array in arrays:
        wrong = ~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
        if wrong.any():
            raise DataError(
                f"sample {start + int(wrong.argmax())}: the solver did not come to finite values"
            )
