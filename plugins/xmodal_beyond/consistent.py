"""Unlabelled target samples learn from agreement: mixed or plain, a sample is the same sample.

PaRe's conclusion names unlabelled data of the target as a direction for further work. The loss is
that of consistency training (Xie et al., "Unsupervised Data Augmentation", NeurIPS 2020), with the
mixing of another mixer in the place of augmentations.

Shapes: B samples, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field, model_validator

from xmodal.batch import Progress, Sample, Term, Tokens, View
from xmodal.interfaces import Context, Mixer, Settings
from xmodal.settings import Use, default

_LOGGED = "consistency weight"


class Consistent(Mixer):
    """Adds consistency between plain and mixed views to a mixer of target and source.

    The views of ``base`` for labelled samples stay as they are. Unlabelled samples are mixed by
    ``base`` as well; each gives a plain and a mixed view, and with the head h^t, stopped gradients
    sg and λ the replaced share,

        L_con = β_con (1 − λ) r(t) [ A(p^mt, sg p^t) + b A(p^t, sg p^mt) ]

    where A is the target loss's ``agreement`` and b is ``back``. Where a batch has no unlabelled
    samples, the views of the labelled ones must agree instead. Where nothing is replaced there is
    nothing to agree on, and unlabelled samples are not encoded.
    """

    citation = (
        "Xie, Dai, Hovy, Luong, Le: Unsupervised Data Augmentation for Consistency Training "
        "(UDA), NeurIPS 2020"
    )

    class Config(Settings):
        """Settings of the mixer."""

        base: Use[Mixer] = Field(
            default("patch-replace"),
            description="The mixer that makes the views; one of target and source samples.",
        )
        beta_consistency: float = Field(
            1.0, ge=0, description="β_con, the weight of the consistency loss."
        )
        back: float = Field(
            0.0,
            ge=0,
            description="b, how much plain predictions also follow the mixed ones; 1 is symmetric.",
        )
        ramp_up: float = Field(
            0.0,
            ge=0,
            le=1,
            description="Share of the training in which the weight rises from 0.7 % to all of it, "
            "as exp(−5(1 − t/ramp_up)²); 0 for all of it at once.",
        )

        @model_validator(mode="after")
        def _fitting_base(self) -> Consistent.Config:
            base = self.base.component
            if not base.needs_source or base.needs_unlabelled:
                raise ValueError(
                    f"base '{self.base.name}' does not mix target with source samples; "
                    "name a mixer that does, such as patch-replace"
                )
            others = [part for part in base.uses if part not in Consistent.uses]
            if others:
                raise ValueError(f"base '{self.base.name}' also needs a {', '.join(others)}")
            return self

    config: Config
    needs_source = True
    needs_unlabelled = True
    uses: ClassVar[tuple[str, ...]] = ("selector", "scheduler")

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.base: Mixer = config.base.build(context)

    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        """Mix, and compare. What the base raises passes through."""
        views: tuple[View, ...] = self.base(target, source, progress)
        factor = self.config.beta_consistency * self._ramp(progress)
        if factor == 0:
            return views
        if target.unlabelled is None:
            return self._agreeing(views, target, factor)
        hidden = _as_sample(target.unlabelled, target)
        mixed: tuple[View, ...] = self.base(hidden, source and _as_many(source, hidden), progress)
        # What the base would learn from the made-up labels, or a second time from the source's,
        # is left out, and so is what it says about its views: that is about the labelled ones.
        bare = tuple(View(view.tokens, (), log=view.log) for view in mixed)
        own = self._agreeing(bare, hidden, factor, first=len(views))
        return views + tuple(replace(v, log=_only(v.log, _LOGGED)) for v in own if v.terms)

    def _agreeing(
        self, views: tuple[View, ...], sample: Sample, factor: float, first: int = 0
    ) -> tuple[View, ...]:
        """The views with terms of agreement; ``first`` is the number the first one will have.

        Unchanged where no view is mixed, or where all that is left in it is the source.
        """
        own = [view.tokens.x_BND is sample.tokens.x_BND for view in views]
        weights = {
            number: factor * (1 - views[number].log.get("lambda", 0.0))
            for number, plain in enumerate(own)
            if not plain
        }
        if not any(weights.values()):
            return views
        made = list(views) if any(own) else [*views, View(sample.tokens, ())]
        at = own.index(True) if any(own) else len(views)
        for number, weight in weights.items():
            made[number] = _with(made[number], Term(sample.head, None, weight, like=first + at))
            back = self.config.back * weight
            if back or not made[at].terms:
                # A term of weight 0 is skipped; it says what the plain view is encoded for.
                made[at] = _with(made[at], Term(sample.head, None, back, like=first + number))
        made[at] = replace(made[at], log={**made[at].log, _LOGGED: sum(weights.values())})
        return tuple(made)

    def _ramp(self, progress: Progress) -> float:
        """r(t), the ramp-up of Laine & Aila (2017)."""
        ramp = self.config.ramp_up
        if progress.share >= ramp:
            return 1.0
        return math.exp(-5 * (1 - progress.share / ramp) ** 2)


def _with(view: View, term: Term) -> View:
    return replace(view, terms=(*view.terms, term))


def _only(log: Mapping[str, float], name: str) -> dict[str, float]:
    return {key: value for key, value in log.items() if key == name}


def _as_sample(tokens: Tokens, like: Sample) -> Sample:
    """Unlabelled tokens with labels that nobody will look at."""
    y = like.y.new_zeros((len(tokens.x_BND), *like.y.shape[1:]))
    return Sample(tokens, y, like.head)


def _as_many(source: Sample, other: Sample) -> Sample:
    """As many source samples as ``other`` has, repeated where there are fewer."""
    have, wanted = len(source.tokens.x_BND), len(other.tokens.x_BND)
    if have == wanted:
        return source
    rows = torch.arange(wanted, device=source.tokens.x_BND.device) % have
    tokens = Tokens(source.tokens.x_BND[rows], source.tokens.grid)
    return Sample(tokens, source.y[rows], source.head)
