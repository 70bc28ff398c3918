"""Parts of the user's own data for a search: folds, a test split set apart, a last fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from xmodal.errors import DataError
from xmodal_arrays.task import Arrays

COUNT = 40
LABELS = np.arange(COUNT) % 2


def saved(folder: Path, y: Any = LABELS, **more: Any) -> Path:
    """Samples that are their own numbers."""
    path = folder / "mine.npz"
    x = np.stack([np.arange(COUNT), np.zeros(COUNT)], axis=1).astype(np.float32)
    np.savez(path, x=x, y=y, **more)
    return path


def parts(seed: int = 0, **settings: Any) -> dict[str, set[int]]:
    """The numbers of the samples in each part."""
    task = Arrays(Arrays.Config(normalize="none", form="row", **settings), None)  # type: ignore[arg-type]
    data = task.load(seed)
    sets = {"train": data.train, "validation": data.validation, "test": data.test}
    return {
        name: set(part.tensors[0].flatten(1)[:, 0].int().tolist()) for name, part in sets.items()
    }


def test_every_sample_but_those_for_testing_validates_once(tmp_path: Path) -> None:
    path = saved(tmp_path)
    usual = parts(path=path)
    first, second = set(), set()
    for fold in range(10):
        found = parts(path=path, folds=5, fold=fold)
        assert found["test"] == usual["test"]
        assert found["train"] | found["validation"] == usual["train"] | usual["validation"]
        assert not found["train"] & found["validation"]
        times = first if fold < 5 else second
        assert not times & found["validation"]
        times |= found["validation"]
    assert first == second == usual["train"] | usual["validation"]
    again, anew = (parts(path=path, folds=5, fold=fold)["validation"] for fold in (0, 5))
    assert again != anew  # the second repetition is cut anew


def test_a_group_has_one_number_in_all_folds(tmp_path: Path) -> None:
    """In time order a fold knows the past alone, so not all groups are in it."""
    who = np.array([f"p{n % 7}" if n < 20 else f"q{n % 5}" for n in range(COUNT)])
    path, number = saved(tmp_path, patient=who, when=np.arange(COUNT)), {}
    for fold in range(3):
        config = Arrays.Config(path=path, form="row", time="when", folds=3, fold=fold)
        task = Arrays(config.model_copy(update={"group": "patient"}), None)  # type: ignore[arg-type]
        data = task.load(0)
        for name, part in (("train", data.train), ("validation", data.validation)):
            rows = (part.tensors[0].flatten(1)[:, 0]).tolist()
            assert len(rows) == len(data.groups[name])
            for row, group in zip(
                data.rows[name].tolist(), data.groups[name].tolist(), strict=True
            ):
                assert number.setdefault(who[row], group) == group
    assert len(set(number.values())) == len(number)


def test_folds_have_the_classes_of_the_whole_and_keep_groups(tmp_path: Path) -> None:
    path = saved(tmp_path, patient=np.arange(COUNT) // 4)
    for fold in range(3):
        whole = parts(path=path, folds=3, fold=fold, group="patient")
        patients = [{number // 4 for number in whole[name]} for name in ("train", "validation")]
        assert not patients[0] & patients[1]
        found = parts(path=path, folds=3, fold=fold)["validation"]
        assert abs(sum(LABELS[list(found)]) - len(found) / 2) <= 1


def test_the_only_sample_of_a_class_always_trains(tmp_path: Path) -> None:
    y = LABELS.copy()
    y[[3, 4]] = 2
    path = saved(tmp_path, y)
    shares = (0.4, 0.1, 0.5)  # one of the two samples is for testing
    (rare,) = {3, 4} - parts(path=path, split=shares)["test"]
    for fold in range(4):
        found = parts(path=path, folds=4, fold=fold, split=shares)
        assert rare in found["train"]
        assert rare not in found["validation"]


def test_the_test_split_can_be_set_apart(tmp_path: Path) -> None:
    path = saved(tmp_path)
    usual, apart = parts(path=path), parts(path=path, test_apart=True)
    assert apart["train"] == usual["train"]
    assert apart["test"] == apart["validation"] == usual["validation"]
    other = tmp_path / "test.npz"
    np.savez(other, x=np.full((4, 2), 99, dtype=np.float32), y=LABELS[:4])
    assert parts(train=path, test=other, split=(0.8, 0.1, 0.1))["test"] == {99}
    found = parts(train=path, test=other, split=(0.8, 0.1, 0.1), test_apart=True)
    assert found["test"] == found["validation"] != {99}


def test_a_last_fit_trains_on_all_but_the_test_split(tmp_path: Path) -> None:
    path = saved(tmp_path)
    usual, last = parts(path=path), parts(path=path, refit=True)
    assert last["test"] == usual["test"]
    assert last["train"] == last["validation"] == usual["train"] | usual["validation"]


def test_complaints(tmp_path: Path) -> None:
    path = saved(tmp_path)
    for settings in ({"fold": 1}, {"folds": 3, "refit": True}):
        with pytest.raises(ValidationError, match="fold"):
            Arrays.Config(path=path, **settings)
    with pytest.raises(DataError, match=r"mine\.npz: .*cannot be cut"):
        parts(path=path, folds=39)
