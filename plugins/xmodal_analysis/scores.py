"""Scores that estimate how well a source suits a target: pure functions of features and labels.

All compute in float64. Higher is better for ``log_me``, ``h_score`` and ``gbc``; ``sliced_otdd`` is
a distance.

Shapes: n samples, d features, C classes, m moments, L projections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_TINY, _LEAST = 1e-12, 1e-10
GBC_WIDTH = 64
MOMENTS = 5


def log_evidence(f_ND: Array, y_N: Array, alpha: float, beta: float) -> float:
    """log p(y | F) of a Bayesian linear model with weight precision α and noise precision β.

    You et al., ICML 2021, Eq. 2: n/2 log β + d/2 log α − n/2 log 2π − β/2 |Fm − y|² − α/2 |m|² −
    1/2 log |A|, with A = α I + β FᵀF and m = β A⁻¹ Fᵀ y.
    """
    n, d = f_ND.shape
    a_DD = alpha * np.eye(d) + beta * f_ND.T @ f_ND
    m_D = beta * np.linalg.solve(a_DD, f_ND.T @ y_N)
    misfit = float(((f_ND @ m_D - y_N) ** 2).sum())
    fit = -beta / 2 * misfit - alpha / 2 * float(m_D @ m_D)
    scale = n / 2 * math.log(beta) + d / 2 * math.log(alpha) - n / 2 * math.log(2 * math.pi)
    return float(scale + fit - np.linalg.slogdet(a_DD)[1] / 2)


def log_me(f_ND: Array, y: Array, rounds: int = 200) -> float:
    """LogME: the log evidence per sample, maximised over α and β, averaged over outputs.

    Integer labels ``[n]`` become one 0/1 output per class; real labels ``[n]`` or ``[n, K]`` are
    used directly. The fixed point is You et al., Algorithm 1: γ = Σ βσ²/(α + βσ²), α = γ/|m|²,
    β = (n − γ)/|Fm − y|².
    """
    f_ND = np.asarray(f_ND, dtype=np.float64)
    if np.issubdtype(np.asarray(y).dtype, np.integer):
        outputs = [(y == c).astype(np.float64) for c in np.unique(y)]
    else:
        outputs = list(np.asarray(y, dtype=np.float64).reshape(len(y), -1).T)
    u_NR, s_R, _ = np.linalg.svd(f_ND, full_matrices=False)
    return float(np.mean([_maximal(u_NR, s_R, f_ND.shape[1], y_N, rounds) for y_N in outputs]))


def _maximal(u_NR: Array, s_R: Array, width: int, y_N: Array, rounds: int) -> float:
    """Maximal log evidence per sample of one output, in the basis of F's singular vectors."""
    n, square_R = len(y_N), s_R**2
    z_R = u_NR.T @ y_N
    beyond = max(0.0, float(y_N @ y_N - z_R @ z_R))  # the part of y outside the span of F
    alpha, beta = 1.0, 1.0
    for _ in range(rounds):
        shrunk_R = beta * square_R / (alpha + beta * square_R)
        size, misfit = _fitted(z_R, s_R, shrunk_R, beyond)
        gamma = float(shrunk_R.sum())
        old = alpha, beta
        # Features that explain nothing or everything drive a precision to infinity.
        alpha = min(max(gamma / max(size, _TINY), _LEAST), 1 / _LEAST)
        beta = min(max((n - gamma) / max(misfit, _TINY), _LEAST), 1 / _LEAST)
        if max(abs(alpha / old[0] - 1), abs(beta / old[1] - 1)) < 1e-10:
            break
    size, misfit = _fitted(z_R, s_R, beta * square_R / (alpha + beta * square_R), beyond)
    logdet = float(np.log(alpha + beta * square_R).sum()) + (width - len(s_R)) * math.log(alpha)
    scale = n / 2 * math.log(beta) + width / 2 * math.log(alpha) - n / 2 * math.log(2 * math.pi)
    return (scale - beta / 2 * misfit - alpha / 2 * size - logdet / 2) / n


def _fitted(z_R: Array, s_R: Array, shrunk_R: Array, beyond: float) -> tuple[float, float]:
    """|m|² and |Fm − y|²."""
    m_R = np.divide(shrunk_R * z_R, s_R, out=np.zeros_like(z_R), where=s_R > _TINY)
    return float(m_R @ m_R), float((((1 - shrunk_R) * z_R) ** 2).sum()) + beyond


