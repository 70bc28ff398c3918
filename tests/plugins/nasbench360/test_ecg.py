"""ECG against the published loader, rewritten here, on a pickle in the published form."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import classification_report
from sklearn.model_selection import train_test_split

from xmodal.data import loader
from xmodal.data.store import Store
from xmodal.errors import DataError
from xmodal.facts import BackboneFacts, Facts
from xmodal.interfaces import Context
from xmodal_nasbench360.ecg import FILE, PUBLISHED, Ecg

STRIDE = {"N": 500, "A": 83, "O": 250, "~": 25}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any], list[str]]:
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("ecg")
    lengths = rng.integers(1000, 3500, 47)
    lengths[:3] = 1000, 9000, 1500  # one that gives no window, one that is mapped, an exact fit
    records = [np.cumsum(rng.integers(-9, 10, n)).astype(np.int16) for n in lengths]
    labels = rng.choice(list("NAO~"), 47).tolist()
    array = np.empty(47, dtype=object)
    array[:] = records
    with (folder / FILE).open("wb") as file:
        pickle.dump({"data": array, "label": np.array(labels, dtype=object)}, file)
    return folder, records, labels


def task(folder: Path | None, cache: Path, **settings: Any) -> Ecg:
    settings = {"path": folder, "partial": True, **settings}
    return Ecg(Ecg.Config(**settings), SimpleNamespace(store=Store(cache)))  # type: ignore[arg-type]


def published(records: list[Any], labels: list[str], chosen: list[int]) -> tuple[Any, Any, Any]:
    """Windows, classes and records, as the released loader cuts them."""
    windows, classes, groups = [], [], []
    for record in chosen:
        z = (records[record] - np.mean(records[record])) / np.std(records[record])
        for start in range(0, len(z) - 1000, STRIDE[labels[record]]):
            windows.append(z[start : start + 1000])
            classes.append("NAO~".index(labels[record]))
            groups.append(record)
    return np.array(windows)[:, None].astype(np.float32), classes, groups


@pytest.mark.parametrize("split", ["orca", "nas-bench-360"])
def test_every_window_is_that_of_the_published_loader(
    data: tuple[Path, list[Any], list[str]], tmp_path: Path, split: str
) -> None:
    folder, records, labels = data
    loaded = task(folder, tmp_path, split=split).load(0)
    everything = list(range(47))
    if split == "orca":
        known, test = train_test_split(everything, test_size=0.1, random_state=0)
        parts = {"test": test}
    else:
        train, rest = train_test_split(everything, test_size=0.2, random_state=0)
        validation, test = train_test_split(rest, test_size=0.5, random_state=0)
        parts = {"train": train, "validation": validation, "test": test}
    for part, chosen in parts.items():
        x, classes, groups = published(records, labels, chosen)
        split_set: Any = getattr(loaded, part)
        np.testing.assert_array_equal(torch.stack([x for x, _ in split_set]).numpy(), x)
        assert loader.labels(split_set).tolist() == classes
        assert loaded.groups[part].tolist() == groups
    if split == "orca":
        # All that ORCA trains on is trained on or validates.
        both = {*loaded.groups["train"].tolist(), *loaded.groups["validation"].tolist()}
        assert both == {*published(records, labels, known)[2]}
        assert not {*loaded.groups["train"].tolist()} & {*loaded.groups["validation"].tolist()}


def test_facts(data: tuple[Path, list[Any], list[str]], tmp_path: Path) -> None:
    one = task(data[0], tmp_path)
    loaded = one.load(0)
    facts = Ecg.describe(one.config, one.store)
    sizes = {part: loader.count(getattr(loaded, part)) for part in PUBLISHED}
    assert facts.samples == sizes
    assert facts.shape == loaded.test[0][0].shape == (1, 1000)
    assert facts.family == "series"
    assert Ecg.describe(task(None, tmp_path).config, one.store).samples == PUBLISHED


def test_the_score_is_that_of_the_released_code(
    data: tuple[Path, list[Any], list[str]], tmp_path: Path
) -> None:
    """1 - the mean of the F1 that scikit-learn's report has for the classes '0' to '3'."""
    one = task(data[0], tmp_path)
    facts = Facts(Ecg.describe(one.config, one.store), BackboneFacts("stub", "any", 4, 4))
    metric: Any = one.config.metric.build(Context.outside(one.store, facts=facts))
    rng = np.random.default_rng(1)
    for present in (4, 3):
        logits, y = rng.normal(size=(50, 4)), rng.integers(0, present, 50)
        if present == 3:
            logits[:, 3] = -9  # a class that is neither labelled nor predicted
        report = classification_report(y, logits.argmax(1), output_dict=True, zero_division=0)
        wanted = [report[str(k)]["f1-score"] for k in range(4) if str(k) in report]
        metric.reset()
        metric.update(torch.tensor(logits), torch.tensor(y))
        assert metric.compute() == pytest.approx(1 - np.mean(wanted))


def test_what_is_refused(data: tuple[Path, list[Any], list[str]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"47 records, 8,528 are published\nway out"):
        task(data[0], tmp_path, partial=False).load(0)
    for content, why in (
        ({"data": [np.zeros(5)], "label": ["X"]}, r"label 'X', expected one of N, A, O, ~"),
        ({"data": [np.zeros(5)], "label": []}, "1 records and 0 labels"),
        ({"data": [np.zeros(5)]}, "expected a dictionary with 'data' and 'label'"),
        ({"data": [np.zeros((0,))], "label": ["N"]}, "record 0 is float64"),
    ):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(DataError, match=why):
            task(tmp_path / "x.pkl", tmp_path).load(0)
    with pytest.raises(DataError) as caught:
        task(None, tmp_path).load(0)
    message = str(caught.value)
    assert "xmodal data fetch ecg" in message
    assert "1vp41dhFqCAsEBUld8tXfzC1lRiGm27Aq" in message
    assert "--task ecg-subset" in message


def test_the_record_order_needs_no_scikit_learn() -> None:
    """The published number of records is cut as scikit-learn cuts it."""
    from xmodal_nasbench360.ecg import split_records

    known, test = train_test_split(range(8528), test_size=0.1, random_state=0)
    parts = split_records(8528, "orca")
    assert parts["test"].tolist() == test
    assert sorted([*parts["train"], *parts["validation"]]) == sorted(known)
    assert {part: len(index) for part, index in parts.items()} == {
        "train": 6822, "validation": 853, "test": 853,
    }  # fmt: skip
