"""What a run says of its score: in its result, on the command line, from its own predictions."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from xmodal import api
from xmodal.assess import judge
from xmodal.cli.run import show
from xmodal.engine import checkpoint
from xmodal.runs import Run
from xmodal.text import number
from xmodal_basics import metrics

from .test_resample import build


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A table of 200 rows of 50 persons, two classes that its columns tell apart, and the ridge."""
    folder = tmp_path_factory.mktemp("persons")
    generator = np.random.default_rng(0)
    y, person = np.arange(200) % 3 == 0, np.arange(200) // 4
    x = generator.normal(size=(200, 2)) + 2 * y[:, None]
    lines = ["a,b,who,health"]
    lines += [
        f"{a:.3f},{b:.3f},p{p},{'ill' if ill else 'well'}"
        for (a, b), p, ill in zip(x, person, y, strict=True)
    ]
    (folder / "persons.csv").write_text("\n".join(lines), encoding="utf-8")
    overrides = [f"task.path={folder}/persons.csv", "task.y=health", "task.group=who"]
    done = api.run(
        "methods/baseline",
        "arrays/row",
        scale="smoke",
        overrides=overrides,
        root=folder / "runs",
        report=False,
    )
    return done.run


def test_a_run_keeps_its_interval_verdict_and_groups(run: Run) -> None:
    test, manifest = run.read("result.json")["test"], run.read("manifest.json")
    kept = load_file(run.path / "predictions.safetensors")
    assert len(kept["group"]) == len(kept["label"]) == len(kept["prediction"])
    people = len(np.unique(kept["group"]))
    assert people < len(kept["label"])
    assert (test["interval"]["over"], test["interval"]["units"]) == ("groups", people)
    assert test["interval"]["low"] < test["metric"] < test["interval"]["high"]
    assert manifest["classes"] == ["ill", "well"]
    assert sum(test["class_counts"]) == manifest["facts"]["task"]["samples"]["train"]
    guess = test["against"][0]
    assert (guess["words"], guess["outcome"]) == ("always guessing well", "better")
    assert guess["metric"] == pytest.approx(float((kept["label"] == 0).double().mean()))
    assert test["verdict"].startswith("Clearly better than always guessing well (error-rate 0.")


def test_what_is_kept_gives_the_same_interval_again(run: Run) -> None:
    """Anybody can repeat it from the run's files, with the seed that belongs to the run."""
    from xmodal.randomness import derive

    kept = load_file(run.path / "predictions.safetensors")
    seed = derive(0, "bootstrap")
    metric = build(metrics.ErrorRate)
    found = judge(metric, kept["prediction"], kept["label"], {}, kept["group"], seed)
    stored = run.read("result.json")["test"]["interval"]
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == (stored["low"], stored["high"])


def test_the_command_line_shows_both(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result = run.read("result.json")
    show(run.path, result, True, as_json=False)
    said = capsys.readouterr().out
    interval = result["test"]["interval"]
    low, high = number(interval["low"], 3), number(interval["high"], 3)
    assert f"(95 % interval: {low} to {high}, {interval['units']} groups)" in said
    # A scale that means nothing says that in place of a verdict.
    assert (run.read("manifest.json").get("banner") or result["test"]["verdict"]) in said


def test_a_metric_that_cannot_score_single_samples_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = metrics.RelativeL2Error.update

    def picky(self: metrics.RelativeL2Error, prediction: object, y: list[object]) -> None:
        if len(y) == 1:
            raise ValueError("a single sample")
        update(self, prediction, y)  # type: ignore[arg-type]

    monkeypatch.setattr(metrics.RelativeL2Error, "update", picky)
    done = api.run("methods/baseline", "tasks/darcy", scale="smoke", root=tmp_path, report=False)
    assert "interval" not in done.result["test"]
    notes = [note for note in done.result["notes"] if "how sure" in note]
    assert notes == [
        "how sure the test score is could not be found out: ValueError: a single sample"
    ]


@pytest.mark.long
def test_fields_of_zeros_and_ones_are_shown_as_probabilities(tmp_path: Path) -> None:
    """Log-odds of 10 are a good answer to 1, not one that is 9 off."""
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 1, 16, 16)).astype("float32")
    np.savez(tmp_path / "masks.npz", x=x, y=(x > 0).astype("float32"))
    more = [f"task.path={tmp_path}/masks.npz", "task.loss=bce", "task.metric=pixel-auroc-error"]
    done = api.run(
        "methods/local-linear", "arrays/grid", scale="smoke", overrides=more, root=tmp_path / "runs"
    )
    kept = load_file(done.run.path / "predictions.safetensors")["prediction"]
    assert float(kept.max()) > 2  # log-odds, as the metric reads them
    assert done.result["log_odds"] is True
    for name in ("test", "worst", "typical"):
        seen = checkpoint.load(done.run.path / "samples")[name]["prediction"]
        assert 0 <= float(seen.min()) <= float(seen.max()) <= 1
    page = (done.run.path / "report.md").read_text(encoding="utf-8")
    (largest,) = re.findall(r"the largest error, ([\d.]+), is", page)
    assert float(largest) < 1
