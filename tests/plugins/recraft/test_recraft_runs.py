"""Whole runs of RECRAFT: every kind of label, resuming inside every stage, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from xmodal import api
from xmodal.batch import SOURCE, Progress
from xmodal.data import loader
from xmodal.data.store import Store
from xmodal.engine.build import Builder
from xmodal.engine.loop import Training
from xmodal.engine.plan import compose_plan
from xmodal.engine.session import RunSession
from xmodal.engine.step import StepRecord
from xmodal.errors import RecipeError
from xmodal.interfaces import SourceFacts, Target
from xmodal.plugins import registry
from xmodal.testing.running import RecordingObserver, StopAt, assert_same, weights
from xmodal.testing.tiny import tiny_facts
from xmodal_recraft.align_labels import AlignLabels, answers, conditional_entropy, marginal_entropy

pytestmark = pytest.mark.slow

CAR = ("methods/recraft", "tasks/openml/car")
SHORT = [
    "training.epochs=1",
    "stages.0={epochs: 2, penalty_from: 1, lipschitz_in: tokens}",
    "stages.1={epochs: 3, samples: 16}",
    "stages.2={epochs: 1, max_steps: 3, chunk: 4}",
]
"""2 + 2 steps of the head, 3 of features, 3 of labels, then 2 of fine-tuning."""


def run(root: Path, *overrides: str, recipes: tuple[str, ...] = CAR, **more: Any) -> Any:
    every = ["saving.every_steps=1", "saving.keep=50"]
    settings = {"scale": "smoke", "overrides": [*SHORT, *every, *overrides], "report": False}
    return api.run(*recipes, root=root, **settings, **more)


def session(tmp_path: Path, *overrides: str) -> RunSession:
    plan = compose_plan(CAR, registry(), Store(tmp_path), [*SHORT, *overrides], "smoke")
    builder = Builder(plan, Store(tmp_path), lambda line: None)
    return builder.session(builder.data())


# --- every kind of label ---


def labels(kind: str, count: int) -> Any:
    rng = np.random.default_rng(0)
    return {
        "classification": np.arange(count) % 3,
        "multi-label": rng.integers(0, 2, (count, 4)),
        "regression": rng.normal(size=(count, 2)).astype(np.float32),
        "dense": rng.normal(size=(count, 1, 16, 16)).astype(np.float32),
    }[kind]


@pytest.mark.parametrize("kind", ["classification", "multi-label", "regression", "dense"])
@pytest.mark.parametrize("method", ["recraft", "recraft-pare"])
def test_every_kind_of_target(kind: str, method: str, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(40, 2, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "my.npz", x=x, y=labels(kind, 40))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"task: {{use: arrays, path: '{tmp_path}/my.npz', kind: {kind}}}\n")
    predictor = ["source_predictor=classification"] if kind != "classification" else []
    seen = RecordingObserver()
    done = run(
        tmp_path / "runs",
        *predictor,
        recipes=(f"methods/{method}", str(recipe)),
        observer=seen,
    )
    assert [r.progress.stage for r in seen.steps] == [0] * 4 + [1] * 3 + [2] * 3 + [3] * 2
    assert all(np.isfinite(r.loss) for r in seen.steps)
    assert np.isfinite(done.run.read("result.json")["test"]["metric"])


def test_a_source_of_maps(tmp_path: Path) -> None:
    """Darcy's source is a map of 0 and 1: its pixels are questions; the head keeps its own loss."""
    seen = RecordingObserver()
    run(tmp_path, recipes=("methods/recraft", "tasks/darcy"), observer=seen)
    head = [r for r in seen.steps if r.progress.stage == 0]
    distortion = [r.log["H(Ys|Yt)"] for r in seen.steps if r.progress.stage == 2]
    assert "penalty" in head[-1].log
    assert "penalty" not in head[0].log
    assert all(0 < h <= np.log(2) + 1e-6 for h in distortion)


def test_a_source_of_numbers_is_refused() -> None:
    facts = tiny_facts()
    numbers = SourceFacts("example-numbers", "image", Target("regression", 2))
    (line,) = AlignLabels.problems(AlignLabels.Config(), _with_source(facts, numbers))
    assert "example-numbers" in line
    assert not list(AlignLabels.problems(AlignLabels.Config(), facts))


def _with_source(facts: Any, source: SourceFacts) -> Any:
    from dataclasses import replace

    return replace(facts, source=source)


