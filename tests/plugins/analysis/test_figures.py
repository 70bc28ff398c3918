"""The figures of ``xmodal analyse``: the dial, the landscape, maps and patches, each by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from xmodal import api
from xmodal.batch import Progress, Tokens
from xmodal.engine.evaluate import evaluate
from xmodal.errors import UsageError
from xmodal.interfaces import Scheduler
from xmodal.report import kept_samples
from xmodal.runs import Run
from xmodal.workbench import OpenedRun
from xmodal_analysis import landscape, maps, patches
from xmodal_analysis.clouds import Clouds
from xmodal_analysis.distance_figure import counts
from xmodal_analysis.patches import of_source, of_target
from xmodal_analysis.restore import dial as dial_of
from xmodal_analysis.restore import restore


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of seconds."""
    root = tmp_path_factory.mktemp("analysis")
    recipes = ("methods/pare", "tasks/darcy")
    return api.run(*recipes, scale="smoke", directory=root / "run", report=False).run


@pytest.fixture
def restored(run: Run) -> OpenedRun:
    """The run in memory."""
    return restore(run)


# --- the dial ---


@pytest.mark.slow
def test_a_restored_run_scores_as_the_run_did(restored: OpenedRun) -> None:
    session = restored.session
    score = evaluate(session, session.data.test)
    assert score.metric == restored.run.read("result.json")["test"]["metric"]


@pytest.mark.slow
def test_the_dial_replaces_exactly_k_tokens(restored: OpenedRun) -> None:
    clouds = Clouds(restored, samples=8)
    most = clouds.most()
    assert most == np.prod(restored.session.facts.grid)
    target = clouds.target()
    assert torch.equal(clouds.mixed(0).embeddings_ND, target.embeddings_ND)
    found = patches.over_counts(restored, most)
    assert found is not None
    for k, origin in zip(found["k"], found["origin"], strict=True):
        assert ((np.asarray(origin) >= 0).sum(axis=1) == k).all()
    moved = [(clouds.mixed(k).embeddings_ND - target.embeddings_ND).norm() for k in (1, most)]
    assert 0 < moved[0] < moved[1]


@pytest.mark.slow
def test_all_tokens_replaced_is_the_source(restored: OpenedRun) -> None:
    """k = N leaves nothing of the target: the means are those of the source's tokens."""
    clouds = Clouds(restored, samples=8)
    mixed, source = clouds.mixed(clouds.most()), clouds.source()
    torch.testing.assert_close(mixed.embeddings_ND, source.embeddings_ND)


@pytest.mark.slow
def test_the_same_every_time(run: Run) -> None:
    first, second = (Clouds(restore(run), samples=8).mixed(5) for _ in range(2))
    assert torch.equal(first.features_NF, second.features_NF)


@pytest.mark.slow
def test_the_dial_does_not_reach_beyond_a_mixers_tokens(restored: OpenedRun) -> None:
    dial = dial_of(restored)
    assert isinstance(dial, Scheduler)
    dial.wanted = 10**6
    assert dial(Progress(0, 0, 1, 0, 1), 7) == 7
    dial.observe(lambda k: pytest.fail("looked"), *[Tokens(torch.zeros(1, 1, 1), (1,))] * 2, None)  # type: ignore[arg-type]


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    empty = Run(tmp_path)
    with pytest.raises(UsageError, match=r"not finished \(state: empty\).*xmodal resume"):
        restore(empty)


def test_counts_fall_to_zero() -> None:
    assert counts(8, 5) == [8, 6, 4, 2, 0]
    assert counts(3, 9) == [3, 2, 1, 0]
    assert counts(0, 9) == []


# --- the landscape ---


def test_directions_are_normalised_filter_by_filter() -> None:
    conv, linear = nn.Conv2d(3, 4, 2), nn.Linear(5, 6)
    with torch.no_grad():
        linear.weight[2] = 0
    named = [("conv", conv.weight), ("linear", linear.weight)]
    ways = landscape.direction(named, torch.Generator().manual_seed(0))
    drawn = torch.Generator().manual_seed(0)
    for (_, weight), way in zip(named, ways, strict=True):
        raw = torch.randn(weight.shape, generator=drawn)
        for i in range(len(weight)):  # d_i · |θ_i| / |d_i|, one filter at a time
            by_hand = raw[i] * (weight[i].detach().norm() / raw[i].norm())
            torch.testing.assert_close(way[i], by_hand)
    assert not ways[1][2].any()


