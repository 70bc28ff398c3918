"""Brings the batches of a run to its device, so that no step waits for them.

On a GPU, a data set of tensors that takes a small part of the free memory is copied there at its
first use, and its batches are gathered there. Batches of any other data set are read ahead by a
thread, which copies them through page-locked memory on a stream of its own. On the CPU there is
nothing to bring: batches are those of ``loader``. The values are the same each way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from xmodal.data import loader
from xmodal.data.loader import Batch

SHARE = 0.25
"""How much of the memory that is free besides the data sets of this process may belong to them."""

AHEAD = 3
"""How many batches are read ahead: enough to even out slow samples."""


class Feed:
    """Batches of data sets on ``device``.

    ``budget``: how many bytes of data sets may stay on the device; by default the GPU is asked, and
    all feeds of the process count. A device other than a GPU keeps and reads ahead nothing, unless
    a budget is given.
    """

    def __init__(self, device: torch.device, budget: int | None = None) -> None:
        self.device = device
        self._budget = budget
        self._direct = device.type != "cuda" and budget is None
        self._held: WeakKeyDictionary[Dataset[Any], TensorDataset | None] = WeakKeyDictionary()
        self._side: torch.cuda.Stream | None = None
        if device.type == "cuda":
            # Torch hands out streams in turn, and copies must not get onto one that a graph is
            # being captured on. Streams of another priority are others.
            self._side = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        _FEEDS.add(self)

    def batches(
        self,
        dataset: Dataset[Any],
        indices: Iterable[Tensor],
        workers: int = 0,
        exact: bool = False,
    ) -> Iterator[Batch]:
        """Yield the batch of every index tensor on the device, in order.

        A batch stays as it is until the next one is asked for. Labels in float64 become float32,
        unless ``exact``; where the device has no float64, such labels stay on the CPU. An error in
        reading is raised in place of its batch.
        """
        if self._direct:
            read = loader.batches(dataset, indices, workers, exact)
            return read if self.device.type == "cpu" else map(self._moved, read)
        kept = self._kept(dataset)
        if kept is None:
            return self._ahead(loader.batches(dataset, indices, workers, exact))
        return loader.batches(kept, self._sent(indices), exact=exact)

    def _moved(self, batch: Batch) -> Batch:
        x, y = batch
        stays = self.device.type == "mps" and y.dtype == torch.float64
        return x.to(self.device), y if stays else y.to(self.device)

    # --- data sets that stay on the device ---

    def _kept(self, dataset: Dataset[Any]) -> TensorDataset | None:
        """A data set on the device; None if it has no tensors or they do not fit."""
        tensors = loader.tensors(dataset)
        if tensors is None:
            return None
        if dataset not in self._held:
            fits = sum(t.nbytes for t in tensors) <= self._room()
            self._held[dataset] = self._copied(tensors) if fits else None
        return self._held[dataset]

    def _room(self) -> float:
        """How many more bytes of data sets may stay on the device."""
        if self._budget is not None:
            return self._budget - self.held
        held = sum(feed.held for feed in _FEEDS if feed.device == self.device)
        free, _ = torch.cuda.mem_get_info(self.device)
        # What torch holds back for later is free as well.
        spare = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return SHARE * (held + free + spare) - held

    @property
    def held(self) -> int:
        """The bytes of the data sets that stay on the device."""
        return sum(t.nbytes for kept in self._held.values() if kept for t in kept.tensors)

    def _copied(self, tensors: Iterable[Tensor]) -> TensorDataset | None:
        try:
            return TensorDataset(*(tensor.to(self.device) for tensor in tensors))
        except torch.cuda.OutOfMemoryError:
            return None  # another process was faster: these batches are read ahead instead

    def _sent(self, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        """The index tensors on the device, sent all at once."""
        pieces = list(indices)
        if not pieces:
            return
        together = torch.cat(pieces)
        if self._side is not None:
            together = together.pin_memory().to(self.device, non_blocking=True)
        yield from torch.split(together, [len(piece) for piece in pieces])

    # --- data sets that are read ahead ---

    def _ahead(self, read: Iterator[Batch]) -> Iterator[Batch]:
        """Read in a thread, ``AHEAD`` batches before they are asked for; it ends with this."""

        def bring() -> tuple[Batch, torch.cuda.Event | None] | None:
            batch = next(read, None)
            if batch is None or self._side is None:
                return None if batch is None else (batch, None)
            x, y = (t.pin_memory().to(self.device, non_blocking=True) for t in batch)
            return (x, y), self._side.record_event()

        # The thread works on the side stream, and thereby on the right GPU.
        begin = () if self._side is None else (torch.cuda.set_stream, (self._side,))
        pool = ThreadPoolExecutor(1, "xmodal-feed", *begin)
        try:
            coming = deque(pool.submit(bring) for _ in range(AHEAD))
            while (brought := coming.popleft().result()) is not None:
                coming.append(pool.submit(bring))
                batch, copied = brought
                if copied is not None:
                    here = torch.cuda.current_stream(self.device)
                    here.wait_event(copied)
                    for tensor in batch:
                        tensor.record_stream(here)
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)


_FEEDS: WeakSet[Feed] = WeakSet()
