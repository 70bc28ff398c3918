"""Fine-tuning on what a cheap answer leaves: predictor ``residual`` and stage ``fit-cheap``.

The prediction is the cheap answer's plus that of a head whose last layer starts at 0. So the model
begins as the cheap answer, and that is its first epoch: one that can be chosen as the best.

Shapes: B and n samples, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from xmodal import randomness
from xmodal.batch import Tokens
from xmodal.data import loader, splits
from xmodal.data.augment import in_pass
from xmodal.errors import DataError, UsageError
from xmodal.interfaces import (
    Context,
    Facts,
    FitData,
    FittedPredictor,
    Predictor,
    Session,
    Settings,
    Use,
    default,
    too_large,
)
from xmodal_basics.fit import BATCH, WithoutSteps, gathered, spread
from xmodal_basics.forest import Forest
from xmodal_basics.local_linear import LocalLinear
from xmodal_basics.predictors import feature_grid
from xmodal_basics.series_features import series_in
from xmodal_basics.sklearn_baseline import Sklearn


class ResidualPredictor(Predictor):
    """A head on the features, whose output is added to that of a cheap answer to the raw sample.

    Let c be the cheap answer's output and h the head's. Numbers and fields: c + h. Classes:
    log((1 − s) p + s/K) + h with p = softmax(c); labels: logit((1 − s) p + s/2) + h with p =
    sigmoid(c); s is ``smoothing``. It keeps the order of probabilities, and bounds what h has to
    overcome where the cheap answer is sure and wrong.

    A training sample gets the output of a cheap model that was fitted to the other folds; otherwise
    its error would be far smaller in training than on new samples. Validation and test samples get
    that of the model that was fitted to all training samples.
    """

    reads_samples = True
    citation = "Friedman: Greedy function approximation, Annals of Statistics 29 (2001)"

    class Config(Settings):
        """Settings of ``residual``."""

        cheap: Use[Predictor] | None = Field(
            None,
            description="The cheap answer: a predictor that is fitted, such as forest or sklearn. "
            "null: forest for series, local-linear for maps too large for ridge, else sklearn.",
        )
        head: Use[Predictor] = Field(
            default("auto"), description="The head on the features; its last layer starts at 0."
        )
        folds: int = Field(
            5, ge=2, description="Parts of the training samples, each predicted by a cheap model "
            "that has not seen it. Groups stay whole."
        )  # fmt: skip
        smoothing: float = Field(
            0.01,
            gt=0,
            lt=1,
            description="s: how much of the cheap answer's probabilities is even over the classes.",
        )

    config: Config
    held: Tensor
    """Outputs of the cheap answer for the training samples, out of fold, in order; or empty."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.output_kind = (context.output or context.facts.task.target).kind
        self.grid, self.width = feature_grid(context.facts), context.facts.backbone.feature_width
        use: Use[Any] = config.cheap or cheap_for(context.facts)
        # The cheap answer comes first: by itself it would draw the same numbers.
        self.cheap: FittedPredictor = use.build(context)
        self.head = config.head.build(context)
        _zero_last(self.head)
        quiet = replace(context, note=lambda line: None)
        # Not registered: they are needed in training alone.
        self.others: Sequence[FittedPredictor] = tuple(
            use.build(quiet) for _ in range(config.folds)
        )
        self.fold_N: Tensor | None = None
        self.register_buffer("held", torch.empty(0), persistent=False)
        self.note = context.note

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """Those of the cheap answer and of the head."""
        target = facts.task.target
        cheap = config.cheap or cheap_for(facts)
        named: dict[str, Use[Any]] = {"cheap": cheap, "head": config.head}
        for name, use in named.items():
            if not use.component.supports(target):
                yield f"{name} '{use.name}' cannot predict {target.kind} labels"
            yield from (f"{name}: {line}" for line in use.component.problems(use.config, facts))
        if not issubclass(cheap.component, FittedPredictor):
            yield f"cheap '{cheap.name}' trains by steps; name a predictor that is fitted at once"
        elif cheap.component.reads_features:
            yield f"cheap '{cheap.name}' reads features of a backbone, not samples; name another"
        elif facts.task.weighted and not cheap.component.weighs:
            yield f"cheap '{cheap.name}' cannot weigh samples; leave task.weight out"
        elif cheap.component.keeps_predictions:
            yield f"cheap '{cheap.name}' keeps predictions instead of a model; name another one"
        if config.head.component.reads_samples or issubclass(
            config.head.component, FittedPredictor
        ):
            yield f"head '{config.head.name}' is none on features that is trained by steps"
        yield from too_large(facts, bytes_per_number=4)

    @classmethod
    def missing(cls, config: Any, store: Any) -> Iterable[str]:
        """What the cheap answer needs."""
        return config.cheap.component.missing(config.cheap.config, store) if config.cheap else ()

    @property
    def traceable(self) -> bool:
        """Whether the cheap answer is a graph of torch."""
        return self.cheap.traceable and self.head.traceable

    def forward(self, features: Tokens) -> Tensor:
        """What is added to the cheap answer: ``[B, K]`` or ``[B, K, *shape]``."""
        prediction: Tensor = self.head(features)
        return prediction

    def from_samples(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """The cheap answer to samples; to training samples, out of fold."""
        if index is None:
            self.cheap.check_fitted()
            return self._output(self.cheap, x)
        if len(self.held):
            return self.held[index]
        if self.fold_N is None:
            raise UsageError("predictor 'residual' needs the stage 'fit-cheap' before it trains")
        # Training samples are changed in every pass, and so is the answer to them.
        fold_B = self.fold_N[index.cpu()]
        output: Tensor | None = None
        for fold in sorted(set(fold_B.tolist())):
            own = (fold_B == fold).nonzero()[:, 0].to(x.device)
            part = self._output(self.others[fold], x[own])
            output = part.new_empty(len(x), *part.shape[1:]) if output is None else output
            output[own] = part
        assert output is not None
        return output

    @torch.no_grad()
    def _output(self, cheap: Predictor, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            y = cheap(flat(x.float())).float()
            return smoothed(y, self.output_kind, self.config.smoothing)

    def fit_folds(
        self, data: FitData, count: int, groups_N: Tensor | None, seed: int, changing: bool
    ) -> None:
        """Fit a cheap model for every fold to the samples outside of it, and keep its outputs.

        Rows of ``data`` may hold all samples, then all of them moved, any number of times.
        ``count``: how many samples; ``groups_N`` has an entry for each, or is None. ``changing``:
        training samples change from pass to pass, so the models are kept instead. Raises DataError
        for fewer than two groups.
        """
        strata_N = None
        if self.output_kind == "classification" and groups_N is None:
            strata_N = data.y[:count].numpy()
        units = count if groups_N is None else len(set(groups_N.tolist()))
        if units < 2:
            raise DataError("out-of-fold predictions need training samples of at least two groups")
        folds = min(self.config.folds, units)
        grouped_N = None if groups_N is None else groups_N.numpy()
        parts = splits.in_folds(count, folds, seed, strata_N, grouped_N)
        self.fold_N = torch.empty(count, dtype=torch.int64)
        for fold, part in enumerate(parts):
            self.fold_N[torch.from_numpy(part)] = fold
        fold_R = self.fold_N.repeat(len(data.y) // count)
        outputs: Tensor | None = None
        for fold in range(folds):
            cheap, rest_R = self.others[fold], fold_R != fold
            outside = data.some(rest_R)
            count_outside = int((self.fold_N != fold).sum())
            cheap.fit(at_most(cheap.most_samples, outside, count_outside))
            if changing:
                continue
            own = (self.fold_N == fold).nonzero()[:, 0]
            made = [self._output(cheap, data.x_NF[some]) for some in torch.split(own, BATCH)]
            part_NK = torch.cat(made)
            outputs = part_NK.new_empty(count, *part_NK.shape[1:]) if outputs is None else outputs
            outputs[own] = part_NK
        if outputs is not None:
            self.held = outputs
            self.others = ()


class FitCheap(WithoutSteps):
    """Fits the cheap answer of the predictor ``residual``, and once more without each fold.

    It takes no steps. Its one epoch is scored: the score of the cheap answer, which may be the best
    of the run.
    """

    def begin(self, session: Session) -> None:
        """Fit. Of a model that was restored only what is not kept with it is fitted again."""
        predictor = session.model.predictor
        if not isinstance(predictor, ResidualPredictor):
            raise UsageError("stage 'fit-cheap' is for the predictor 'residual'")
        if predictor.fold_N is not None:
            return
        data = session.data
        fit_data = gathered(session, predictor.cheap, flat, every=True)
        changing = in_pass(data.train, 0) is not data.train
        begun, count = predictor.cheap.fitted, loader.count(data.train)
        with session.interruptible():
            if not begun:
                predictor.cheap.fit(at_most(predictor.cheap.most_samples, fit_data, count))
            seed = randomness.derive(session.seed, "folds of residual") % 2**32
            groups_N = data.groups_of(data.train)
            predictor.fit_folds(fit_data, count, groups_N, seed, changing)
        predictor.to(session.device)
        for other in predictor.others:
            other.to(session.device)
        if not begun:
            _check_zero(predictor, session.device)


def smoothed(y: Tensor, kind: str, share: float) -> Tensor:
    """Log-probabilities ``[B, K]`` or log-odds as those of smoothed probabilities; others as is."""
    if kind == "classification":
        even = math.log(share / y.shape[1])
        kept = y.log_softmax(1) + math.log1p(-share)
        return torch.logaddexp(kept, kept.new_tensor(even))
    if kind == "multi-label":
        # Both sides by themselves: 1 - p would lose the digits of small shares.
        half = y.new_tensor(math.log(share / 2))
        one, none = (
            torch.logaddexp(nn.functional.logsigmoid(side) + math.log1p(-share), half)
            for side in (y, -y)
        )
        return one - none
    return y


def at_most(limit: int | None, data: FitData, count: int) -> FitData:
    """As many of ``count`` samples as a predictor wants, spread evenly, and copies of them."""
    if limit is None:
        return data
    kept = spread(count, limit, len(data.y))
    return data.some(kept)


def flat(x: Tensor) -> Tokens:
    """Whole samples as predictors read them that are fitted: ``[B, 1, F]``."""
    return Tokens(x.flatten(1)[:, None], (1,))


def cheap_for(facts: Facts) -> Use[Any]:
    """The cheap answer by the form of the data."""
    task = facts.task
    dense = task.target.kind == "dense"
    if not dense and task.form != "row" and series_in(task.shape) is not None:
        return Use("forest", Forest, Forest.Config())
    if dense and any(too_large(facts)):
        return Use("local-linear", LocalLinear, LocalLinear.Config())
    return Use("sklearn", Sklearn, Sklearn.Config())


def _zero_last(head: Predictor) -> None:
    """Set the last linear layer to 0."""
    linear = [part for part in head.modules() if isinstance(part, nn.Linear)]
    for parameter in linear[-1].parameters() if linear else ():
        nn.init.zeros_(parameter)


@torch.no_grad()
def _check_zero(predictor: ResidualPredictor, device: torch.device) -> None:
    """Raise UsageError if the head does not start at 0, as one whose end is no linear layer."""
    x_1ND = torch.ones(1, math.prod(predictor.grid), predictor.width, device=device)
    was = predictor.training
    output = predictor.eval()(Tokens(x_1ND, predictor.grid))
    predictor.train(was)
    if bool(output.any()):
        raise UsageError(
            f"head '{predictor.config.head.name}' does not end in a linear layer that can start at "
            "0; set 'head' of the predictor 'residual' to another one"
        )
