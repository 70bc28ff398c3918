"""Fine-tuning on what a cheap answer leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xmodal import api, runs
from xmodal.batch import Progress
from xmodal.data.augment import Augmented
from xmodal.data.store import Store
from xmodal.engine.build import Builder
from xmodal.engine.loop import Training
from xmodal.engine.observe import Silent
from xmodal.engine.plan import compose_plan
from xmodal.engine.session import RunSession
from xmodal.errors import DataError, RecipeError, UsageError
from xmodal.interfaces import FitData
from xmodal.plugins import registry
from xmodal.testing.running import StopAt, assert_same, weights
from xmodal.testing.tiny import build, tiny_context, tiny_facts, tiny_target
from xmodal_basics.residual import ResidualPredictor, smoothed

COUNT = 20
FEW = {"residual": "predictor.cheap={use: forest, trees: 20}", "forest": "predictor.trees=20"}
SMALL = ["training.epochs=2", "training.max_steps=null", "training.batch={size: 8, micro: 4}"]


def on_majority(facts: Any, **settings: Any) -> ResidualPredictor:
    given = {"cheap": "majority", **settings}
    made: ResidualPredictor = build(
        ResidualPredictor, given, tiny_context(facts, {"backbone": None})
    )
    return made


def data_of(facts: Any, y: Tensor) -> FitData:
    x = torch.randn(len(y), *facts.task.shape).flatten(1)
    return FitData(x, y, x[:0], y[:0])


@pytest.mark.parametrize("grouped", [False, True])
def test_a_training_sample_gets_the_answer_of_a_model_that_has_not_seen_it(grouped: bool) -> None:
    """The cheap answer is a mean, so by hand: the mean over the samples of the other folds."""
    facts = tiny_facts("sequence", tiny_target("regression", "sequence"))
    predictor = on_majority(facts, folds=4)
    y = torch.randn(COUNT, facts.task.target.size)
    data = data_of(facts, y)
    groups_N = torch.arange(COUNT) // 3 if grouped else None
    predictor.cheap.fit(data)
    predictor.fit_folds(data, COUNT, groups_N, seed=0, changing=False)
    fold_N = predictor.fold_N
    assert fold_N is not None
    assert fold_N.unique().tolist() == [0, 1, 2, 3]
    if groups_N is not None:
        assert all(len(fold_N[groups_N == group].unique()) == 1 for group in groups_N.unique())
    for index in range(COUNT):
        expected = y[fold_N != fold_N[index]].mean(0)
        found = predictor.from_samples(data.x_NF[:1], torch.tensor([index]))[0]
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(predictor.from_samples(data.x_NF[:2]), y.mean(0).expand(2, -1))


def test_samples_that_change_get_the_answer_of_the_same_models() -> None:
    facts = tiny_facts("sequence", tiny_target("classification", "sequence"))
    y = torch.arange(COUNT) % facts.task.target.size
    found = []
    for changing in (False, True):
        predictor = on_majority(facts, folds=3)
        data = data_of(facts, y)
        predictor.cheap.fit(data)
        predictor.fit_folds(data, COUNT, None, 0, changing)
        index = torch.tensor([4, 0, 9, 17])
        found.append(predictor.from_samples(data.x_NF[index], index))
        assert bool(len(predictor.held)) != changing
    assert torch.equal(*found)


def test_moved_copies_of_a_sample_are_in_its_fold() -> None:
    """All samples, then all of them moved: no copy of a sample teaches the model that answers it.

    The cheap answer is a mean, and copies have labels of their own here.
    """
    facts = tiny_facts("sequence", tiny_target("regression", "sequence"))
    predictor = on_majority(facts, folds=4)
    y = torch.randn(3 * COUNT, facts.task.target.size)
    predictor.fit_folds(data_of(facts, y), COUNT, None, seed=0, changing=False)
    fold_N = predictor.fold_N
    assert fold_N is not None
    assert len(predictor.held) == len(fold_N) == COUNT
    for index in range(COUNT):
        outside = fold_N != fold_N[index]
        expected = torch.cat([y[:COUNT][outside], y[COUNT:-COUNT][outside], y[-COUNT:][outside]])
        torch.testing.assert_close(predictor.held[index], expected.mean(0))


def test_smoothing_is_the_formula_and_keeps_the_order() -> None:
    p_BK = torch.tensor([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]], dtype=torch.float64)
    found = smoothed(p_BK.clamp_min(1e-30).log(), "classification", 0.03)
    torch.testing.assert_close(found, (0.97 * p_BK + 0.01).log())
    odds = smoothed(torch.logit(p_BK, eps=1e-12), "multi-label", 0.1)
    torch.testing.assert_close(odds, torch.logit(0.9 * p_BK + 0.05))
    # Far out, where single precision knows no difference of the probabilities any more.
    tails = smoothed(torch.tensor([[-13.0], [-12.0], [12.0], [13.0]]), "multi-label", 0.01)
    assert (tails.diff(dim=0) > 0).all()
    numbers = torch.randn(3, 2)
    assert smoothed(numbers, "regression", 0.5) is numbers


def test_one_group_is_refused() -> None:
    facts = tiny_facts("sequence", tiny_target("regression", "sequence"))
    predictor = on_majority(facts)
    data = data_of(facts, torch.randn(COUNT, facts.task.target.size))
    with pytest.raises(DataError, match="at least two groups"):
        predictor.fit_folds(data, COUNT, torch.zeros(COUNT), 0, False)


# --- runs ---


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sequences whose classes a forest tells apart, most of the time."""
    path = tmp_path_factory.mktemp("data") / "waves.npz"
    random = np.random.default_rng(0)
    label_N = np.arange(60) % 3
    x = random.normal(size=(60, 2, 24)) + 0.5 * label_N[:, None, None]
    np.savez(path, x=x.astype("float32"), y=label_N)
    return path


