"""Scores of sources against second implementations: evidence, definitions, exact transport."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
from scipy import optimize, stats
from sklearn.linear_model import BayesianRidge

from xmodal_analysis import rank, scores


def _data(n: int = 60, d: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = np.arange(n) % 3
    means = random.normal(size=(3, d))
    return means[y] + random.normal(size=(n, d)), y


# --- LogME ---


def test_log_evidence_is_the_gaussian_it_stands_for() -> None:
    """y ~ N(0, I/β + F Fᵀ/α): the same number from the marginal's own density."""
    f, y = _data()
    y = y.astype(float)
    cov = np.eye(len(y)) / 2.5 + f @ f.T / 0.7
    expected = stats.multivariate_normal(np.zeros(len(y)), cov).logpdf(y)
    assert scores.log_evidence(f, y, 0.7, 2.5) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", [(60, 5), (20, 30)])
def test_log_me_is_the_maximal_evidence(shape: tuple[int, int]) -> None:
    f, y = _data(*shape)

    def best(target: np.ndarray) -> float:
        def negative(logs: np.ndarray) -> float:
            return -scores.log_evidence(f, target, *np.exp(logs)) / len(target)

        starts = [(a, b) for a in (-2.0, 2.0) for b in (-1.0, 2.0)]
        found = [optimize.minimize(negative, s, method="Nelder-Mead", tol=1e-10) for s in starts]
        return -min(one.fun for one in found)

    expected = np.mean([best((y == c).astype(float)) for c in range(3)])
    assert scores.log_me(f, y) == pytest.approx(expected, abs=1e-5)


def test_log_me_is_the_evidence_of_scikit_learn() -> None:
    f, _ = _data(80, 6, seed=4)
    y = f @ np.arange(6.0) + np.random.default_rng(1).normal(size=80)
    flat = {"alpha_1": 0.0, "alpha_2": 0.0, "lambda_1": 0.0, "lambda_2": 0.0}
    model = BayesianRidge(
        fit_intercept=False, compute_score=True, tol=1e-12, max_iter=2000, **flat
    ).fit(f, y)
    assert scores.log_me(f, y) == pytest.approx(model.scores_[-1] / 80, rel=1e-6)


def test_log_me_prefers_features_that_tell_classes_apart() -> None:
    f, y = _data()
    noise = np.random.default_rng(9).normal(size=f.shape)
    assert scores.log_me(f, y) > scores.log_me(noise, y)


def test_log_me_of_features_that_say_everything_or_nothing_is_finite() -> None:
    y = np.arange(30) % 2
    assert math.isfinite(scores.log_me(np.eye(2)[y], y))
    assert math.isfinite(scores.log_me(np.zeros((30, 4)), y))


# --- H-score ---


def test_h_score_by_definition() -> None:
    f, y = _data()
    expected_given_class = np.stack([f[y == c].mean(axis=0) for c in y])
    cov, between = np.cov(f.T, bias=True), np.cov(expected_given_class.T, bias=True)
    by_hand = np.trace(np.linalg.inv(cov) @ between)
    assert scores.h_score(f, y, shrinkage=0.0) == pytest.approx(by_hand, rel=1e-9)
    s = 0.3
    shrunk = (1 - s) * cov + s * np.trace(cov) / 5 * np.eye(5)
    by_hand = np.trace(np.linalg.inv(shrunk) @ ((1 - s) * between))
    assert scores.h_score(f, y, shrinkage=s) == pytest.approx(by_hand, rel=1e-9)


def test_h_score_of_more_features_than_samples_is_not_perfect() -> None:
    """Unregularised it is C − 1 for any features; shrunk it is not."""
    random = np.random.default_rng(0)
    noise, y = random.normal(size=(30, 100)), np.arange(30) % 3
    assert scores.h_score(noise, y, shrinkage=0.0) == pytest.approx(2, abs=1e-6)
    good = noise.copy()
    good[:, 0] += 8 * y
    assert scores.h_score(noise, y) < 1 < scores.h_score(good, y)


# --- GBC ---


def test_gbc_by_definition_in_one_dimension() -> None:
    x = np.array([0.0, 2.0, 5.0, 9.0, -1.0, -4.0])
    y = np.array([0, 0, 1, 1, 2, 2])
    total = 0.0
    for i in range(3):
        for j in range(3):
            if i == j:
                continue
            a, b = x[y == i], x[y == j]
            # The overlap of two normal densities, integrated.
            t = np.linspace(-60, 60, 400_001)
            p = np.sqrt(stats.norm.pdf(t, a.mean(), a.std()) * stats.norm.pdf(t, b.mean(), b.std()))
            total += float(np.trapezoid(p, t))
    assert scores.gbc(x[:, None], y) == pytest.approx(-total, rel=1e-4)