def h_score(f_ND: Array, y_N: Array, shrinkage: float | None = None) -> float:
    """Regularised H-score: tr(Σ_s⁻¹ (1 − s) Σ_between), Σ_s = (1 − s) Σ + s tr(Σ)/d I.

    Bao et al., ICIP 2019, with the shrinkage of Ibrahim et al., 2022. ``shrinkage`` None takes
    Ledoit-Wolf's; 0 gives the plain score.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    f_ND = np.asarray(f_ND, dtype=np.float64)
    f_ND = f_ND - f_ND.mean(axis=0)
    n, d = f_ND.shape
    s = float(ledoit_wolf_shrinkage(f_ND)) if shrinkage is None else shrinkage
    cov_DD = f_ND.T @ f_ND / n
    cov_DD = (1 - s) * cov_DD + s * np.trace(cov_DD) / d * np.eye(d)
    between_DD = np.zeros((d, d))
    for c in np.unique(y_N):
        rows = f_ND[y_N == c]
        between_DD += len(rows) / n * np.outer(rows.mean(axis=0), rows.mean(axis=0))
    return float(np.trace(np.linalg.pinv(cov_DD, hermitian=True) @ between_DD) * (1 - s))


def gbc(f_ND: Array, y_N: Array, width: int = GBC_WIDTH) -> float:
    """Gaussian Bhattacharyya coefficient: − Σ_{i≠j} exp(−D_B(i, j)) over pairs of classes.

    Pándy et al., CVPR 2022: features in their first ``width`` principal components, each class a
    Gaussian with a diagonal covariance, D_B = ⅛ Σ (μ_i − μ_j)²/v + ½ Σ log(v/√(v_i v_j)),
    v = (v_i + v_j)/2. Classes with one sample are left out.
    """
    f_ND = np.asarray(f_ND, dtype=np.float64)
    f_ND = f_ND - f_ND.mean(axis=0)
    if f_ND.shape[1] > width:
        f_ND = f_ND @ np.linalg.svd(f_ND, full_matrices=False)[2][:width].T
    floor = 1e-6 * float(f_ND.var(axis=0).mean()) + _TINY
    classes = [f_ND[y_N == c] for c in np.unique(y_N) if (y_N == c).sum() > 1]
    means = [rows.mean(axis=0) for rows in classes]
    variances = [rows.var(axis=0) + floor for rows in classes]
    total = 0.0
    for i in range(len(classes)):
        for j in range(len(classes)):
            if i != j:
                total += math.exp(-_bhattacharyya(means, variances, i, j))
    return -total


def _bhattacharyya(means: Sequence[Array], variances: Sequence[Array], i: int, j: int) -> float:
    v = (variances[i] + variances[j]) / 2
    apart = ((means[i] - means[j]) ** 2 / v).sum() / 8
    spread = np.log(v / np.sqrt(variances[i] * variances[j])).sum() / 2
    return float(apart + spread)


def sliced_otdd(
    x_ND: Array,
    y_N: Array,
    z_MD: Array,
    w_M: Array,
    projections: int = 500,
    moments: int = MOMENTS,
    seed: int = 0,
) -> float:
    """s-OTDD of two labelled sets (Nguyen et al., ICML 2025), of order 2, in units of the features.

    A sample x and its class become one number, ψ_0 ⟨θ, x⟩ + Σ_i ψ_i E[⟨θ, x'⟩^λ_i / λ_i!], with the
    mean over the x' of the class. θ is uniform on the sphere in d dimensions, ψ on the sphere in
    m + 1 dimensions, and λ_i is a zero-truncated Poisson number of rate i. The square of the result
    is the mean of 1-D W₂² over projections. Written from the published description. Both sets are
    first centred and scaled together; otherwise high moments overflow.
    """
    x_ND, z_MD = np.asarray(x_ND, dtype=np.float64), np.asarray(z_MD, dtype=np.float64)
    joined = np.concatenate([x_ND, z_MD])
    centre, d = joined.mean(axis=0), joined.shape[1]
    # After scaling, a projection has variance 1 on average.
    unit = math.sqrt(float(((joined - centre) ** 2).sum(axis=1).mean()) / d) or 1.0
    x_ND, z_MD = (x_ND - centre) / unit, (z_MD - centre) / unit
    random = np.random.default_rng(seed)
    total = 0.0
    for _ in range(projections):
        theta_D: Array = random.normal(size=(d,))
        theta_D /= np.linalg.norm(theta_D)
        psi: Array = random.normal(size=(moments + 1,))
        psi /= np.linalg.norm(psi)
        lambdas = [_truncated_poisson(random, rate) for rate in range(1, moments + 1)]
        first = _labelled(x_ND @ theta_D, y_N, psi, lambdas)
        second = _labelled(z_MD @ theta_D, w_M, psi, lambdas)
        total += wasserstein_1d(first, second)
    return unit * math.sqrt(total / projections)


def _truncated_poisson(random: np.random.Generator, rate: float) -> int:
    while True:
        value = int(random.poisson(rate))
        if value:
            return value


def _labelled(t_N: Array, y_N: Array, psi: Array, lambdas: Sequence[int]) -> Array:
    """The projected samples, plus the projected moments of their classes."""
    out_N = psi[0] * t_N
    _, place_N = np.unique(y_N, return_inverse=True)
    counts = np.bincount(place_N)
    for weight, power in zip(psi[1:], lambdas, strict=True):
        raised = np.bincount(place_N, t_N**power) / counts / math.factorial(power)
        out_N = out_N + weight * raised[place_N]
    return np.asarray(out_N)


def wasserstein_1d(a_N: Array, b_M: Array) -> float:
    """W₂² of two sets of numbers; exact even if their sizes differ."""
    a_N, b_M = np.sort(a_N), np.sort(b_M)
    n, m = len(a_N), len(b_M)
    # Both quantile functions are constant between these levels.
    levels = np.unique(np.concatenate([np.arange(n + 1) / n, np.arange(m + 1) / m]))
    middle, width = (levels[1:] + levels[:-1]) / 2, np.diff(levels)
    i = np.minimum((middle * n).astype(int), n - 1)
    j = np.minimum((middle * m).astype(int), m - 1)
    return float((width * (a_N[i] - b_M[j]) ** 2).sum())
