"""How many tokens to replace, over the training: linear, piecewise, exponential, constant, random.

Counts are clipped to the tokens there are *before* a formula is applied, so a start of 3000 becomes
N on a smaller grid and still falls over the whole training (Algorithm 1 starts from N).

Symbols: N tokens, t the finished share of the training in [0, 1), k the number to replace.
"""

from __future__ import annotations

import math
from statistics import mean
from typing import Literal

import torch
from pydantic import Field, model_validator

from xmodal.batch import Progress
from xmodal.interfaces import Context, Scheduler
from xmodal.settings import TokenCounts
from xmodal_pare import CITATION

_PER = "epoch: k changes between epochs, as in the paper. step: after every optimizer step."


class Ends(TokenCounts):
    """Settings of a line from a start to a stop."""

    start: float = Field(3000, ge=0, description="Count at the beginning of the training.")
    stop: float = Field(0, ge=0, description="Count that the formula approaches at the end.")

    def counts(self) -> dict[str, float]:
        """The settings that are counts, by name."""
        return {"start": self.start, "stop": self.stop}


class Falling(Ends):
    """Settings of a schedule from a start to a stop."""

    per: Literal["epoch", "step"] = Field("epoch", description=_PER)


class _Counting(Scheduler):
    """Turns configured counts into tokens, noting once where there are fewer tokens."""

    citation = CITATION

    def __init__(self, config: TokenCounts, context: Context) -> None:
        super().__init__(config, context)
        self._note = context.note
        self._noted = False

    def _tokens(self, count: float, num_tokens: int) -> float:
        """A configured count in tokens, at most N."""
        tokens: float = self.config.in_tokens(count, num_tokens, self._note_once)
        return tokens

    def _note_once(self, line: str) -> None:
        if not self._noted:
            self._noted = True
            self._note(line)

    def _floor(self, value: float) -> int:
        """k = int(value). Shares such as 0.29 of 100 must not lose a token to rounding."""
        return int(value + 1e-9) if self.config.unit == "share" else int(value)


class _Line(_Counting):
    """Knows the line that falls from start to stop."""

    def _line(self, t: float, num_tokens: int) -> int:
        start = self._tokens(self.config.start, num_tokens)
        stop = self._tokens(self.config.stop, num_tokens)
        return self._floor(start - (start - stop) * t)


class Linear(_Line):
    """k = int(start − (start − stop)·t), t = epoch/epochs (PaRe, section 3.3 and Algorithm 1).

    As in the paper t never reaches 1: the last epoch is (start − stop)/epochs above the stop.
    """

    class Config(Falling):
        """Settings of the linear schedule."""

    config: Config

    def __call__(self, progress: Progress, num_tokens: int) -> int:
        """k at this point of the training."""
        return self._line(progress.done(self.config.per), num_tokens)


class Exponential(_Counting):
    """k = int(stop + (start − stop)·exp(−rate·t)).

    PaRe's Table 4 compares an exponential schedule without giving its formula; this one is ours.
    """

    class Config(Falling):
        """Settings of the exponential schedule."""

        rate: float = Field(5.0, gt=0, description="Decay over the whole training; 5 leaves 0.7 %.")

    def __call__(self, progress: Progress, num_tokens: int) -> int:
        """k at this point of the training."""
        start = self._tokens(self.config.start, num_tokens)
        stop = self._tokens(self.config.stop, num_tokens)
        left = math.exp(-self.config.rate * progress.done(self.config.per))
        return self._floor(stop + (start - stop) * left)


class Piecewise(_Counting):
    """k is constant between milestones: given ``steps``, or ``pieces`` equal pieces of the line.

    Without ``steps``, k = int(start − (start − stop)·⌊t·pieces⌋/pieces). PaRe's Table 4 compares a
    piecewise schedule without giving its milestones; these are ours.
    """

    class Config(Falling):
        """Settings of the piecewise schedule."""

        pieces: int = Field(4, ge=1, description="Number of equal pieces from start to stop.")
        steps: tuple[tuple[float, float], ...] | None = Field(
            None,
            description="Milestones [t, count] instead of equal pieces: that count from the "
            "finished share t of the training on. The first t must be 0.",
        )

        def counts(self) -> dict[str, float]:
            """The settings that are counts, by name."""
            if self.steps is None:
                return super().counts()
            return {f"steps[{i}]": count for i, (_, count) in enumerate(self.steps)}

        @model_validator(mode="after")
        def _milestones(self) -> Piecewise.Config:
            if self.steps is None:
                return self
            times = [t for t, _ in self.steps]
            if not times or times[0] != 0 or times[-1] >= 1 or times != sorted(set(times)):
                raise ValueError("steps must begin at t = 0 and rise to below 1")
            if any(count < 0 for _, count in self.steps):
                raise ValueError("steps must not have negative counts")
            clash = self.model_fields_set & {"start", "stop", "pieces"}
            if clash:
                raise ValueError(f"give either steps or {', '.join(sorted(clash))}, not both")
            return self

    def __call__(self, progress: Progress, num_tokens: int) -> int:
        """k at this point of the training."""
        t, config = progress.done(self.config.per), self.config
        if config.steps is not None:
            count = [count for at, count in config.steps if at <= t][-1]
            return self._floor(self._tokens(count, num_tokens))
        start, stop = self._tokens(config.start, num_tokens), self._tokens(config.stop, num_tokens)
        # Without the small term, 0.7·10 and its like would count as still in the piece before.
        done = int(t * config.pieces + 1e-9) / config.pieces
        return self._floor(start - (start - stop) * done)


class Constant(_Counting):
    """k = value: PaRe's "non-gradual" variant (Table 4)."""

    class Config(TokenCounts):
        """Settings of the constant schedule."""

        value: float = Field(3000, ge=0, description="Count in every epoch.")

        def counts(self) -> dict[str, float]:
            """The settings that are counts, by name."""
            return {"value": self.value}

    def __call__(self, progress: Progress, num_tokens: int) -> int:
        """k at this point of the training."""
        return self._floor(self._tokens(self.config.value, num_tokens))


class LinearMean(_Line):
    """k = the mean of what ``linear`` gives in the epochs of the stage, rounded; in every epoch.

    PaRe's "non-gradual" variant with a constant k (Table 4), which the paper does not give: this
    one replaces as many tokens as the gradual schedule, but for the rounding.
    """

    class Config(Ends):
        """Settings of the mean."""

    def __call__(self, progress: Progress, num_tokens: int) -> int:
        """k, the same at every point of the training."""
        epochs = range(progress.epochs)
        return round(mean(self._line(e / progress.epochs, num_tokens) for e in epochs))


class RandomK(_Line):
    """k = what ``linear`` gives in an epoch of the stage, drawn uniformly anew in every call.

    PaRe's "non-gradual" variant as its section 4.2 describes it ("the selection of k is random"),
    without a distribution: this one has the values of the gradual schedule in random order.
    """

    class Config(Ends):
        """Settings of the random schedule."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self._generator = context.generator

    def __call__(self, progress: Progress, num_tokens: int) -> int:
        """k for this micro-batch."""
        epoch = int(torch.randint(progress.epochs, (1,), generator=self._generator))
        return self._line(epoch / progress.epochs, num_tokens)
