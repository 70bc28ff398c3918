"""Darcy-flow arrays: generated once into the cache, or read from the published MATLAB files.

Generation runs in threads (the transforms release the interpreter lock), chunk by chunk. A chunk is
one cache entry and does not depend on the number of samples requested. An interrupted generation
can therefore continue, and a larger data set extends a smaller one.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from xmodal.data import Store
from xmodal.data.arrays import open_container
from xmodal.data.datasets import cores
from xmodal.data.progress import Meter, meter
from xmodal.errors import DataError
from xmodal.files import contents
from xmodal_nasbench360.darcy_samples import Grid, draw

Fields = npt.NDArray[np.float32]

CHUNK = 50
PIECE = 200
"""Samples of a published file that are read at once: 280 MB."""
GENERATOR = 1
"""Version of the computation; a new number makes new cache entries."""

TRAIN_FILE = "piececonst_r421_N1024_smooth1.mat"
TEST_FILE = "piececonst_r421_N1024_smooth2.mat"
PUBLISHED_GRID = 421
"""Points per side of the published files."""
TRAIN_STREAM, TEST_STREAM = 0, 1
"""Of random numbers: validation samples come after those of training."""
_ARRAYS = "fields.safetensors"


def chunk_key(grid: Grid, seed: int, stream: int, start: int) -> dict[str, Any]:
    """The key of a chunk in the cache."""
    return {
        "generator": GENERATOR,
        **grid.key(),
        "seed": seed,
        "stream": stream,
        "start": start,
        "count": CHUNK,
    }


def _make_chunk(folder: Path, key: dict[str, Any], grid: Grid, count: Meter, jobs: int) -> None:
    """Draw the chunk's samples on ``jobs`` cores and write them to ``folder``."""
    shape = (CHUNK, grid.resolution, grid.resolution)
    a, u = np.empty(shape, np.float32), np.empty(shape, np.float32)

    def one(offset: int) -> int:
        a[offset], u[offset] = draw(key["seed"], key["stream"], key["start"] + offset, grid)
        return 1

    pool = ThreadPoolExecutor(jobs)
    try:
        for finished in pool.map(one, range(CHUNK)):
            count(finished)
    finally:
        # After an interrupt, finish only the samples already begun: at most a second.
        pool.shutdown(cancel_futures=True)
    save_file({"a": a, "u": u}, folder / _ARRAYS)


def generate(
    store: Store,
    grid: Grid,
    seed: int,
    stream: int,
    samples: int,
    title: str,
    jobs: int | None = None,
) -> tuple[Fields, Fields]:
    """The first ``samples`` of a stream: a and u, each float32 ``[samples, R, R]``; cached.

    On ``jobs`` cores; None: all, at most 16.
    """
    parts, jobs = [], jobs or min(16, cores())
    with _lazy(title, -(-samples // CHUNK) * CHUNK) as count:
        for start in range(0, samples, CHUNK):
            key = chunk_key(grid, seed, stream, start)
            make = partial(_make_chunk, key=key, grid=grid, count=count, jobs=jobs)
            made = store.build("darcy", key, make)
            parts.append(load_file(made / _ARRAYS))
    return (
        np.concatenate([part["a"] for part in parts])[:samples],
        np.concatenate([part["u"] for part in parts])[:samples],
    )


@contextmanager
def _lazy(title: str, total: int) -> Iterator[Meter]:
    """A meter that appears with the first generated sample; cached data load silently."""
    opened: list[Meter] = []
    with ExitStack() as stack:

        def count(finished: int) -> None:
            if not opened:
                opened.append(stack.enter_context(meter(title, total, unit="samples")))
            opened[0](finished)

        yield count


def published_files(folder: Path) -> tuple[Path, Path]:
    """The published training and test file in ``folder``.

    Raises DataError that tells which files to fetch.
    """
    files = (folder / TRAIN_FILE, folder / TEST_FILE)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"{folder}: no {' and no '.join(missing)}\n"
            "download them (1.6 GB each) from NAS-Bench-360's Google Drive: file "
            "17anR-H_C7It5sytoNFOk7YmOeeCX11F6 (training) and file "
            "1v0nJs7GMnT2JYfhPuKBm7KyXRSBxMEFW (test)\n"
            "or remove 'path' to generate the data"
        )
    return files


def thinned(file: Path, resolution: int, samples: int) -> dict[str, Fields]:
    """a and u of the first samples of a published file, each ``[samples, R, R]``.

    Raises DataError.
    """
    arrays, matlab = {}, open_container(file)
    for short, name in (("a", "coeff"), ("u", "sol")):
        rows = matlab.get(name, "path:")
        shape = tuple(rows.shape)
        if len(shape) != 3 or shape[1] != shape[2] or shape[0] < samples:
            raise DataError(f"{file}: '{name}' has shape {shape}, not ({samples}+, n, n)")
        stride, rest = divmod(shape[1] - 1, resolution - 1)
        if rest:
            raise DataError(
                f"{file}: {shape[1]} points per side cannot be thinned to {resolution}; "
                "85 takes every 5th of 421"
            )
        # A piece at a time: all of them would take 1.5 GB.
        kept = np.empty((samples, resolution, resolution), np.float32)
        for start in range(0, samples, PIECE):
            piece = rows.read(slice(start, min(start + PIECE, samples)))
            kept[start : start + PIECE] = piece[:, ::stride, ::stride]
        if not np.isfinite(kept).all():
            raise DataError(f"{file}: '{name}' has NaN or infinite values")
        arrays[short] = kept
    return arrays


def read_published(
    store: Store, file: Path, resolution: int, samples: int
) -> tuple[Fields, Fields]:
    """a and u of a published file, thinned to ``[samples, R, R]``; the thinned copy is cached."""
    key = {"content": contents(file), "resolution": resolution, "samples": samples}
    made = store.build(
        "darcy-published",
        key,
        lambda folder: save_file(thinned(file, resolution, samples), folder / _ARRAYS),
    )
    arrays = load_file(made / _ARRAYS)
    return arrays["a"], arrays["u"]
