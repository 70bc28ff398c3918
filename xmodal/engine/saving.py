"""Saves the state of a run beside the training: copied at once, written by a thread.

A save copies the state in memory; hashing, writing and syncing happen meanwhile, one save at a
time, in order. So the newest checkpoint on the disk is whole at every moment, and an older one goes
only after it. What fails in the thread is raised by the next save, or at the end.

The best weights of an epoch are written together with the next checkpoint, never later than what
refers to them: a run that is killed before goes back behind that epoch, and finds it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from xmodal import runs
from xmodal.engine import checkpoint
from xmodal.engine.loop import Snapshot, Training
from xmodal.recipe.recipe import Saving

SHARE = 0.02
"""Of the time of a run that saving after epochs may take, with the work of the thread."""
_FILES, _BYTES = 0.03, 4e8
"""Until a save was timed, it is taken for this many seconds, and one for so many bytes."""


class Saver:
    """The checkpoints of a run. Use as a context manager: at its end, everything is on the disk.

    After an error inside the block, only what was already being saved is finished. ``check`` raises
    if the directory is no longer that of the run.
    """

    def __init__(
        self,
        run: runs.Run,
        digest: str,
        saving: Saving,
        training: Training,
        check: Callable[[], None],
    ) -> None:
        self._run, self._digest, self._saving, self._check = run, digest, saving, check
        self._training = training
        size = sum(t.numel() * t.element_size() for t in self._weights().values())
        self._cost = _FILES + 3 * size / _BYTES  # the weights, and two averages of AdamW
        self._saved_at = time.monotonic()
        self._saved_steps = training.snapshot.total_steps
        self._best: tuple[Path, checkpoint.Taken] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._thread.shutdown()

    def due(self, epoch_over: bool) -> bool:
        """Whether to save after the last step, or after the epoch that ended with it."""
        every, minutes = self._saving.every_steps, self._saving.every_minutes
        steps = self._training.snapshot.total_steps
        if every is not None:
            # Not every step is followed by a call: some records come several at a time.
            if steps // every > self._saved_steps // every:
                return True
            if epoch_over and steps % every == 0:
                return True
        passed = time.monotonic() - self._saved_at
        if epoch_over and passed * SHARE >= self._cost:
            return True
        return minutes is not None and passed > 60 * minutes

    def keep_best(self) -> None:
        """Copy the weights of the best epoch, the last one; the next save writes them."""
        folder = best_folder(self._run, self._training.snapshot)
        self._best = folder, checkpoint.take({"model": self._weights()})

    def save(self) -> None:
        """Copy the state, and begin to write it; afterwards older checkpoints and bests may go."""
        self.flush()
        begun = time.monotonic()
        state, snapshot = self._training.state(), self._training.snapshot
        taken, best, self._best = checkpoint.take(state), self._best, None
        copied = time.monotonic()
        folder, bests = step_folder(self._run, snapshot), best_folder(self._run, snapshot)
        stage, epoch = snapshot.stage, snapshot.epoch

        def write() -> None:
            started = time.monotonic()
            self._check()
            if best is not None:
                checkpoint.write(*best, self._digest)
            checkpoint.write(folder, taken, self._digest)
            checkpoint.sweep(folder, checkpoint.STEP, self._saving.keep)
            checkpoint.sweep(bests, checkpoint.BEST, self._saving.keep)
            self._run.set_state("running", stage=stage, epoch=epoch)
            self._cost = copied - begun + time.monotonic() - started

        self._begin(write)
        self._saved_at, self._saved_steps = time.monotonic(), snapshot.total_steps

    def save_best(self) -> None:
        """Write the best weights, unless they are on the disk: nothing trains any more."""
        self.flush()
        best, self._best = self._best, None
        if best is not None:
            checkpoint.write(*best, self._digest)

    def save_final(self) -> None:
        """Copy the weights after the last step, and begin to write them."""
        self.flush()
        taken = checkpoint.take({"model": self._weights()})
        self._begin(lambda: checkpoint.write(self._run.path / "final", taken, self._digest))

    def flush(self) -> None:
        """Wait until what is being saved is on the disk; raises what went wrong with it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _weights(self) -> Mapping[str, Tensor]:
        return self._training.weights()

    def _begin(self, write: Callable[[], None]) -> None:
        self._writing = self._thread.submit(write)


def step_folder(run: runs.Run, snapshot: Snapshot) -> Path:
    """The checkpoint of where a run stands."""
    # The end of an epoch and its last step share total_steps, so the name counts both.
    order = snapshot.total_steps * 2 + (snapshot.step == 0)
    return run.checkpoints / f"{checkpoint.STEP}{order:012d}"


def best_folder(run: runs.Run, snapshot: Snapshot) -> Path:
    """The weights of the best epoch so far."""
    return run.checkpoints / f"{checkpoint.BEST}{snapshot.best_steps:010d}"
