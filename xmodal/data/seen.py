"""Which samples a model was trained on, kept as a short hash of each.

A sample is hashed as the model reads it: prepared, float32. So values count, not files: the same
row is found again in a CSV, an ``.npz`` or a frame, as long as its numbers are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from xmodal.data import loader

MOST, MOST_BYTES = 1 << 20, 1 << 31
"""Of more samples, or of samples that take more bytes, only the first are kept."""
_BATCH_BYTES = 1 << 26


@dataclass(frozen=True)
class Seen:
    """Hashes of training samples, sorted; ``complete``: of all of them."""

    hashes: NDArray[np.int64]
    complete: bool

    def state(self) -> dict[str, Any]:
        """The same as tensors and plain values, for ``checkpoint.save``."""
        return {"hashes": torch.from_numpy(self.hashes), "complete": self.complete}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Seen:
        """What ``state`` describes."""
        return cls(state["hashes"].numpy(), state["complete"])

    def count(self, x_N: Tensor) -> int:
        """How many of these prepared samples equal a training sample."""
        own, known = _hashes(x_N), self.hashes
        # They are sorted. ``np.isin`` would sort them again for every batch.
        place = np.searchsorted(known, own)
        return int((known[np.minimum(place, len(known) - 1)] == own).sum())


def remember(dataset: Dataset[Any], shape: tuple[int, ...], workers: int = 0) -> Seen:
    """The samples of a data set, each of ``shape``."""
    size = 4 * max(1, prod(shape))
    kept = max(1, min(loader.count(dataset), MOST, MOST_BYTES // size))
    step = max(1, min(4096, _BATCH_BYTES // size))
    indices = torch.split(torch.arange(kept), step)
    found = [_hashes(x) for x, _ in loader.batches(dataset, indices, workers)]
    return Seen(np.unique(np.concatenate(found)), kept == loader.count(dataset))


def _hashes(x_N: Tensor) -> NDArray[np.int64]:
    x_N = x_N.detach().cpu().to(torch.float32)
    # One pattern of bits for every NaN, and for 0 and -0.
    x_N = torch.where(x_N.isnan(), torch.nan, x_N + 0.0).contiguous()
    rows = x_N.reshape(len(x_N), -1).numpy()
    digests = b"".join(blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, np.int64)
