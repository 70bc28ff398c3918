"""How many tokens to replace during training: linear, piecewise, exponential, constant, random.

Counts are clipped to the available tokens *before* a formula is applied. A start of 3000 therefore
becomes N on a smaller grid and still falls over the whole training (Algorithm 1 starts from N).
Counts that would all become N are refused; with ``of`` they change in proportion to the grid.

Symbols: N tokens; t the finished share of the training, in [0, 1); k the number to replace.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import mean
from typing import Literal

import torch
from pydantic import Field, model_validator

from xmodal.batch import Progress
from xmodal.interfaces import Context, Facts, Scheduler
from xmodal.settings import TokenCounts
from xmodal_pare import CITATION

_PER = "epoch: k changes between epochs, as in the paper. step: after every optimizer step."


class StartAndStop(TokenCounts):
    """Settings of a line from a start to a stop."""

    start: float = Field(3000, ge=0, description="Count at the start of training.")
    stop: float = Field(0, ge=0, description="Count that the formula approaches at the end.")

    def counts(self) -> dict[str, float]:
        """The settings that are counts, by name."""
        return {"start": self.start, "stop": self.stop}


class Falling(StartAndStop):
    """Settings of a schedule from a start to a stop."""

    per: Literal["epoch", "step"] = Field("epoch", description=_PER)


class _Counting(Scheduler):
    """Turns configured counts into tokens; notes once if a count exceeds the number of tokens."""

    citation = CITATION

    def __init__(self, config: TokenCounts, context: Context) -> None:
        super().__init__(config, context)
        self._note = context.note
        self._noted = False

    @classmethod
    def problems(cls, config: TokenCounts, facts: Facts) -> Iterable[str]:
        """Counts that are all larger than the number of tokens."""
        return config.always_all(facts.num_tokens)

    def _tokens(self, count: float, num_tokens: int) -> float:
        """A configured count in tokens, at most N."""
        tokens: float = self.config.in_tokens(count, num_tokens, self._note_once)
        return tokens

    def _note_once(self, line: str) -> None:
        if not self._noted:
            self._noted = True
            self._note(line)

    def _floor(self, value: float, num_tokens: int) -> int:
        """k = int(value). Scaling must not cost a token, as with a share of 0.29 of 100."""
        config = self.config
        as_given = config.unit == "patches" and config.of in (None, num_tokens)
        return int(value) if as_given else int(value + 1e-9)


class _Line(_Counting):
    """A schedule based on the line from start to stop."""

    def _line(self, t: float, num_tokens: int) -> int:
        start = self._tokens(self.config.start, num_tokens)
        stop = self._tokens(self.config.stop, num_tokens)
        return self._floor(start - (start - stop) * t, num_tokens)


class Linear(_Line):
    """k = int(start − (start − stop)·t), t = epoch/epochs (PaRe, section 3.3 and Algorithm 1).

    As in the paper, t never reaches 1: in the last epoch, k is (start − stop)/epochs above stop.
    """

    class Config(Falling):
        """Settings of the linear schedule."""

    config: Config

    def __call__(self, progress: Progress, num_tokens: int) -> int:
        """k at this point of the training."""
        return self._line(progress.done(self.config.per), num_tokens)


class Exponential(_Counting):
    """k = int(stop + (start − stop)·exp(−rate·t)).

    PaRe's Table 4 has an exponential schedule but not its formula; this formula is our own.
    """

    class Config(Falling):
        """Settings of the exponential schedule."""

        rate: float = Field(5.0, gt=0, description="Decay over the whole training; 5 leaves 0.7 %.")

    def __call__(self, progress: Progress, num_tokens: int) -> int:
        """k at this point of the training."""
        start = self._tokens(self.config.start, num_tokens)
        stop = self._tokens(self.config.stop, num_tokens)
        left = math.exp(-self.config.rate * progress.done(self.config.per))
        return self._floor(stop + (start - stop) * left, num_tokens)


class Piecewise(_Counting):
    """k is constant between milestones: those in ``steps``, or ``pieces`` equal pieces of the line.

    Without ``steps``, k = int(start − (start − stop)·⌊t·pieces⌋/pieces). PaRe's Table 4 has a
    piecewise schedule but not its milestones; these are our own.
    """

    class Config(Falling):
        """Settings of the piecewise schedule."""

        pieces: int = Field(4, ge=1, description="Number of equal pieces from start to stop.")
        steps: tuple[tuple[float, float], ...] | None = Field(
            None,
            description="Milestones [t, count] instead of equal pieces: the count applies from the "
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
                raise ValueError("the t of steps must begin at 0, increase and stay below 1")
            if any(count < 0 for _, count in self.steps):
                raise ValueError("steps must not have negative counts")
            clash = self.model_fields_set & {"start", "stop", "pieces"}
            if clash:
                raise ValueError(f"set either steps or {', '.join(sorted(clash))}, not both")
            return self

    def __call__(self, progress: Progress, num_tokens: int) -> int:
        """k at this point of the training."""
        t, config = progress.done(self.config.per), self.config
        if config.steps is not None:
            count = [count for at, count in config.steps if at <= t][-1]
            return self._floor(self._tokens(count, num_tokens), num_tokens)
        start, stop = self._tokens(config.start, num_tokens), self._tokens(config.stop, num_tokens)
        # Without the small term, rounding would put values such as 0.7·10 into the piece before.
        done = int(t * config.pieces + 1e-9) / config.pieces
        return self._floor(start - (start - stop) * done, num_tokens)


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
        return self._floor(self._tokens(self.config.value, num_tokens), num_tokens)


class LinearMean(_Line):
    """k = the rounded mean of ``linear`` over the epochs of the stage, in every epoch.

    PaRe's "non-gradual" variant with a constant k (Table 4). The paper does not give its value;
    this schedule replaces, up to rounding, as many tokens as the gradual schedule.
    """

    class Config(StartAndStop):
        """Settings of the mean."""

    def __call__(self, progress: Progress, num_tokens: int) -> int:
        """k, the same at every point of the training."""
        epochs = range(progress.epochs)
        return round(mean(self._line(e / progress.epochs, num_tokens) for e in epochs))


class RandomK(_Line):
    """k = the value of ``linear`` in an epoch of the stage that is drawn at random in every call.

    PaRe's "non-gradual" variant, of which section 4.2 says only that "the selection of k is
    random". This schedule draws uniformly from the values of the gradual schedule.
    """

    class Config(StartAndStop):
        """Settings of the random schedule."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self._generator = context.generator

    def __call__(self, progress: Progress, num_tokens: int) -> int:
        """k for this micro-batch."""
        epoch = int(torch.randint(progress.epochs, (1,), generator=self._generator))
        return self._line(epoch / progress.epochs, num_tokens)
