"""For tests of whole runs: observers that watch a run or break it off, and what a run ended with.

A run that ``StopAt`` broke off and that is then repeated must end bit-equal to one that nothing
stopped: compare their ``weights``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal import runs
from xmodal.engine import checkpoint
from xmodal.engine.loop import EpochRecord, StepRecord
from xmodal.engine.observe import Silent
from xmodal.testing.tiny import expect


class RecordingObserver(Silent):
    """Keeps the records of all steps."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    def record(self, record: StepRecord | EpochRecord) -> None:
        """Keep it."""
        if isinstance(record, StepRecord):
            self.steps.append(record)

    @property
    def losses(self) -> list[float]:
        """The loss of every step."""
        return [step.loss for step in self.steps]


class StopAt(RecordingObserver):
    """Behaves like a crash after so many records of steps and epochs."""

    def __init__(self, records: int) -> None:
        super().__init__()
        self.left = records

    def record(self, record: StepRecord | EpochRecord) -> None:
        """Raise RuntimeError from inside the loop when the time has come."""
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("crash")
        super().record(record)


def weights(run: runs.Run, folder: str = "final") -> dict[str, Tensor]:
    """The model a run ended with, or that of another of its checkpoints."""
    model: dict[str, Tensor] = checkpoint.load(run.path / folder)["model"]
    return model


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Expect two models to be equal bit for bit."""
    expect(one.keys() == other.keys(), "the models have different parameters")
    different = [name for name in one if not torch.equal(one[name], other[name])]
    expect(not different, f"the models differ in {', '.join(different)}")