def test_without_a_source_the_stages_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="source-head"):
        run(tmp_path, "source=null")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"subtract_marginal": True}, "chunks"),
        ({"chunk": 1}, "chunk"),
        ({"clusters": 1}, "clusters"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_bad_settings_are_refused(given: Mapping[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        AlignLabels.Config.model_validate(given)


# --- label alignment ---


def test_loss_is_the_distortion_of_what_the_head_sees(tmp_path: Path) -> None:
    given = session(tmp_path, "stages.2={chunks: 3, subtract_marginal: true}")
    stage, model = given.stages[2], given.model.eval()
    progress = Progress(2, 0, 1, 0, stage.steps_per_epoch(given))
    (micro,) = next(iter(stage.steps(given, progress)))
    samples, weight = micro
    value, log = stage.loss(given, micro, progress)
    parts = [
        answers(model.apply_head(SOURCE, model.backbone(model.embedder(x))), "classification")
        for x in samples
    ]
    assert [len(x) for x in samples] == [4, 4, 4]
    assert weight == 1
    within, marginal = conditional_entropy(parts), marginal_entropy(parts)
    assert float(value.detach()) == pytest.approx(float(within - marginal), abs=1e-5)
    assert float(log["H(Ys|Yt)"]) == pytest.approx(float(within), abs=1e-5)
    assert value <= 0


@pytest.mark.parametrize("chunks", [1, 3])
def test_over_an_epoch_a_class_weighs_its_share(chunks: int, tmp_path: Path) -> None:
    """Chunks go through one by one; a smaller one weighs less, however many a step takes."""
    given = session(tmp_path, f"stages.2={{chunks: {chunks}, chunk: 16, max_steps: null}}")
    stage: Any = given.stages[2]
    progress = Progress(2, 0, 1, 0, stage.steps_per_epoch(given))
    steps = [list(step) for step in stage.steps(given, progress)]
    assert len(steps) == progress.steps
    assert sum(weight for _, weight in steps[0]) == pytest.approx(1)
    weights_ = [weight for step in steps for _, weight in step]
    sizes = [len(x) for step in steps for (x,), _ in step]
    assert min(sizes) < 16
    assert weights_ == pytest.approx([n / (16 * chunks) for n in sizes])


def test_chunks_hold_one_class_of_the_task(tmp_path: Path) -> None:
    given = session(tmp_path)
    stage: Any = given.stages[2]
    y = loader.labels(given.data.train)
    chunks = stage._chunks(given, 2, 0)
    assert len(chunks) > 10
    assert all(len(y[chunk].unique()) == 1 for chunk in chunks)
    first, second = (stage._chunks(given, 2, epoch) for epoch in (0, 1))
    assert len(first) == len(second)
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_alignment_lowers_distance_and_distortion(tmp_path: Path) -> None:
    rate = "optimizer: {use: adam, lr: 0.01}, schedule: {decay: none}"
    given = session(
        tmp_path,
        "stages.1={epochs: 40, optimizer: {use: adam, lr: 0.01}}",
        f"stages.2={{epochs: 2, max_steps: 40, {rate}}}",
    )
    seen: dict[int, list[float]] = {0: [], 1: [], 2: [], 3: []}
    for record in Training(given).run():
        if isinstance(record, StepRecord):
            seen[record.progress.stage].append(record.loss)
    assert seen[1][-1] < 0.7 * seen[1][0]
    assert np.mean(seen[2][-20:]) < 0.8 * np.mean(seen[2][:5])


# --- resuming ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("whole")
    return {
        method: weights(run(folder / method, recipes=(f"methods/{method}", CAR[1])).run)
        for method in ("recraft", "recraft-pare")
    }


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "records"),
    # Steps and epochs: head 2+1, 2+1; features three times 1+1; labels 3+1; fine-tuning 2+1.
    [("recraft", n) for n in (1, 4, 6, 9, 14, 17)] + [("recraft-pare", 17)],
)
def test_resumed_inside_every_stage(
    method: str, records: int, whole: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    recipes = (f"methods/{method}", CAR[1])
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path, recipes=recipes, observer=StopAt(records))
    assert_same(whole[method], weights(run(tmp_path, recipes=recipes).run))


@pytest.mark.long
def test_the_comparison_can_fail(whole: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    other = weights(run(tmp_path, "seed=1").run)
    heads = [name for name in other if name.startswith("source_predictor.")]
    assert heads
    assert not any(torch.equal(whole["recraft"][name], other[name]) for name in heads)
