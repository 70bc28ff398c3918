"""Windows of long recordings: a sample is a piece of a record, cut when it is read.

Records lie end to end in one mapped array, so windows that overlap cost neither disk nor memory.

Shapes: R records, W windows, L length of a window, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from xmodal.data.mapped import ArrayWriter, MappedArray, open_mapped
from xmodal.errors import DataError

Numbers = NDArray[Any]
Counts = NDArray[np.int64]


def cut(
    length_R: Any, size: int, stride_R: Any, *, last: bool = True
) -> tuple[Counts, Counts, Counts]:
    """Where windows of ``size`` begin, every ``stride_R`` steps of each record.

    Returns ``record_W``, the number of each window's record, ``start_W``, its first step counted
    from the beginning of all records, and ``count_R``. ``last``: whether a window that ends with
    its record counts; some published code leaves it out.
    """
    length_R = np.asarray(length_R, dtype=np.int64)
    stride_R = np.broadcast_to(np.asarray(stride_R, dtype=np.int64), length_R.shape)
    room_R = length_R - size + (1 if last else 0)
    count_R = np.maximum(0, -(-room_R // stride_R))
    record_W = np.repeat(np.arange(len(length_R)), count_R)
    within_W = np.arange(len(record_W)) - np.repeat(np.cumsum(count_R) - count_R, count_R)
    first_R = np.cumsum(length_R) - length_R
    return record_W, first_R[record_W] + within_W * stride_R[record_W], count_R


@dataclass(frozen=True)
class Records:
    """Records in a folder: ``signal.npy`` ``[steps]`` or ``[steps, C]``, and for each record its
    length, class, mean and standard deviation (of all its values)."""

    folder: Path
    length_R: Counts
    label_R: Counts
    mean_R: Numbers
    scale_R: Numbers

    @classmethod
    def write(
        cls, folder: Path, records: Iterable[Numbers], labels: Iterable[int], dtype: Any
    ) -> None:
        """Write records to ``folder``, one after the other. Raises DataError.

        ``dtype`` must hold their values exactly.
        """
        lengths, means, scales = [], [], []
        writer: ArrayWriter | None = None
        for number, record in enumerate(records):
            if record.ndim not in (1, 2) or record.dtype.kind not in "iuf" or not len(record):
                raise DataError(
                    f"record {number} is {record.dtype} {record.shape}; expected numbers in time"
                )
            values = record.astype(np.float64)
            if not np.isfinite(values).all():
                raise DataError(f"record {number} has NaN or infinite values")
            if writer is None:
                writer = ArrayWriter(folder / "signal.npy", record.shape[1:], dtype)
                writer.__enter__()
            writer.add(record)
            lengths.append(len(record))
            means.append(values.mean())
            scales.append(values.std())
        if writer is None:
            raise DataError("there are no records")
        writer.__exit__(None)
        found = {"length": lengths, "label": list(labels), "mean": means, "scale": scales}
        for name, numbers in found.items():
            kind = np.int64 if name in ("length", "label") else np.float64
            np.save(folder / f"{name}.npy", np.array(numbers, dtype=kind))

    @classmethod
    def open(cls, folder: Path) -> Records:
        """The records that were written to ``folder``. Raises DataError."""
        names = ("length", "label", "mean", "scale")
        parts = (np.array(open_mapped(folder / f"{name}.npy")) for name in names)
        return cls(folder, *parts)

    def windows(
        self,
        chosen_R: Counts,
        size: int,
        stride_R: Any,
        *,
        last: bool = True,
        mean: Any = None,
        scale: Any = None,
        grid: bool = False,
    ) -> WindowDataset:
        """The windows of some records, in the order of these.

        ``stride_R``: one number, or one for every record. ``mean`` and ``scale``: of each channel;
        None: every record is standardised by its own. A record that is constant becomes 0.
        """
        stride_R = np.broadcast_to(stride_R, self.length_R.shape)
        record_W, start_W, count_R = cut(self.length_R, size, stride_R, last=last)
        first_R = np.cumsum(count_R) - count_R
        order = [np.arange(first_R[r], first_R[r] + count_R[r]) for r in chosen_R]
        index = np.concatenate(order) if order else np.array([], dtype=np.int64)
        return WindowDataset(self, size, record_W[index], start_W[index], mean, scale, grid)


class WindowDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pieces of records with their classes: float32 ``[C, L]``, or ``[1, C, L]`` for ``grid``.

    They are standardised in float64. ``groups`` are the numbers of their records.
    """

    def __init__(
        self,
        records: Records,
        size: int,
        record_W: Counts,
        start_W: Counts,
        mean: Any = None,
        scale: Any = None,
        grid: bool = False,
    ) -> None:
        self.records, self.size, self.grid = records, size, grid
        self.signal = MappedArray(records.folder / "signal.npy")
        self.record_W, self.start_W = record_W, start_W
        self.mean, self.scale = mean, scale

    def __len__(self) -> int:
        return len(self.start_W)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start, record = self.start_W[index], self.record_W[index]
        piece = self.signal.array[start : start + self.size].astype(np.float64)
        own = self.mean is None
        mean = self.records.mean_R[record] if own else self.mean
        scale = self.records.scale_R[record] if own else self.scale
        piece = np.divide(piece - mean, scale, out=np.zeros_like(piece), where=scale != 0)
        x = torch.from_numpy(np.ascontiguousarray(piece.T, dtype=np.float32))
        x = x[None] if x.ndim == 1 or self.grid else x
        return x, torch.tensor(self.records.label_R[record])

    def labels(self, index_N: Tensor) -> Tensor:
        """The classes of some windows; reads no signal."""
        return torch.from_numpy(self.records.label_R[self.record_W[index_N.numpy()]])

    @property
    def groups(self) -> Tensor:
        """The record of each window."""
        return torch.from_numpy(self.record_W)
