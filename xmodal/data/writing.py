"""Predictions, written a batch at a time: ``.npz``, ``.npy`` or ``.csv``.

The file appears when it is complete; one that cannot be completed leaves nothing behind.
"""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from xmodal.errors import UsageError, did_you_mean

Array = NDArray[Any]
SUFFIXES = (".npz", ".npy", ".csv")


def check(path: Path, force: bool, flat: bool) -> None:
    """Raise UsageError where ``path`` cannot be written; ``flat``: a sample is one line of text."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        hint = did_you_mean(path.suffix, SUFFIXES)
        raise UsageError(f"--out {path}: cannot write '{path.suffix}'{hint}; use {list(SUFFIXES)}")
    if suffix == ".csv" and not flat:
        raise UsageError(f"--out {path}: a prediction is no line of text here; write .npz or .npy")
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: there is no folder {path.parent}")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; --force replaces it")


@contextmanager
def arrays(path: Path, constant: Mapping[str, Array]) -> Iterator[Callable[..., None]]:
    """A function that adds a batch of named arrays to ``path``; ``constant`` are added once.

    An ``.npy`` file holds the first array only.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
        kept: dict[str, _Growing] = {}

        def add(batch: Mapping[str, Array]) -> None:
            for name, array in batch.items():
                if name not in kept:
                    kept[name] = _Growing(Path(folder) / name, array)
                kept[name].add(array)

        yield add
        whole = Path(folder) / "whole"
        if path.suffix.lower() == ".npy":
            with whole.open("wb") as stream:
                next(iter(kept.values())).write(stream)
        else:
            with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED, allowZip64=True) as pack:
                for name, growing in kept.items():
                    with pack.open(f"{name}.npy", "w", force_zip64=True) as member:
                        growing.write(member)
                for name, array in constant.items():
                    with pack.open(f"{name}.npy", "w") as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
        os.replace(whole, path)


class _Growing:
    """An array on disk whose number of rows is known at the end."""

    def __init__(self, file: Path, first: Array) -> None:
        self.file, self.rows, self.shape, self.dtype = file, 0, first.shape[1:], first.dtype

    def add(self, array: Array) -> None:
        with self.file.open("ab") as stream:
            stream.write(np.ascontiguousarray(array, self.dtype).tobytes())
        self.rows += len(array)

    def write(self, out: IO[bytes]) -> None:
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.rows, *self.shape)}
        np.lib.format.write_array_header_1_0(out, header)
        with self.file.open("rb") as stream:
            shutil.copyfileobj(stream, out, 1 << 20)


@contextmanager
def lines(path: Path) -> Iterator[Callable[..., None]]:
    """A function that adds a batch of columns to the CSV file ``path``."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
        whole = Path(folder) / "whole"
        with whole.open("w", encoding="utf-8", newline="") as stream:
            yield table(stream)
        os.replace(whole, path)


def table(stream: Any) -> Callable[[Mapping[str, Array]], None]:
    """A function that writes a batch of columns to a stream as CSV, under one header."""
    writer = csv.writer(stream, lineterminator="\n")
    started: list[bool] = []

    def add(columns: Mapping[str, Array]) -> None:
        if not started:
            writer.writerow(columns)
            started.append(True)
        # As text of their own precision: 0.1 in float32 is not 0.10000000149011612.
        cells = [[str(value) for value in column] for column in columns.values()]
        writer.writerows(zip(*cells, strict=True))

    return add
