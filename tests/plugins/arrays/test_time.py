"""Splits by time: the past trains, the future tests; groups stay whole."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from xmodal.errors import DataError
from xmodal_arrays.task import Arrays

COUNT = 60
DAY = np.random.default_rng(0).permutation(COUNT)


def load(**settings: Any) -> Any:
    return Arrays(Arrays.Config(**settings), None).load(0)  # type: ignore[arg-type]


def days(data: Any) -> dict[str, set[int]]:
    return {name: set(DAY[rows.numpy()].tolist()) for name, rows in data.rows.items()}


def table(folder: Path, when: list[Any]) -> Path:
    path = folder / "mine.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["a", "when", "y"])
        rows.writerows([k % 7 + 0.5, when[k], "yes" if k % 2 else "no"] for k in range(COUNT))
    return path


def test_dates_of_a_table(tmp_path: Path) -> None:
    path = table(tmp_path, [f"2024-{1 + d // 28:02}-{1 + d % 28:02}" for d in DAY])
    data = load(path=path, time="when")
    found = days(data)
    assert found == {
        "train": set(range(42)), "validation": set(range(42, 51)), "test": set(range(51, 60)),
    }  # fmt: skip
    assert data.raw.columns == ("a",)  # when is no input
    last = days(load(path=path, time="when", refit=True))
    assert last["train"] == set(range(51))
    assert last["test"] == found["test"]


def test_folds_train_on_all_that_came_before(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, x=np.zeros((COUNT, 2)) + DAY[:, None], y=np.arange(COUNT) % 2, t=DAY)
    for fold in range(4):
        found = days(load(path=path, form="row", time="t", folds=4, fold=fold, test_apart=True))
        assert max(found["train"]) < min(found["validation"])
        assert found["train"] == set(range(len(found["train"])))
        assert len(found["validation"]) in (10, 11)
        assert max(found["validation"]) < 51
    with pytest.raises(ValidationError, match="time order"):
        load(path=path, form="row", time="t", folds=4, fold=4)


def test_groups_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, x=np.random.rand(COUNT, 2), y=np.arange(COUNT) % 2, t=DAY, who=DAY // 5)
    data = load(path=path, form="row", time="t", group="who")
    groups = [{day // 5 for day in part} for part in days(data).values()]
    assert not groups[0] & groups[1]
    assert not (groups[0] | groups[1]) & groups[2]
    assert max(groups[0]) < min(groups[1])


def test_complaints(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'when'.*no date and no number"):
        load(path=table(tmp_path, ["early", "late"] * 30), time="when")
    with pytest.raises(DataError, match=r"'when'.*missing in row 3"):
        load(path=table(tmp_path, [1, 2, 3, ""] * 15), time="when")
    path = tmp_path / "mine.npz"
    np.savez(path, x=np.zeros((COUNT, 2)), y=np.arange(COUNT) % 2, t=["a"] * COUNT)
    with pytest.raises(DataError, match="holds text"):
        load(path=path, form="row", time="t")
