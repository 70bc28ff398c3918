"""A whole search on a small table, typed as a user types it, and from Python."""

from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from xmodal import api
from xmodal.errors import UsageError
from xmodal.inference.sureness import sureness
from xmodal.runs import Run
from xmodal.search import fit as fit_module
from xmodal.search.fit import FEW, FOLDS, fit
from xmodal.search.last import looks_elsewhere

from ..processes import Command

pytestmark = pytest.mark.slow
TINY = ("backbone=tiny", "source={use: digits, samples: 32}")


def table(folder: Path, count: int) -> Path:
    """Rows whose label follows from a product, which no linear model sees."""
    random = np.random.default_rng(0)
    path = folder / "mine.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["a", "b", "y"])
        for a, b in random.normal(size=(count, 2)).round(4).tolist():
            rows.writerow([a, b, "up" if a * b > 0 else "down"])
    return path


RIDGE = """
extends: [methods/baseline]
always: {predictor: {use: sklearn, estimator: ridge}}
"""


def numbers(folder: Path) -> Path:
    """Rows whose label is a sum, which trees learn slowly, and a product, which a sum cannot."""
    random = np.random.default_rng(0)
    x = random.normal(size=(720, 6)).round(3)
    y = 0.7 * x.sum(axis=1) + 0.6 * x[:, 0] * x[:, 1] + 0.5 * random.normal(size=720)
    path = folder / "numbers.csv"
    text = "a,b,c,d,e,f,y\n" + "\n".join(",".join(map(str, r)) for r in np.c_[x, y].tolist())
    path.write_text(text + "\n")
    return path


def test_the_chosen_model_is_the_best_on_validation_and_is_tested_once(tmp_path: Path) -> None:
    lines: list[str] = []
    data = table(tmp_path, 720)
    asked = {"trials": 6, "overrides": TINY, "ensemble": False}
    found = fit(data, root=tmp_path / "fits", jobs=1, say=lines.append, **asked)
    assert len(found.entries) == 6
    scores = [entry.score for entry in found.entries]
    assert scores == sorted(score for score in scores if score is not None)
    assert [entry.cheap for entry in found.entries].count(False) == 1
    assert found.best_cheap is not None
    assert scores[0] is not None
    assert found.best_cheap.score is not None
    assert scores[0] <= found.best_cheap.score
    assert found.looks == 1
    # No trial has seen a test sample; the model was fitted on all others, and tested on these.
    assert found.samples == {"train": 504, "validation": 108, "test": 108}
    for entry in found.entries:
        (folder,) = map(Path, entry.directories)
        result = Run(folder).read("result.json")
        assert result["test"]["metric"] == result["validation"]["metric"] == entry.score
        assert not (folder / "report.html").exists()
    last = Run(found.model).read("manifest.json")
    assert last["facts"]["task"]["samples"]["train"] == 612
    if found.chosen.name in ("xgboost", "lightgbm", "catboost"):  # they stop on validation
        (trial,) = map(Path, found.chosen.directories)
        rounds = Run(trial).read("result.json")["chosen"]["rounds"]
        assert rounds < 1000
        assert f"rounds: {rounds}\n" in (found.model / "recipe.yaml").read_text()
    assert (found.model / "report.html").exists()
    model = api.load(found.folder)
    assert model.run.path == found.model
    assert model.predict(np.array([[1.0, 1.0], [1.0, -1.0]]), names=True).tolist() == ["up", "down"]
    record = json.loads((found.folder / "fit.json").read_text())
    assert found.folder / record["model"] == found.model
    # The test is that of the run, and held against always the same answer.
    result = Run(found.model).read("result.json")
    assert found.test == result["test"]["metric"]
    assert found.tested.interval is not None
    assert found.tested.interval.low == result["test"]["interval"]["low"]
    assert "always guessing" in found.tested.sentence
    assert all(entry.interval is not None for entry in found.entries)
    assert all(entry.size > 0 for entry in found.entries)
    assert all(entry.latency > 0 for entry in found.entries if entry.latency is not None)
    assert found.verdict.startswith("The transformer has not earned its place")
    assert found.lead is not None
    assert [line["name"] for line in record["leaderboard"]] == [e.name for e in found.entries]
    # The same again starts nothing; a search elsewhere finds the same.
    lines.clear()
    again = fit(data, root=tmp_path / "fits", jobs=1, say=lines.append, **asked)
    assert again.looks == 1
    assert sum("(kept)" in line for line in lines) == 6
    other = fit(data, root=tmp_path / "other", jobs=2, **asked)
    assert [(e.name, e.score) for e in other.entries] == [(e.name, e.score) for e in found.entries]
    assert other.test == found.test


