"""An ensemble of trials: chosen greedily by what it predicts for the validation samples.

Caruana, Niculescu-Mizil, Crew and Ksikes, Ensemble selection from libraries of models, ICML 2004:
sorted initialisation, then the trial that helps most is added, again and again, with replacement.

An ensemble is fitted to the validation samples, so its score there is too good. The score that
counts is cross-fitted: members and weights are chosen without a fifth of the samples (or groups),
and that fifth is predicted with them, five times. Only an ensemble whose cross-fitted score is
better than the score of the best single trial is a candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xmodal.inference.ensemble import as_outputs, shares
from xmodal.search.pooled import Pool
from xmodal.search.trials import Trial

MOST = 8
"""Trials that an ensemble is chosen from: the best ones, of different answers."""
ROUNDS = 12
"""Times that a trial is added."""
FOLDS = 5
LEAST = 50
"""Of fewer validation samples or groups nothing can be learned about weights."""
MOST_NUMBERS = 100_000_000


@dataclass(frozen=True)
class Mixture:
    """An ensemble: ``members`` and weights that add up to 1. ``score`` is cross-fitted.

    ``prediction``: that of each sample by members and weights that it has not chosen.
    """

    members: tuple[tuple[Trial, float], ...]
    score: float
    prediction: Tensor

    @property
    def name(self) -> str:
        """What people call it."""
        parts = [f"{weight:.2g} {trial.answer.name}" for trial, weight in self.members]
        return "ensemble: " + " + ".join(parts)

    @property
    def cheap(self) -> bool:
        """Whether all members are."""
        return all(trial.answer.cheap for trial, _ in self.members)


def greedy(
    shares_CN: Tensor, score: Callable[[Tensor], float], rounds: int = ROUNDS
) -> tuple[int, ...]:
    """How often each of C candidates is in the best ensemble that was met.

    ``shares_CN``: what is averaged, ``[C, N, ...]``, best candidates first. ``score``: lower is
    better. Of equal ensembles the earlier one is kept.
    """
    counts = [0] * len(shares_CN)
    best, found = math.inf, tuple(counts)
    total = torch.zeros_like(shares_CN[0])
    for count in range(1, len(shares_CN) + 1):  # sorted initialisation: the best 1, 2, 3, ...
        total = total + shares_CN[count - 1]
        if (value := score(total / count)) < best:
            best, found = value, tuple(int(c < count) for c in range(len(counts)))
    counts = list(found)
    total = sum((s * c for s, c in zip(shares_CN, counts, strict=True)), torch.zeros(()))
    for _ in range(rounds):
        size = sum(counts) + 1
        values = [score((total + one) / size) for one in shares_CN]
        chosen = int(np.argmin(values))
        counts[chosen] += 1
        total = total + shares_CN[chosen]
        if values[chosen] < best:
            best, found = values[chosen], tuple(counts)
    return found


def mixture(pool: Pool, trials: Sequence[Trial], seed: int) -> Mixture | None:
    """The ensemble of trials, best first; None where none is better than the best of them."""
    candidates: dict[str, Trial] = {}
    for trial in trials:  # of an answer that was trained for longer and longer, the best
        if pool.of(trial) is not None and len(candidates) < MOST:
            candidates.setdefault(trial.answer.name, trial)
    found, best = list(candidates.values()), trials[0].score()
    if len(found) < 2 or best is None or pool.samples.units < LEAST:
        return None
    kind, samples = pool.plan.facts.task.target.kind, pool.samples
    outputs = [own.prediction for own in map(pool.of, found) if own is not None]
    if sum(one.numel() for one in outputs) > MOST_NUMBERS:
        return None
    shares_CN = torch.stack([shares(kind, one) for one in outputs])
    sign = -1.0 if samples.metric.better == "higher" else 1.0

    def weights(units: np.ndarray) -> Tensor:
        def score(mean: Tensor) -> float:
            value = samples.score(as_outputs(kind, mean), units)
            return sign * value if math.isfinite(value) else math.inf

        counts = torch.tensor(greedy(shares_CN, score), dtype=torch.float64)
        return counts / counts.sum()

    part_U = np.random.default_rng(seed).permutation(samples.units) % FOLDS
    mean = torch.empty_like(shares_CN[0])
    for fold in range(FOLDS):
        own = weights(np.flatnonzero(part_U != fold))
        out = torch.from_numpy(
            np.concatenate([samples.members[u] for u in np.flatnonzero(part_U == fold)])
        )
        mean[out] = torch.einsum("c,cn...->n...", own.to(mean.dtype), shares_CN[:, out])
    prediction = as_outputs(kind, mean).to(outputs[0].dtype)
    score = samples.score(prediction)
    if not sign * score < sign * best:
        return None
    final = weights(np.arange(samples.units)).tolist()
    members = [(t, w) for t, w in zip(found, final, strict=True) if w]
    members.sort(key=lambda one: -one[1])
    return Mixture(tuple(members), score, prediction) if len(members) > 1 else None