def test_weights_are_restored_bit_for_bit() -> None:
    layer = nn.Linear(7, 3)
    before = layer.weight.detach().clone()
    named = [("weight", layer.weight)]
    way = landscape.direction(named, torch.Generator().manual_seed(1))

    def fail() -> None:
        with landscape.moved(named) as move:
            for size in (0.1, -3.0, 1e-9):
                move((size, way), (1.0, way))
            assert not torch.equal(layer.weight, before)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(layer.weight, before)


@pytest.mark.slow
def test_the_centre_is_the_validation_loss(restored: OpenedRun) -> None:
    session = restored.session
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    numbers = landscape.compute(restored, samples=10**6, size=4, radius=0.5)
    assert numbers["steps"] == [-0.5, -0.25, 0.0, 0.25, 0.5]
    expected = evaluate(session, session.data.validation).loss
    assert numbers["centre"] == pytest.approx(expected, rel=1e-6)
    assert numbers["centre"] == numbers["losses"][2][2]
    assert len({v for row in numbers["losses"] for v in row}) == 25
    for name, value in session.model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.slow
def test_the_landscape_is_the_loss_of_moved_weights(restored: OpenedRun) -> None:
    """One corner by another way: move the weights by hand and score the whole split."""
    session = restored.session
    numbers = landscape.compute(restored, samples=10**6, size=3, radius=0.3)
    from xmodal import randomness

    named = landscape.parameters(restored)
    generator = randomness.generator(session.seed, "analysis", "directions")
    first, second = (landscape.direction(named, generator) for _ in range(2))
    with torch.no_grad():
        for (_, p), a, b in zip(named, first, second, strict=True):
            p.add_(0.3 * a - 0.3 * b)
    expected = evaluate(session, session.data.validation).loss
    assert numbers["losses"][2][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_only_what_was_trained_moves(run: Run) -> None:
    names = [name for name, _ in landscape.parameters(restore(run))]
    assert any(name.startswith("backbone.") for name in names)
    assert not any(name.startswith(("mixer.", "source_predictor.")) for name in names)


# --- maps ---


def test_votes_by_brute_force() -> None:
    random = np.random.default_rng(0)
    classes = np.arange(40) % 2
    x = random.normal(size=(40, 3)) + 1.5 * classes[:, None]
    right = 0
    for i in range(40):
        far = np.linalg.norm(x - x[i], axis=1)
        far[i] = np.inf
        near = np.argsort(far)[: maps.NEIGHBOURS]
        right += int(np.bincount(classes[near]).argmax() == classes[i])
    assert maps.votes(x, classes) == right / 40
    assert 0.5 < right / 40 < 1
    assert maps.votes(x[:5], classes[:5]) is None


def test_a_map_is_the_same_every_time_and_keeps_groups_apart() -> None:
    random = np.random.default_rng(0)
    x = np.concatenate([random.normal(size=(20, 8)), random.normal(size=(20, 8)) + 20])
    first, second = maps.tsne(x, seed=3), maps.tsne(x, seed=3)
    assert np.array_equal(first, second)
    own = np.linalg.norm(first[:20] - first[:20].mean(axis=0), axis=1).max()
    assert np.linalg.norm(first[:20].mean(axis=0) - first[20:].mean(axis=0)) > own


# --- patches ---


@pytest.mark.slow
def test_epochs_are_the_kept_probes(run: Run) -> None:
    samples: dict[str, Any] = kept_samples(run)
    numbers = patches.over_epochs(samples)
    assert numbers is not None
    assert numbers["epochs"] == [1, 2]
    for probe, k, origin in zip(samples["probes"], numbers["k"], numbers["origin"], strict=True):
        assert probe["k"] == k
        assert probe["origin"].tolist() == origin
    assert patches.over_epochs({**samples, "probes": []}) is None


@pytest.mark.slow
def test_random_tokens_are_k_different_ones(restored: OpenedRun) -> None:
    numbers = patches.over_counts(restored, Clouds(restored, samples=8).most())
    assert numbers is not None
    for k, drawn in zip(numbers["k"], numbers["random"], strict=True):
        for row in drawn:
            assert len(set(row)) == len(row) == k
            assert max(row) < numbers["source_tokens"]


def test_grounds_follow_the_samples() -> None:
    facts = {"grid": [2, 3], "backbone": {"patch": 4}}
    assert of_target(np.zeros((1, 8, 12)), 6, facts, {}).image is not None
    assert of_target(np.zeros((2, 50)), 6, facts, {}).curve is not None
    assert of_target(np.zeros(9), 6, facts, {}).grid == (1, 6)
    picture = of_source(np.zeros((3, 8, 12)), 6, facts)
    assert picture.grid == (2, 3)
    assert picture.image is not None
    assert of_source(np.zeros(32), 32, facts).grid == (1, 32)
    assert of_source(None, 9, facts).grid == (1, 9)
