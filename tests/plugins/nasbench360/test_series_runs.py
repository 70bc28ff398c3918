"""Every task of series and sound is trained at smoke scale on small files in the published form."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xmodal

from .test_fsd50k import archive
from .test_parts import deepsea_file, ninapro_files, satellite_files

RNG = np.random.default_rng(0)


def ecg_file(folder: Path) -> None:
    records = np.empty(40, dtype=object)
    records[:] = [RNG.integers(-99, 99, n).astype(np.int16) for n in RNG.integers(1100, 1400, 40)]
    content = {"data": records, "label": np.array(list("NAO~") * 10)}
    (folder / "challenge2017.pkl").write_bytes(pickle.dumps(content))


MADE: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "ecg": (ecg_file, ()),
    "ninapro": (ninapro_files, ()),
    "satellite": (satellite_files, ("task.validation=7",)),
    "deepsea": (lambda folder: deepsea_file(folder / "deepsea_filtered.npz"), ()),
    "fsd50k": (archive, ()),
}


def trained(task: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> Any:
    monkeypatch.setenv("XMODAL_CACHE", str(folder / "cache"))
    make, settings = MADE[task]
    data = folder / "data"
    data.mkdir()
    make(data)
    overrides = [f"task.path={data}", "task.partial=true", *settings, *more]
    return xmodal.run(
        "methods/pare", f"tasks/{task}", overrides=overrides, scale="smoke", root=folder / "runs",
        report=False,
    ).result  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("task", MADE)
def test_it_trains(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = trained(task, tmp_path, monkeypatch)
    assert result["task"] == task
    assert 0 <= result["test"]["metric"] <= 1


def test_as_published_on_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published protocol trains on the training clips alone, and selects on the test clips."""
    more = ("protocol=published", "training.epochs=1", "task.piece=once")
    result = trained("fsd50k", tmp_path, monkeypatch, *more)
    assert result["selected_on"] == "test"
    # A batch is of 4: three clips are one step, with the validation clips they would be two.
    assert result["steps"] == 1