@pytest.mark.long
def test_few_rows_are_cross_validated(tmp_path: Path) -> None:
    found = fit(table(tmp_path, 60), trials=1, root=tmp_path / "fits", jobs=2)
    (entry,) = found.entries
    assert len(entry.directories) == FOLDS * 2
    each = [Run(Path(f)).read("result.json")["validation"]["metric"] for f in entry.directories]
    assert entry.score == pytest.approx(float(np.mean(each)))
    assert len(set(entry.directories)) == FOLDS * 2
    trained = sum(count for name, count in found.samples.items() if name != "test")
    assert trained < FEW
    assert sureness(Run(found.model), "classification").samples == trained  # each one once


@pytest.mark.long
def test_few_groups_are_fewer_folds(tmp_path: Path) -> None:
    path, lines = tmp_path / "patients.csv", ["a,who,y"]
    lines += [f"{n % 7},p{n % 4},{'ud'[n // 4 % 2]}" for n in range(100)]
    path.write_text("\n".join(lines) + "\n")
    asked = {"settings": {"group": "who", "y": "y"}, "trials": 1, "root": tmp_path / "fits"}
    (entry,) = fit(path, jobs=2, **asked).entries
    assert 2 <= len(entry.directories) // 2 < FOLDS
    assert entry.score is not None


@pytest.mark.long
def test_a_folder_with_validation_samples_is_not_folded(tmp_path: Path) -> None:
    folder, lines = tmp_path / "data", []
    folder.mkdir()
    for name, count in (("train", 60), ("validation", 40), ("test", 30)):
        table(tmp_path, count).rename(folder / f"{name}.csv")
    found = fit(folder, trials=1, root=tmp_path / "fits", jobs=2, say=lines.append)
    (entry,) = found.entries
    assert len(entry.directories) == 1
    assert found.samples == {"train": 60, "validation": 40, "test": 30}
    assert any("leave nothing to fold" in line for line in lines)


@pytest.mark.long
def test_the_last_fit_has_all_samples_and_what_was_chosen_without_them(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(600, 1, 12)).astype("float32")
    np.savez(tmp_path / "series.npz", x=x, y=(x.std(axis=2)[:, 0] > 1).astype(int))
    found = fit(tmp_path / "series.npz", trials=3, root=tmp_path / "fits", jobs=2, ensemble=False)
    assert found.chosen.name == "forest"
    (trial,) = map(Path, found.chosen.directories)
    chosen = Run(trial).read("result.json")["chosen"]
    last = Run(found.model).read("manifest.json")
    assert f"features: {chosen['features']}\n" in (found.model / "recipe.yaml").read_text()
    assert chosen["features"] in ("summary", "both")
    assert last["facts"]["task"]["samples"]["train"] == 510


def test_looks_of_other_searches_of_the_same_data_count(tmp_path: Path) -> None:
    for name, data, tested in (("a", "x", 2), ("b", "x", 3), ("c", "y", 1), ("d", "x", 0)):
        for number in range(tested):
            model = tmp_path / name / "models" / str(number)
            model.mkdir(parents=True)
            (model / "status.json").write_text(json.dumps({"state": "done"}))
            (model / "result.json").write_text("{}")
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "fit.json").write_text(json.dumps({"data": data}))
    assert looks_elsewhere(tmp_path / "a", "x") == 3
    assert looks_elsewhere(tmp_path / "new", "x") == 5
    (tmp_path / "d" / "fit.json").write_text("no JSON")
    assert looks_elsewhere(tmp_path / "a", "x") == 3


def test_a_split_without_validation_is_refused(tmp_path: Path) -> None:
    asked = {"settings": {"split": [1.0, 0.0, 0.0]}, "trials": 1, "root": tmp_path / "fits"}
    with pytest.raises(UsageError, match="leaves no validation samples"):
        fit(table(tmp_path, 60), **asked)
    assert not (tmp_path / "fits").exists()


