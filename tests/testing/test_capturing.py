"""The check of host inputs notices what a captured step would miss.

Shapes: B samples, N tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from xmodal.batch import Progress, Sample, Selection, Term, Tokens, View
from xmodal.interfaces import Context, Mixer, Selector, Settings
from xmodal.ops import hard_subset
from xmodal.steps import Make, as_input, from_host
from xmodal.testing import TinySelector, check_host_inputs


class Drawing(Selector):
    """Ranks by noise that fades over the training, declared as it should be."""

    def __init__(self, config: Settings, context: Context) -> None:
        super().__init__(config, context)
        self._generator = context.generator

    def forward(self, tokens: Tokens, k: int | Tensor, progress: Progress) -> Selection:
        shape = tokens.x_BND.shape[:2]
        drawn = from_host(lambda at: self.draw(shape, at), progress, tokens.x_BND.device)
        return self.chosen(tokens, k, drawn["noise"] * drawn["size"])

    def draw(self, shape: torch.Size, at: Progress) -> dict[str, Any]:
        noise_BN = torch.rand(shape, generator=self._generator)
        return {"noise": noise_BN, "size": as_input(1 - at.share), "early": at.epoch < 1}

    def chosen(self, tokens: Tokens, k: int | Tensor, noise_BN: Tensor) -> Selection:
        scores_BN = tokens.x_BND.detach().mean(2) + noise_BN
        return Selection(hard_subset(scores_BN, k), scores_BN, k)


class Reads(Drawing):
    def forward(self, tokens: Tokens, k: int | Tensor, progress: Progress) -> Selection:
        drawn = self.draw(tokens.x_BND.shape[:2], progress)
        return self.chosen(tokens, k, drawn["noise"])


class Draws(Drawing):
    def forward(self, tokens: Tokens, k: int | Tensor, progress: Progress) -> Selection:
        noise_BN = torch.rand(tokens.x_BND.shape[:2], generator=self._generator)
        return self.chosen(tokens, k, noise_BN)


class Remembers(Drawing):
    """Hands over a number of its own that was found outside of from_host."""

    calls = 0

    def forward(self, tokens: Tokens, k: int | Tensor, progress: Progress) -> Selection:
        self.calls += 1
        calls = self.calls
        drawn = from_host(lambda at: {"calls": as_input(calls)}, progress, tokens.x_BND.device)
        return self.chosen(tokens, k, torch.zeros(tokens.x_BND.shape[:2]) + drawn["calls"])


class Asks(Drawing):
    def chosen(self, tokens: Tokens, k: int | Tensor, noise_BN: Tensor) -> Selection:
        return super().chosen(tokens, k, noise_BN if noise_BN.sum() > 0 else -noise_BN)


class Counts(Drawing):
    def chosen(self, tokens: Tokens, k: int | Tensor, noise_BN: Tensor) -> Selection:
        scores_BN = tokens.x_BND.detach().mean(2)
        mask_BN = torch.zeros_like(scores_BN)
        return Selection(
            mask_BN.scatter(1, scores_BN.topk(int(k), dim=1).indices, 1.0), scores_BN, k
        )


@pytest.mark.parametrize("good", [Drawing, TinySelector])
def test_what_is_declared_passes(good: type[Selector]) -> None:
    check_host_inputs(good)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (Reads, r"reads progress.share outside of from_host"),
        (Draws, "draws random numbers outside of from_host"),
        (Remembers, "must depend on the progress it is called with"),
        (Asks, "asks the device for numbers"),
        (Counts, "asks the device for numbers"),
    ],
)
def test_what_is_not_declared_is_named(wrong: type[Selector], words: str) -> None:
    with pytest.raises(AssertionError, match=f"{wrong.__name__}.*{words}"):
        check_host_inputs(wrong)


class Fading(Mixer):
    """Scales the target's tokens."""

    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        x_BND = target.tokens.x_BND
        share = from_host(self.make(progress), progress, x_BND.device)["share"]
        tokens = Tokens(x_BND * share, target.tokens.grid)
        return (View(tokens, (Term(target.head, target.y, share),), log={"share": share}),)

    def make(self, progress: Progress) -> Make:
        return lambda at: {"share": as_input(at.share + 1)}


class Outer(Fading):
    """Looks at the progress of the call, not of the step."""

    def make(self, progress: Progress) -> Make:
        return lambda at: {"share": as_input(progress.share + 1)}


def test_mixers_are_checked_too() -> None:
    check_host_inputs(Fading)
    with pytest.raises(AssertionError, match=r"Outer.*reads progress.share outside of from_host"):
        check_host_inputs(Outer)
