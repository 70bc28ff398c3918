"""A schedule of replaced tokens by which the mixture moves away from the source at an even pace.

PaRe's Fig. 1b shows that the distance between the intermediate and the source modality falls with
k, but not linearly: if k falls evenly, the mixture moves unevenly. This schedule measures the
distance during training and chooses k so that the distance changes evenly.

Symbols: k tokens to replace, t the finished share of the training in [0, 1), δ(k) the distance.
Shapes: B samples, N tokens, D width, G values of k, P points collected for a measurement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from xmodal.batch import Points, Progress, Tokens
from xmodal.interfaces import Context, Distance, Facts, Scheduler
from xmodal.ops import mean_tokens
from xmodal.settings import TokenCounts, Use, default

_NEVER = -1


class ByDistance(Scheduler, nn.Module):
    """Chooses the k at which δ has covered the share t of its way from δ(start) to δ(stop).

    δ(k) is the distance between the token means of mixed samples and of source samples, measured
    for a few k on training batches and made monotone. Until the first measurement, and if δ does
    not fall with k, k = int(start − (start − stop)·t), as in ``linear``.
    """

    class Config(TokenCounts):
        """Settings of the schedule."""

        start: float = Field(3000, ge=0, description="Count at the start of training.")
        stop: float = Field(0, ge=0, description="Count approached at the end; less than start.")
        per: Literal["epoch", "step"] = Field(
            "epoch",
            description="epoch: t changes between epochs, as in the paper. step: after every "
            "optimizer step.",
        )
        distance: Use[Distance] = Field(
            default("sliced"),
            description="The distance δ between the two sets of token means.",
        )
        power: float = Field(
            0.5,
            gt=0,
            description="The exponent applied to the distance: 0.5 for a squared distance (all "
            "built-in distances except l2), 1 for others.",
        )
        values: int = Field(
            9, ge=2, description="G, the number of evenly spaced k at which to measure."
        )
        points: int = Field(
            64,
            ge=2,
            description="P, the samples needed for a measurement; collected over several batches "
            "if one is too small.",
        )
        every: int | None = Field(
            None, ge=1, description="Steps between measurements; null measures once per epoch."
        )

        def counts(self) -> dict[str, float]:
            """The settings that are counts, by name."""
            return {"start": self.start, "stop": self.stop}

        @model_validator(mode="after")
        def _falls(self) -> ByDistance.Config:
            if self.stop >= self.start:
                raise ValueError(f"stop ({self.stop:g}) must be below start ({self.start:g})")
            return self

    config: Config
    place_3: Tensor
    distance_G: Tensor
    mixed_GPD: Tensor
    source_PD: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self._context = context
        width, count = context.facts.backbone.width, config.values
        # The stage, the step of that stage for the next measurement, and the points collected.
        self.register_buffer("place_3", torch.tensor([_NEVER, 0, 0]))
        self.register_buffer("distance_G", torch.full((count,), float(_NEVER)))
        self.register_buffer("mixed_GPD", torch.zeros(count, config.points, width))
        self.register_buffer("source_PD", torch.zeros(config.points, width))

    @classmethod
    def problems(cls, config: Config, facts: Facts) -> Iterable[str]:
        """Counts that are all larger than the number of tokens."""
        return config.always_all(facts.num_tokens)

    def __call__(self, progress: Progress, num_tokens: int) -> int:
        """k at this point of the training."""
        start, stop = self._range(num_tokens)
        t = progress.done(self.config.per)
        k = start - (start - stop) * t
        distances = self.distance_G.tolist()
        if distances[0] != _NEVER:
            # If a count was measured twice, both entries have the same distance.
            measured = dict(zip(_counts(start, stop, self.config.values), distances, strict=True))
            k = k_at(t, list(measured), list(measured.values()))
        # Rounding must not cost a token, as with a share of 0.29 of 100.
        return math.floor(k + 1e-6)

    @torch.no_grad()
    def observe(
        self, mix: Callable[[int], Tokens], target: Tokens, source: Tokens, progress: Progress
    ) -> None:
        """If a measurement is due, collect points, and measure once there are enough."""
        stage, due, filled = self.place_3.tolist()
        step = progress.epoch * progress.steps + progress.step
        if stage != progress.stage:
            due, filled = step, 0
        if step < due:
            return
        start, stop = self._range(min(target.x_BND.shape[1], source.x_BND.shape[1]))
        counts = _counts(start, stop, self.config.values)
        mixed = {k: mean_tokens(mix(k).x_BND) for k in dict.fromkeys(counts)}
        new = min(self.config.points - filled, len(target.x_BND))
        for row, k in enumerate(counts):
            self.mixed_GPD[row, filled : filled + new] = mixed[k][:new]
        self.source_PD[filled : filled + new] = mean_tokens(source.x_BND)[:new]
        filled += new
        if filled == self.config.points:
            self._measure(counts)
            every = self.config.every
            due = step + every if every else (progress.epoch + 1) * progress.steps
            filled = 0
        self.place_3.copy_(torch.tensor([progress.stage, due, filled]))

    def _measure(self, counts: Sequence[int]) -> None:
        """Set the monotone distances from the collected points."""
        distance = self.config.distance.build(self._context)
        distance.fit(Points(self.source_PD))
        values = [float(distance(Points(x_PD))) for x_PD in self.mixed_GPD]
        if not all(map(math.isfinite, values)):
            self._context.note("by-distance: a distance is not finite; the schedule is unchanged")
            return
        # Estimates of a squared distance can be slightly below 0 if the true distance is 0.
        values = [max(0.0, value) ** self.config.power for value in values]
        falling = monotone(counts, values)
        if falling[-1] <= falling[0]:
            self._context.note(
                "by-distance: the distance to the source does not fall with k; k is linear"
            )
        self.distance_G.copy_(torch.as_tensor(falling))

    def _range(self, num_tokens: int) -> tuple[float, float]:
        """Start and stop in tokens, at most N."""
        config, note = self.config, self._context.note
        start = config.in_tokens(config.start, num_tokens, note)
        return start, config.in_tokens(config.stop, num_tokens)


def monotone(counts: Sequence[int], distances: Sequence[float]) -> np.ndarray:
    """The least-squares fit to the distances that never rises with k (isotonic regression)."""
    from sklearn.isotonic import IsotonicRegression

    fit = IsotonicRegression(increasing=False)
    fitted: np.ndarray = fit.fit_transform(np.asarray(counts, float), np.asarray(distances, float))
    return fitted


def _counts(start: float, stop: float, values: int) -> list[int]:
    """The numbers of tokens at which to measure distances; small grids repeat some."""
    return [round(k) for k in np.linspace(start, stop, values)]


def k_at(t: float, counts: Sequence[float], distances: Sequence[float]) -> float:
    """The largest k at which the distance has covered the share ``t`` of its way.

    ``counts`` falls and ``distances`` never falls; between the counts, distances are interpolated
    linearly. The way leads from the first to the last distance. If all distances are equal, k falls
    linearly.
    """
    first, last = distances[0], distances[-1]
    if last <= first:
        return float(counts[0] + (counts[-1] - counts[0]) * t)
    wanted = first + (last - first) * t
    after = next(i for i, distance in enumerate(distances) if distance >= wanted)
    if after == 0:
        return float(counts[0])
    before = after - 1
    part = (wanted - distances[before]) / (distances[after] - distances[before])
    return float(counts[before] + (counts[after] - counts[before]) * part)