def test_gbc_of_equal_and_of_distant_classes() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(20, 4))
    y = np.repeat([0, 1], 20)
    assert scores.gbc(np.concatenate([rows, rows]), y) == pytest.approx(-2)
    assert scores.gbc(np.concatenate([rows, rows + 1000]), y) == pytest.approx(0, abs=1e-9)
    wide = random.normal(size=(40, 200))
    assert -2 <= scores.gbc(wide, y) <= 0


# --- s-OTDD ---


def test_one_dimensional_transport_is_pots() -> None:
    random = np.random.default_rng(0)
    for n, m in ((7, 7), (6, 9), (1, 4)):
        a, b = random.normal(size=n), random.normal(size=m) + 1
        assert scores.wasserstein_1d(a, b) == pytest.approx(ot.emd2_1d(a, b), rel=1e-9)


def test_sliced_otdd_of_equal_sets_is_zero() -> None:
    x, y = _data()
    order = np.random.default_rng(3).permutation(len(x))
    renamed = np.array([2, 0, 1])[y]
    assert scores.sliced_otdd(x, y, x[order], renamed[order], 50) == pytest.approx(0, abs=1e-7)


def test_sliced_otdd_is_symmetric_and_in_units_of_the_features() -> None:
    x, y = _data(seed=0)
    z, w = _data(45, seed=1)
    there = scores.sliced_otdd(x, y, z, w, 100)
    assert scores.sliced_otdd(z, w, x, y, 100) == pytest.approx(there, rel=1e-9)
    assert scores.sliced_otdd(10 * x + 3, y, 10 * z + 3, w, 100) == pytest.approx(10 * there)
    assert scores.sliced_otdd(x, y, z, w, 100, seed=0) == there


def test_sliced_otdd_sees_labels() -> None:
    """The same points, other labels: only the classes differ."""
    random = np.random.default_rng(0)
    x = np.concatenate([random.normal(size=(30, 3)) - 4, random.normal(size=(30, 3)) + 4])
    apart, mixed = np.repeat([0, 1], 30), np.arange(60) % 2
    assert scores.sliced_otdd(x, apart, x, mixed, 200) > 0.1


def _exact_otdd(x: np.ndarray, y: np.ndarray, z: np.ndarray, w: np.ndarray) -> float:
    """OTDD with exact inner and outer transport, by POT."""

    def between(a: np.ndarray, b: np.ndarray) -> float:
        cost = ot.dist(a, b)
        return float(ot.emd2(np.full(len(a), 1 / len(a)), np.full(len(b), 1 / len(b)), cost))

    label = np.array([[between(x[y == i], z[w == j]) for j in np.unique(w)] for i in np.unique(y)])
    cost = ot.dist(x, z) + label[y][:, w]
    return float(ot.emd2(np.full(len(x), 1 / len(x)), np.full(len(z), 1 / len(z)), cost))


def test_sliced_otdd_ranks_as_exact_otdd() -> None:
    x, y = _data(48, 4, seed=0)
    random = np.random.default_rng(7)
    exact, sliced = [], []
    for step in range(8):
        z, w = _data(48, 4, seed=20 + step)
        z = z * random.uniform(0.5, 2) + random.normal(size=4) * step * 0.4
        exact.append(_exact_otdd(x, y, z, w))
        sliced.append(scores.sliced_otdd(x, y, z, w, 400))
    assert stats.spearmanr(exact, sliced).statistic > 0.8


# --- the ranking ---


def _three() -> list[rank.Candidate]:
    rows = [("a", 3.0, -1.0, 0.3, 0.30), ("b", 1.0, -0.5, 0.1, 0.10), ("c", 2.0, -0.7, 0.2, 0.25)]
    return [
        rank.Candidate(name, {"bures_otdd": far, "log_me": known, "probe": probe}, final=final)
        for name, far, known, probe, final in rows
    ]


def test_the_best_source_comes_first_whichever_way_a_score_points() -> None:
    found = [*_three(), rank.Candidate("absent", absent="no files")]
    for by in ("bures_otdd", "log_me", "probe"):
        assert [one.source for one in rank.ordered(found, by, "lower")] == ["b", "c", "a", "absent"]
    assert rank.ordered(found, "probe", "higher")[0].source == "a"


def test_correlation_with_the_final_error_by_hand() -> None:
    """All three scores rank b, c, a, as the errors do; a flat score correlates with nothing."""
    found = _three()
    for one in found:
        one.scores["gbc"] = 0.0
    assert rank.correlations(found, "lower") == pytest.approx(
        {"bures_otdd": 1.0, "log_me": 1.0, "probe": 1.0}
    )
    # The same finals as accuracies: now a is best, and distances mislead.
    assert rank.correlations(found, "higher") == pytest.approx(
        {"bures_otdd": -1.0, "log_me": -1.0, "probe": 1.0}
    )
    assert rank.correlations(found[:2], "lower") == {}