def task_of(file: Path) -> str:
    return "task=" + json.dumps({"use": "arrays", "path": str(file), "form": "sequence"})


def run(method: str, file: Path, root: Path, *more: str, observer: Any = None) -> runs.Run:
    overrides = [task_of(file), "seed=3", FEW[method], *more]
    return api.run(
        f"methods/{method}", scale="smoke", overrides=overrides, root=root, report=False,
        observer=observer or Silent(),
    ).run  # fmt: skip


def session_of(file: Path, *more: str) -> RunSession:
    made = compose_plan(
        ["methods/residual"],
        registry(),
        Store(),
        [task_of(file), "seed=3", FEW["residual"], *SMALL, *more],
        "smoke",
    )
    builder = Builder(made, Store(), lambda line: None)
    return builder.session(builder.data())


@pytest.fixture(scope="module")
def whole(file: Path, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    return run("residual", file, tmp_path_factory.mktemp("whole"), *SMALL, "saving.every_steps=1")


def test_epoch_0_is_the_cheap_answer_by_itself(whole: runs.Run, file: Path, tmp_path: Path) -> None:
    alone = run("forest", file, tmp_path)
    (first, *_), (own,) = whole.metrics(), alone.metrics()
    assert first["validation"]["metric"] == own["validation"]["metric"]
    # Not the loss: it is that of smoothed probabilities.
    assert first["total_steps"] == 0


def test_a_loaded_model_predicts_what_the_run_did(whole: runs.Run) -> None:
    from safetensors.torch import load_file

    kept = load_file(whole.path / "predictions.safetensors")["prediction"]
    samples = load_file(whole.path / "samples" / "tensors.safetensors")["/test/x"]
    found = api.load(whole.path).forward(samples)
    torch.testing.assert_close(found, kept[: len(found)])


@pytest.mark.parametrize("records", [1, 3])
def test_a_run_that_is_cut_off_ends_bit_equal(
    records: int, whole: runs.Run, file: Path, tmp_path: Path
) -> None:
    more = [*SMALL, "saving.every_steps=1"]
    with pytest.raises(RuntimeError, match="crash"):
        run("residual", file, tmp_path, *more, observer=StopAt(records))
    resumed = run("residual", file, tmp_path, *more)
    assert_same(weights(whole), weights(resumed))
    assert whole.read("result.json")["test"] == resumed.read("result.json")["test"]


def test_training_meets_the_samples_out_of_fold(file: Path) -> None:
    """The loss of the first step, when the head still says nothing, is that of what was held."""
    session = session_of(file)
    training = Training(session)
    steps = (r for r in training.run() if hasattr(r, "number"))
    first = next(steps)
    predictor = session.model.predictor
    assert isinstance(predictor, ResidualPredictor)
    index = session.order(Progress(1, 0, 2, 0, 1))[:8]
    x, y = next(session.fetch(session.data.train, [index]))
    expected = session.model.loss(predictor.held[index], y).mean()
    assert first.loss == pytest.approx(float(expected), rel=1e-5)
    inside = session.model.loss(predictor.from_samples(x), y).mean()
    assert float(inside) < 0.5 * first.loss  # trees know their own training samples by heart


def test_samples_that_change_from_pass_to_pass_train(file: Path) -> None:
    session = session_of(file, "predictor.cheap=majority")
    plain = session.data.train
    changed = Augmented(plain, lambda x, y, generator: (x + 1, y))
    session.data = replace(session.data, train=changed)
    records = list(Training(session).run())
    assert records
    assert isinstance(session.model.predictor, ResidualPredictor)
    assert not len(session.model.predictor.held)


def test_the_order_of_samples_is_that_of_plain_fine_tuning(file: Path) -> None:
    plain = compose_plan(["methods/nft"], registry(), Store(), [task_of(file), "seed=3"], "smoke")
    builder = Builder(plain, Store(), lambda line: None)
    one, other = builder.session(builder.data()), session_of(file)
    assert torch.equal(one.order(Progress(0, 1, 2, 0, 1)), other.order(Progress(1, 1, 2, 0, 1)))


# --- what cannot work ---


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["predictor.cheap=pooled"], "cheap 'pooled' trains by steps"),
        (["predictor.cheap=minirocket"], "keeps predictions instead of a model"),
        (["predictor.cheap=frozen-features"], "reads features of a backbone"),
        (["predictor.head=forest"], "head 'forest' is none on features"),
        (["predictor.cheap=local-linear"], "cheap 'local-linear' cannot predict classification"),
        (["mixer=target-mixup"], "'target-mixup' mixes samples"),
    ],
)
def test_what_does_not_fit_is_refused(overrides: list[str], words: str, file: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        session_of(file, *overrides)


def test_a_head_without_a_layer_that_starts_at_0_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "series.npz"
    x = np.random.default_rng(0).normal(size=(30, 2, 24)).astype("float32")
    np.savez(path, x=x, y=x[:, :1] ** 2)
    session = session_of(
        path, "predictor.cheap=sklearn", "predictor.head={use: dense-1d, head: pool}"
    )
    with pytest.raises(UsageError, match="does not end in a linear layer"):
        list(Training(session).run())


def test_a_stage_before_the_answer_is_fitted_is_refused(file: Path) -> None:
    session = session_of(file, "stages=[{use: finetune}]")
    with pytest.raises(UsageError, match="needs the stage 'fit-cheap'"):
        list(Training(session).run())


# --- exports ---


def test_what_torch_can_trace_is_exported_whole(file: Path, tmp_path: Path) -> None:
    """With logistic regression the whole is a graph; a form of parts has no place for samples."""
    done = run("residual", file, tmp_path, "predictor.cheap=sklearn", "predictor.folds=2")
    trained = api.load(done.path)
    x = torch.randn(4, 2, 24)
    traced = torch.export.export(trained.model, (x,)).module()
    torch.testing.assert_close(traced(x), trained.model(x))
    assert not torch.allclose(traced(x), trained.model.decode(_head_alone(trained, x)))
    with pytest.raises(DataError, match="reads the samples beside the backbone's features"):
        api.export(done.path, "hf", tmp_path / "hf")


def _head_alone(trained: Any, x: Tensor) -> Tensor:
    model = trained.model
    alone: Tensor = model.predictor(model.backbone(model.embedder(x)))
    return alone


def test_trees_are_not_exported(whole: runs.Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="computes with a library or a solver of its own"):
        api.export(whole.path, "onnx", tmp_path / "onnx")
