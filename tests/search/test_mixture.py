"""Greedy ensembles against all ensembles, the score that counts, and the leaderboard's words."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import one_hot

from xmodal import plugins
from xmodal.data.store import Store
from xmodal.engine.plan import Plan, compose_plan
from xmodal.runs import PREDICTIONS, Run
from xmodal.search.board import leaderboard, verdict
from xmodal.search.mixture import FOLDS, LEAST, greedy, mixture
from xmodal.search.pooled import Pool
from xmodal.search.space import Answer
from xmodal.search.trials import Trial, TrialRun

from .. import forms

COUNT = 200
LABELS = torch.arange(COUNT) % 2


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    path = tmp_path_factory.mktemp("data") / "mine.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["a", "y"])
        rows.writerows([i, "yes" if i % 3 else "no"] for i in range(60))
    recipes = ("methods/majority", "arrays/row")
    return compose_plan(recipes, plugins.registry(), Store(), (f"task.path={path}",))


def guesses(wrong: Sequence[int], sure: float = 2.0) -> Tensor:
    """Logits that are right but for the samples ``wrong``."""
    label_N = LABELS.clone()
    label_N[list(wrong)] = 1 - label_N[list(wrong)]
    return sure * one_hot(label_N, 2).float()


def trial(
    folder: Path, name: str, prediction: Tensor, cheap: bool = False, folds: int = 1
) -> Trial:
    """What a trial with such predictions leaves; with folds, repeated cross-validation."""
    parts = []
    for fold, rows in enumerate(np.array_split(np.arange(COUNT), folds)):
        where = folder / f"{name}-{fold}"
        where.mkdir()
        own, y = prediction[rows], LABELS[rows]
        kept = {"prediction": own.contiguous(), "label": y, "row": torch.from_numpy(rows)}
        save_file(kept, where / PREDICTIONS)
        score = float((own.argmax(1) != y).double().mean())
        seconds = {"training": 1.0, "this_process": 3.0, "test_sample": 0.002}
        Run(where).write("result.json", forms.result(score, seconds=seconds))
        Run(where).set_state("done")
        parts.append(TrialRun(where, {}))
    return Trial(Answer(name, ("methods/nft",), cheap=cheap), None, None, tuple(parts))


def three(folder: Path, **more: int) -> list[Trial]:
    """Three models that are wrong on different samples: two of them are always right."""
    wrong = [range(0, 30), range(50, 82), range(120, 155)]
    return [
        trial(folder, name, guesses(tuple(own)), **more)  # type: ignore[arg-type]
        for name, own in zip("abc", wrong, strict=True)
    ]


def test_the_greedy_choice_is_as_good_as_the_best_of_all_ensembles() -> None:
    random = torch.Generator().manual_seed(0)
    y = torch.randn(60, generator=random)
    shares = y + torch.randn(4, 60, generator=random) + torch.tensor([0.0, 0.3, -0.5, 0.8])[:, None]

    def score(mean: Tensor) -> float:
        return float(((mean - y) ** 2).mean())

    order = sorted(range(4), key=lambda c: score(shares[c]))
    shares = shares[order]
    counts = greedy(shares, score, rounds=12)
    found = score((shares * torch.tensor(counts)[:, None]).sum(0) / sum(counts))
    every = [c for c in itertools.product(range(6), repeat=4) if sum(c)]
    best = min(score((shares * torch.tensor(c)[:, None]).sum(0) / sum(c)) for c in every)
    assert found <= best * 1.02
    assert found < 0.9 * score(shares[0])


def test_a_first_round_by_hand() -> None:
    """Errors +1, -1 and +3: the mean of the first two is right, and nothing can be better."""
    shares = torch.tensor([[1.0], [-1.0], [3.0]])
    assert greedy(shares, lambda mean: float(mean.abs()), rounds=5) == (1, 1, 0)
    assert greedy(shares[:1], lambda mean: float(mean.abs()), rounds=5) == (1,)


def test_an_ensemble_of_different_mistakes_is_found(tmp_path: Path, plan: Plan) -> None:
    trials = three(tmp_path)
    made = mixture(Pool(plan, 0), trials, 0)
    assert made is not None
    assert made.score == 0.0 < trials[0].score()  # type: ignore[operator]
    assert {one.name for one, _ in made.members} == {"a", "b", "c"}
    assert sum(weight for _, weight in made.members) == pytest.approx(1)
    assert max(weight for _, weight in made.members) < 0.5


def test_folds_of_cross_validation_are_pooled(tmp_path: Path, plan: Plan) -> None:
    pool = Pool(plan, 0)
    trials = three(tmp_path, folds=5)
    made = mixture(pool, trials, 0)
    assert made is not None
    assert pool.samples.score(pool.of(trials[0]).prediction) == pytest.approx(trials[0].score())  # type: ignore[union-attr]
    interval = pool.interval(trials[0])
    assert interval is not None
    assert interval.units == COUNT
    assert interval.low < 0.15 < interval.high


def test_the_score_of_an_ensemble_is_of_samples_that_did_not_choose_it(
    tmp_path: Path, plan: Plan
) -> None:
    """Of many random guesses, some fit any labels by chance. None of it may count."""
    random = torch.Generator().manual_seed(1)
    noise = [torch.randn(COUNT, 2, generator=random) for _ in range(8)]
    trials = [trial(tmp_path, f"t{k}", one) for k, one in enumerate(noise)]
    trials.sort(key=lambda one: one.score() or 0.0)
    pool = Pool(plan, 0)
    shares = torch.stack([pool.of(one).prediction.softmax(1) for one in trials])  # type: ignore[union-attr]
    counts = torch.tensor(greedy(shares, lambda m: pool.samples.score(m.log())))
    mean = (shares * counts[:, None, None]).sum(0) / counts.sum()
    flattered = pool.samples.score(mean.log())
    assert flattered < 0.45  # it looks better than chance
    made = mixture(pool, trials, 0)
    assert made is None or made.score < trials[0].score()  # type: ignore[operator]
    assert made is None or made.score > flattered


def test_no_ensemble_of_few_samples_or_of_equal_models(tmp_path: Path, plan: Plan) -> None:
    assert LEAST > FOLDS
    same = [trial(tmp_path, name, guesses(range(30))) for name in "xyz"]
    assert mixture(Pool(plan, 0), same, 0) is None
    assert mixture(Pool(plan, 0), same[:1], 0) is None


# --- the leaderboard and its verdict ---


def said(folder: Path, plan: Plan, cheap: range, tuned: range) -> str:
    found = [
        trial(folder, "forest", guesses(cheap), cheap=True), trial(folder, "nft", guesses(tuned)),
    ]  # fmt: skip
    found.sort(key=lambda one: (one.score() or 0.0, not one.answer.cheap))
    return verdict(Pool(plan, 0), found, None, "error-rate", 1).words


def test_the_verdict_says_first_whether_the_transformer_earned_its_place(
    tmp_path: Path, plan: Plan
) -> None:
    for number, (cheap, tuned, start, end) in enumerate(
        (
            (60, 20, "The transformer earned its place: nft", "beyond chance"),
            (22, 20, "It is open whether the transformer earned its place", "inside chance"),
            (20, 20, "The transformer has not earned its place", "inside chance"),
            (20, 22, "The transformer has not earned its place", "inside chance"),
            (20, 60, "The transformer has not earned its place", "clearly"),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        words = said(folder, plan, range(cheap), range(tuned))
        assert words.startswith(start), words
        assert end in words, words


def test_an_ensemble_does_not_credit_its_transformer_alone(tmp_path: Path, plan: Plan) -> None:
    wrong = [range(0, 30), range(50, 82), range(120, 155)]
    found = [
        trial(tmp_path, name, guesses(own), cheap=name != "nft")
        for name, own in zip(("forest", "nft", "ridge"), wrong, strict=True)
    ]
    pool = Pool(plan, 0)
    words = verdict(pool, found, mixture(pool, found, 0), "error-rate", 1).words
    assert words.startswith("A transformer is part of the best answer; whether it made the")
    assert "beyond chance" in words


def test_a_transformer_is_held_against_an_ensemble_of_cheap_answers(
    tmp_path: Path, plan: Plan
) -> None:
    wrong = [range(0, 30), range(50, 82), range(120, 155), range(0, 90)]
    found = [
        trial(tmp_path, name, guesses(own), cheap=name != "nft")
        for name, own in zip(("forest", "ridge", "nearest", "nft"), wrong, strict=True)
    ]
    pool = Pool(plan, 0)
    made = mixture(pool, found[:3], 0)
    assert made is not None
    told = verdict(pool, found, made, "error-rate", 1)
    assert told.words.startswith("The transformer has not earned its place: a cheap answer wins")
    assert ", clearly (95 %:" in told.words
    assert told.lead is not None
    assert told.lead.words == made.name
    assert told.lead.metric == pytest.approx(pool.samples.score(made.prediction))


def test_without_a_transformer_the_verdict_says_so(tmp_path: Path, plan: Plan) -> None:
    found = [trial(tmp_path, "forest", guesses(range(9)), cheap=True)]
    pool = Pool(plan, 0)
    assert "no transformer was tried" in verdict(pool, found, None, "error-rate", 0).words
    began = verdict(pool, found, None, "error-rate", 2).words
    assert "2 fine-tuned transformers began, but none was trained to the end" in began


def test_lines_have_intervals_time_and_waits(tmp_path: Path, plan: Plan) -> None:
    trials, pool = three(tmp_path), Pool(plan, 0)
    made = mixture(pool, trials, 0)
    first, second, *_ = leaderboard(pool, trials, made)
    assert first.name.startswith("ensemble: ")
    assert first.score == 0.0
    assert first.latency == pytest.approx(0.006)
    assert (second.name, second.score, second.latency) == ("a", 0.15, 0.002)
    assert second.interval is not None
    # Clopper and Pearson for 30 of 200.
    assert (second.interval.low, second.interval.high) == pytest.approx((0.1037, 0.2071), abs=2e-4)
