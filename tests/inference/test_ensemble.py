"""Several trained models as one: the mean of what they predict, loaded as a run is."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import xmodal
from xmodal import api, runs
from xmodal.errors import DataError, UsageError
from xmodal.inference import ensemble
from xmodal.inference.model import Ensemble, TrainedModel

from ..processes import Command


def test_probabilities_of_classes_are_averaged() -> None:
    """By hand: (.2, .8) and (.6, .4) with weights 1/4 and 3/4 are (.5, .5)."""
    outputs = [torch.tensor([[0.2, 0.8]]).log(), torch.tensor([[0.6, 0.4]]).log()]
    found = ensemble.combined("classification", outputs, [0.25, 0.75])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.softmax(1), torch.tensor([[0.5, 0.5]]))


def test_probabilities_of_labels_and_plain_numbers_are_averaged() -> None:
    odds = [torch.tensor([[0.2], [1.0]]).logit(), torch.tensor([[0.6], [1.0]]).logit()]
    found = ensemble.combined("multi-label", odds, [0.5, 0.5])
    assert float(found[0].sigmoid()) == pytest.approx(0.4)
    assert torch.isfinite(found).all()
    fields = [torch.full((1, 1, 2), 3.0), torch.full((1, 1, 2), 7.0)]
    torch.testing.assert_close(
        ensemble.combined("dense", fields, [0.75, 0.25]), torch.full((1, 1, 2), 4.0)
    )


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two baselines on the same rows, with different settings."""
    root = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(0)
    with (root / "mine.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["a", "b", "y"])
        for a, b in random.normal(size=(80, 2)).round(3).tolist():
            rows.writerow([a, b, "up" if a + 0.5 * b > 0 else "down"])
    found = []
    for name, penalty in (("one", 1.0), ("two", 0.001)):
        use = f"predictor={{use: sklearn, estimator: logistic, inverse_penalty: {penalty}}}"
        outcome = api.run(
            "methods/baseline", "arrays/row", overrides=[f"task.path={root / 'mine.csv'}", use],
            directory=root / "models" / name, report=False,
        )  # fmt: skip
        found.append(outcome.run.path)
    return found


X = np.array([[1.0, 0.2], [-0.3, 0.5], [0.1, -2.0]])


def made(members: list[Path], name: str = "both") -> Path:
    folder = members[0].parent / name
    ensemble.write(folder, dict(zip(members, (0.25, 0.75), strict=True)))
    return folder


def test_an_ensemble_is_loaded_and_predicts_as_a_run_does(
    members: list[Path], tmp_path: Path
) -> None:
    folder = made(members)
    model = xmodal.load(folder)
    assert isinstance(model, Ensemble)
    each = [xmodal.load(path).predict_proba(X) for path in members]
    assert np.abs(each[0] - each[1]).max() > 0.01
    np.testing.assert_allclose(model.predict_proba(X), 0.25 * each[0] + 0.75 * each[1], atol=1e-6)
    data = members[0].parent.parent / "mine.csv"
    done = Command("predict", folder, data, streams=tmp_path, cwd=tmp_path).wait()
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "prediction,p(down),p(up)"
    assert len(lines) == 81
    again = pickle.loads(pickle.dumps(model.state()))
    copied = TrainedModel.of(again, torch.device("cpu"), "here")
    np.testing.assert_array_equal(copied.predict_proba(X), model.predict_proba(X))


def test_it_cannot_be_exported_or_resumed(members: list[Path], tmp_path: Path) -> None:
    folder = made(members)
    with pytest.raises(DataError, match=r"is an ensemble.*xmodal predict"):
        api.export(folder, "hf", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="ensemble of runs"):
        runs.checked(runs.Run(folder))


def test_the_folder_of_a_search_stands_for_what_it_chose(members: list[Path]) -> None:
    search = members[0].parent.parent
    made(members)
    for name in ("both", "one"):
        (search / runs.SEARCH).write_text(json.dumps({"model": f"models/{name}"}))
        assert runs.locate(str(search)).path == members[0].parent / name


def test_a_damaged_ensemble_is_refused(members: list[Path]) -> None:
    folder = made(members, "damaged")
    for text in ("", "{}", '{"members": [{"run": "../one", "weight": 0.5}]}'):
        (folder / runs.ENSEMBLE).write_text(text)
        with pytest.raises(DataError, match="damaged"):
            xmodal.load(folder)
