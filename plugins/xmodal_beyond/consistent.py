"""Consistency training on unlabelled target samples: mixed and plain views should agree.

PaRe's conclusion names unlabelled target data as a direction for further work. The loss is that of
consistency training (Xie et al., "Unsupervised Data Augmentation", NeurIPS 2020), with the views of
another mixer instead of augmentations.

Shapes: B samples, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from xmodal.batch import Progress, Sample, Term, Tokens, View
from xmodal.interfaces import Context, Mixer, Settings
from xmodal.ops import used
from xmodal.settings import Use, default
from xmodal.steps import as_input, from_host

_LOGGED = "consistency weight"


class Consistent(Mixer):
    """Adds consistency between plain and mixed views to a mixer of target and source.

    The views of ``base`` for labelled samples do not change. ``base`` also mixes the unlabelled
    samples; each gives a plain view with prediction p^t and a mixed view with prediction p^mt, both
    by the target head. With sg for stopped gradients and λ for the replaced share,

        L_con = β_con (1 − λ) r(t) [ A(p^mt, sg p^t) + b A(p^t, sg p^mt) ]

    where A is the target loss's ``agreement`` and b is ``back``. If a batch has no unlabelled
    samples, the loss compares the views of the labelled samples instead. If nothing is replaced,
    the two views are equal, and unlabelled samples are not encoded.
    """

    citation = (
        "Xie, Dai, Hovy, Luong, Le: Unsupervised Data Augmentation for Consistency Training "
        "(UDA), NeurIPS 2020"
    )

    class Config(Settings):
        """Settings of the mixer."""

        base: Use[Mixer] = Field(
            default("patch-replace"),
            description="The mixer that makes the views; it must mix target with source samples.",
        )
        beta_consistency: float = Field(
            1.0, ge=0, description="β_con, the weight of the consistency loss."
        )
        back: float = Field(
            0.0,
            ge=0,
            description="b, how much plain predictions also follow mixed ones; 1 is symmetric.",
        )
        ramp_up: float = Field(
            0.0,
            ge=0,
            le=1,
            description="Share of the training during which the weight rises from 0.7 % to 100 % "
            "of beta, as exp(−5(1 − t/ramp_up)²); 0 uses the full weight from the start.",
        )

        @model_validator(mode="after")
        def _fitting_base(self) -> Consistent.Config:
            base = self.base.component
            if not base.needs_source or base.needs_unlabelled:
                raise ValueError(
                    f"base '{self.base.name}' does not mix target with source samples; "
                    "use a mixer that does, such as patch-replace"
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
        """Mix, and compare. Errors of the base mixer pass through."""
        views: tuple[View, ...] = self.base(target, source, progress)
        if self.config.beta_consistency == 0:
            return views
        factor = from_host(self._factor, progress, target.tokens.x_BND.device)["factor"]
        if target.unlabelled is None:
            return self._agreeing(views, target, factor)
        hidden = _as_sample(target.unlabelled, target)
        mixed: tuple[View, ...] = self.base(hidden, source and _as_many(source, hidden), progress)
        # Leave out the base's own loss terms on these views, which would use made-up labels or the
        # source labels a second time. Leave out its log too: it describes the labelled views.
        bare = tuple(View(view.tokens, (), log=view.log) for view in mixed)
        own = self._agreeing(bare, hidden, factor, first=len(views))
        return views + tuple(replace(v, log=_only(v.log, _LOGGED)) for v in own if v.terms)

    def _agreeing(
        self, views: tuple[View, ...], sample: Sample, factor: Tensor, first: int = 0
    ) -> tuple[View, ...]:
        """The views with agreement terms; ``first`` is the number that the first view will have.

        The views do not change if none is mixed, or if a mixed view holds only source tokens.
        """
        own = [view.tokens.x_BND is sample.tokens.x_BND for view in views]
        kept = {
            number: 1 - views[number].log.get("lambda", 0.0)
            for number, plain in enumerate(own)
            if not plain
        }
        if not any(map(used, kept.values())):
            return views
        weights = {number: factor * share for number, share in kept.items()}
        made = list(views) if any(own) else [*views, View(sample.tokens, ())]
        at = own.index(True) if any(own) else len(views)
        for number, weight in weights.items():
            made[number] = _with(made[number], Term(sample.head, None, weight, like=first + at))
            if self.config.back or not made[at].terms:
                # The engine skips a term of weight 0, but the term says why the view is encoded.
                back = self.config.back * weight if self.config.back else 0.0
                made[at] = _with(made[at], Term(sample.head, None, back, like=first + number))
        made[at] = replace(
            made[at], log={**made[at].log, _LOGGED: sum(weights.values(), factor.new_zeros(()))}
        )
        return tuple(made)

    def _factor(self, progress: Progress) -> dict[str, Tensor | float]:
        """β_con r(t), with the ramp-up of Laine & Aila (2017)."""
        ramp, beta = self.config.ramp_up, self.config.beta_consistency
        if progress.share >= ramp:
            return {"factor": as_input(beta)}
        return {"factor": as_input(beta * math.exp(-5 * (1 - progress.share / ramp) ** 2))}


def _with(view: View, term: Term) -> View:
    return replace(view, terms=(*view.terms, term))


def _only(log: Mapping[str, float | Tensor], name: str) -> dict[str, float | Tensor]:
    return {key: value for key, value in log.items() if key == name}


def _as_sample(tokens: Tokens, like: Sample) -> Sample:
    """Unlabelled tokens, with dummy labels that are never used."""
    y = like.y.new_zeros((len(tokens.x_BND), *like.y.shape[1:]))
    return Sample(tokens, y, like.head)


def _as_many(source: Sample, other: Sample) -> Sample:
    """As many source samples as ``other`` has; source samples repeat if there are too few."""
    have, wanted = len(source.tokens.x_BND), len(other.tokens.x_BND)
    if have == wanted:
        return source
    rows = torch.arange(wanted, device=source.tokens.x_BND.device) % have
    tokens = Tokens(source.tokens.x_BND[rows], source.tokens.grid)
    return Sample(tokens, source.y[rows], source.head)