@pytest.mark.long
def test_an_ensemble_can_be_chosen_and_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trees and a sum err differently, so their average is better than either."""
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "recipes" / "methods" / "ridge.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(RIDGE)
    (tmp_path / "mine.yaml").write_text("rivals: [ridge]\nmethods: [nft]\n")
    data = numbers(tmp_path)
    found = fit(data, trials=3, space="./mine.yaml", root=tmp_path / "fits", jobs=2)
    assert found.chosen.name.startswith("ensemble: ")
    single = found.entries[1]
    assert found.chosen.score is not None
    assert single.score is not None
    assert found.chosen.score < single.score
    model = api.load(found.folder)
    assert model.run.path == found.model
    record = json.loads((found.model / "ensemble.json").read_text())
    assert sum(one["weight"] for one in record["members"]) == pytest.approx(1)
    for one in record["members"]:
        facts = Run(found.model / one["run"]).read("manifest.json")["facts"]
        assert facts["task"]["samples"]["train"] == 612  # refitted
    assert found.looks >= len(record["members"])
    assert [one.words for one in found.tested.against] == ["baseline", "majority"]
    assert "better than majority" in found.tested.sentence
    rows = np.genfromtxt(data, delimiter=",", skip_header=1)
    error = model.predict(rows[:, :-1]) - rows[:, -1]
    assert np.sqrt(np.mean(error**2)) < 0.65  # that of the noise is .5
    half = sureness(Run(found.model), "regression")
    assert half.samples == 108
    assert half.half_K is not None
    assert 1.96 * 0.5 < float(half.half_K) < 2


@pytest.mark.long
def test_limits_hold_for_what_is_chosen(tmp_path: Path) -> None:
    data = table(tmp_path, 720)
    with pytest.raises(UsageError, match=r"--memory allows less"):
        fit(data, trials=2, memory=1000, root=tmp_path / "fits")
    with pytest.raises(UsageError, match=r"--max-latency allows less"):
        fit(data, trials=2, latency=1e-12, root=tmp_path / "fits")


@pytest.mark.long
def test_an_interrupted_search_continues(tmp_path: Path) -> None:
    data = table(tmp_path, 720)
    typed = ("fit", data, "--trials", 6, "--jobs", 1, *TINY)
    first = Command(*typed, streams=tmp_path / "streams", cwd=tmp_path)
    until = time.monotonic() + 120
    while not list(tmp_path.glob("fits/*/trials/xgboost*/result.json")):
        assert time.monotonic() < until
        assert first.poll() is None
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    ended = first.wait()
    assert ended.code == 130
    assert "repeat the command to continue" in ended.err
    second = Command(*typed, streams=tmp_path / "streams", cwd=tmp_path).wait()
    assert second.code == 0
    assert "baseline" in second.err
    assert "(kept)" in second.err
    assert "Test, looked at" in second.out
    assert "error-rate" in second.out
    page = next(tmp_path.glob("fits/*/report.html")).read_text()
    assert "<svg" in page
    assert "A cheap answer wins" in page or "earned its place" in page
    predicted = Command(
        "predict", next(tmp_path.glob("fits/*")), data, streams=tmp_path / "streams", cwd=tmp_path
    ).wait()
    assert predicted.code == 0
    assert len(predicted.out.splitlines()) == 721


def test_time_or_trials(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="how much time"):
        fit(tmp_path / "none.csv")
    with pytest.raises(UsageError, match="how much time"):
        fit(tmp_path / "none.csv", seconds=9.0, trials=3)


@pytest.mark.parametrize("fast", [True, False])
def test_precision_of_a_timed_search(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    """By the machine, unless the user or a number of trials has it repeatable."""
    monkeypatch.setattr(fit_module, "multiplies_bf16", lambda device: fast)
    assert fit_module._faster_in_bf16("", ["training.clip=1"]) == fast
    for launcher, overrides in (("", ["precision=fp32"]), ("slurm", []), ("", ["device=cpu"])):
        assert not fit_module._faster_in_bf16(launcher, overrides)


def test_time_is_kept(tmp_path: Path) -> None:
    """Within a tenth, with trials that train, an ensemble and the report."""
    begun, lines = time.monotonic(), list[str]()
    found = fit(
        table(tmp_path, 720),
        seconds=60.0,
        root=tmp_path / "fits",
        jobs=1,
        overrides=TINY,
        say=lines.append,
    )
    assert time.monotonic() - begun < 66
    for entry in (*found.entries, *found.others):
        recipe = (Path(entry.directories[0]) / "recipe.yaml").read_text()
        in_bf16 = any("bf16" in line for line in lines)
        assert in_bf16 == ("precision: bf16" in recipe)


def test_complaints(tmp_path: Path) -> None:
    data = table(tmp_path, 60)
    for options, code, message in (
        (["--time", "soon"], 2, "--time: 'soon' is not a duration"),
        (["--time", "9s", "--trials", "2"], 2, "exclude each other"),
        (["--target", "z"], 4, "no column 'z'"),
        (["--metric", "eror-rate"], 2, "did you mean 'error-rate'"),
        (["--preset", "god"], 2, "did you mean 'good'"),
        (["--memory", "much"], 2, "--memory: 'much' is not a number"),
        (["--max-latency", "5kg"], 2, "with a unit (s, ms, us)"),
    ):
        done = Command("fit", data, *options, streams=tmp_path / "s", cwd=tmp_path).wait()
        assert done.code == code, done.err
        assert message in done.err
        assert not (tmp_path / "fits").exists()
