"""Augmented training samples in a run: anew in every epoch, the same after every interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from xmodal.batch import Progress
from xmodal.data.augment import Augmented
from xmodal.engine.session import RunSession

from .test_sharing import builder, write_data


def add(x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return x + torch.rand((), generator=generator), y


def session(folder: Path, *overrides: str) -> RunSession:
    made = builder(folder, *overrides)
    data = made.data()
    return made.session(replace(data, train=Augmented(data.train, add)))


def shifts(held: RunSession, epoch: int, step: int = 0, micro: int | None = None) -> list[float]:
    """What was added to each sample, in the order in which they come."""
    at = Progress(0, epoch, 3, step, 5)
    batches = [batch for batches in held.batches(at, 4, micro) for batch in batches]
    order = held.order(at)[4 * step : 4 * step + sum(len(batch.x) for batch in batches)]
    before = torch.stack([held.data.train[int(n)][0] for n in order])
    added = torch.cat([batch.x for batch in batches]) - before
    return [round(float(one.mean()), 4) for one in added]


def test_a_function_of_seed_epoch_and_index(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data")
    held = session(folder)
    first = shifts(held, 0)
    assert len(set(first)) == len(first)
    assert shifts(held, 1) != first
    assert shifts(session(folder), 0) == first
    assert shifts(session(folder, "seed=1"), 0) != first
    # A run that goes on in the middle of an epoch, and one with smaller micro-batches.
    assert shifts(session(folder), 0, step=2) == first[8:]
    assert shifts(held, 0, micro=1) == first
