"""For tests of whole runs: observers that record or interrupt a run, and a run's final weights.

A run that ``StopAt`` interrupted and that was then resumed must end bit-identical to an unbroken
run: compare their ``weights``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal import runs
from xmodal.engine import checkpoint
from xmodal.engine.loop import EpochRecord
from xmodal.engine.observe import Silent
from xmodal.engine.step import StepRecord
from xmodal.testing.tiny import expect


class RecordingObserver(Silent):
    """Keeps the records of all steps."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    def record(self, record: StepRecord | EpochRecord) -> None:
        """Keep the record of a step."""
        if isinstance(record, StepRecord):
            self.steps.append(record)

    @property
    def losses(self) -> list[float]:
        """The loss of every step."""
        return [step.loss for step in self.steps]


class StopAt(RecordingObserver):
    """Simulates a crash after a number of records of steps and epochs."""

    def __init__(self, records: int) -> None:
        super().__init__()
        self.left = records

    def record(self, record: StepRecord | EpochRecord) -> None:
        """Raise RuntimeError inside the loop once enough records have arrived."""
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("crash")
        super().record(record)


def weights(run: runs.Run, folder: str = "final") -> dict[str, Tensor]:
    """The final model of a run, or the model in another of its checkpoints."""
    model: dict[str, Tensor] = checkpoint.load(run.path / folder)["model"]
    return model


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Expect two models to be bit-identical."""
    expect(one.keys() == other.keys(), "the models have different parameters")
    different = [name for name in one if not torch.equal(one[name], other[name])]
    expect(not different, f"the models differ in {', '.join(different)}")
