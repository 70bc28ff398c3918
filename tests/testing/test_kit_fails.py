"""The contract kit fails on wrong components, each for the reason that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from xmodal.batch import SOURCE, Progress, Sample, Selection, Term, Tokens, View
from xmodal.data.store import Store
from xmodal.interfaces import (
    BackboneFacts,
    Component,
    Context,
    Embedder,
    Facts,
    FitData,
    FittedPredictor,
    Loss,
    Metric,
    Mixer,
    Predictor,
    Scheduler,
    Selector,
    Settings,
    Stage,
    Target,
    TaskFacts,
)
from xmodal.testing import contract
from xmodal.testing.tiny import WIDTH, TinyBackbone, TinyScheduler, TinySelector, tiny_backbone


def fails(component: type[Component], reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        contract.check(component)


def test_the_stand_ins_pass() -> None:
    for component in (TinySelector, TinyScheduler, TinyBackbone):
        contract.check(component)


# --- settings ---


class Lenient(TinySelector):
    class Config(Settings):
        model_config = ConfigDict(extra="allow")


class Reserved(TinySelector):
    class Config(Settings):
        use: str = "x"


class Forgetful(TinySelector):
    class Config(Settings):
        size: int = Field(3, exclude=True)


class Silent(TinySelector):
    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        return [""]


@pytest.mark.parametrize(
    ("component", "reason"),
    [
        (Lenient, "accepts an unknown key"),
        (Reserved, "'use' is a reserved key"),
        (Silent, "problems must give non-empty lines"),
    ],
)
def test_settings(component: type[Component], reason: str) -> None:
    fails(component, reason)


def test_settings_that_are_lost_in_a_dump() -> None:
    with pytest.raises(AssertionError, match="does not survive"):
        contract.check_config(Forgetful, {"size": 4})


# --- selectors ---


def _hard(scores_BN: Tensor, k: int) -> Tensor:
    return torch.zeros_like(scores_BN).scatter(1, scores_BN.topk(k, dim=1).indices, 1.0)


class Threshold(Selector):
    """Ties make it choose too many."""

    def forward(self, tokens: Tokens, k: int, progress: Progress) -> Selection:
        scores_BN = tokens.x_BND.detach().sum(2)
        if not k:
            return Selection(torch.zeros_like(scores_BN), scores_BN, k)
        least_B1 = scores_BN.topk(k, dim=1).values[:, -1:]
        return Selection((scores_BN >= least_B1).float(), scores_BN, k)


class Soft(TinySelector):
    def forward(self, tokens: Tokens, k: int, progress: Progress) -> Selection:
        scores_BN = tokens.x_BND.detach().sum(2)
        return Selection(0.9 * _hard(scores_BN, k), scores_BN, k)


class Boolean(TinySelector):
    def forward(self, tokens: Tokens, k: int, progress: Progress) -> Selection:
        chosen = super().forward(tokens, k, progress)
        return replace(chosen, mask_BN=chosen.mask_BN > 0.5)


class Backwards(TinySelector):
    def forward(self, tokens: Tokens, k: int, progress: Progress) -> Selection:
        chosen = super().forward(tokens, k, progress)
        return replace(chosen, scores_BN=-chosen.scores_BN)


class GlobalNoise(TinySelector):
    def forward(self, tokens: Tokens, k: int, progress: Progress) -> Selection:
        scores_BN = torch.rand(tokens.x_BND.shape[:2])
        return Selection(_hard(scores_BN, k), scores_BN, k)


class BatchCentred(TinySelector):
    def forward(self, tokens: Tokens, k: int, progress: Progress) -> Selection:
        scores_BN = tokens.x_BND.detach().sum(2)
        scores_BN = scores_BN - scores_BN.mean(0)
        return Selection(_hard(scores_BN, k), scores_BN, k)


class InfiniteGradient(TinySelector):
    """The root has no slope at 0."""

    def forward(self, tokens: Tokens, k: int, progress: Progress) -> Selection:
        scores_BN = (tokens.x_BND - tokens.x_BND.detach()).sum(2).abs().sqrt()
        hard_BN = _hard(tokens.x_BND.detach().sum(2), k)
        ranking_BN = tokens.x_BND.detach().sum(2)
        return Selection(hard_BN + scores_BN - scores_BN.detach(), ranking_BN, k)


@pytest.mark.parametrize(
    ("component", "reason"),
    [
        (Threshold, "rows of mask_BN have"),
        (Soft, "must be 0 or 1"),
        (Boolean, "must be floating point"),
        (Backwards, "ranks a token that was left out above"),
        (GlobalNoise, "context.generator alone"),
        (BatchCentred, "depends on the other samples"),
        (InfiniteGradient, "NaN or infinity"),
    ],
)
def test_selectors(component: type[Component], reason: str) -> None:
    fails(component, reason)


# --- schedulers ---


class Fraction(Scheduler):
    def __call__(self, progress: Progress, num_tokens: int) -> int:
        return num_tokens / 2  # type: ignore[return-value]


class TooMany(Scheduler):
    def __call__(self, progress: Progress, num_tokens: int) -> int:
        return 3000


class Counting(Scheduler):
    """Remembers how often it was asked, so a resumed run differs."""

    def __init__(self, config: Settings, context: Context) -> None:
        super().__init__(config, context)
        self.calls = 0

    def __call__(self, progress: Progress, num_tokens: int) -> int:
        self.calls += 1
        return max(0, num_tokens - self.calls)


class GlobalDraw(Scheduler):
    def __call__(self, progress: Progress, num_tokens: int) -> int:
        return int(torch.randint(0, num_tokens + 1, ()))


@pytest.mark.parametrize(
    ("component", "reason"),
    [
        (Fraction, "must give an int, not float"),
        (TooMany, "N=0 gives k=3000"),
        (Counting, "not on earlier calls"),
        (GlobalDraw, "context.generator alone"),
    ],
)
def test_schedulers(component: type[Component], reason: str) -> None:
    fails(component, reason)


# --- mixers ---


class Replace(Mixer):
    """Right: the first k target tokens become the source's."""

    needs_source = True
    uses = ("scheduler",)

    def __init__(self, config: Settings, context: Context) -> None:
        super().__init__(config, context)
        self.scheduler = context.components["scheduler"]
        self.generator = context.generator

    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        assert source is not None
        x_BND, source_BMD = target.tokens.x_BND, source.tokens.x_BND
        k = self.scheduler(progress, min(x_BND.shape[1], source_BMD.shape[1]))
        plain = View(target.tokens, (Term(target.head, target.y, 1.0),))
        if k == 0:
            return (plain,)
        mixed_BND = torch.cat([source_BMD[:, :k], x_BND[:, k:]], dim=1)
        origin_BN = torch.full(x_BND.shape[:2], -1)
        origin_BN[:, :k] = torch.arange(k)
        terms = (Term(source.head, source.y, 1.0),)
        return (plain, View(Tokens(mixed_BND, target.tokens.grid), terms, origin_BN))


class InPlace(Replace):
    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        with torch.no_grad():
            target.tokens.x_BND[:, 0] = 0
        return super().forward(target, source, progress)


class Changed(Replace):
    """Base of mixers that spoil the last view."""

    def spoil(self, view: View, target: Sample, source: Sample) -> View:
        raise NotImplementedError

    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        assert source is not None
        *views, last = super().forward(target, source, progress)
        return (*views, self.spoil(last, target, source))


class Negative(Changed):
    def spoil(self, view: View, target: Sample, source: Sample) -> View:
        return replace(view, terms=(replace(view.terms[0], weight=-0.1),))


class NotFinite(Changed):
    def spoil(self, view: View, target: Sample, source: Sample) -> View:
        return replace(view, terms=(replace(view.terms[0], weight=float("nan")),))


class WrongHead(Changed):
    def spoil(self, view: View, target: Sample, source: Sample) -> View:
        return replace(view, terms=(replace(view.terms[0], head="other"),))


class SwappedLabels(Changed):
    def spoil(self, view: View, target: Sample, source: Sample) -> View:
        return replace(view, terms=(Term(SOURCE, target.y, 1.0),))


class NoTerms(Changed):
    def spoil(self, view: View, target: Sample, source: Sample) -> View:
        return replace(view, terms=())


class WrongOrigin(Changed):
    def spoil(self, view: View, target: Sample, source: Sample) -> View:
        if view.origin_BN is None:
            return view
        return replace(view, origin_BN=view.origin_BN.roll(1, dims=1))


class WrongGrid(Changed):
    def spoil(self, view: View, target: Sample, source: Sample) -> View:
        return replace(view, tokens=Tokens(view.tokens.x_BND, (5, 5)))


class Detached(Changed):
    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        detached = Tokens(target.tokens.x_BND.detach(), target.tokens.grid)
        return Replace.forward(self, replace(target, tokens=detached), source, progress)


class Twice(Replace):
    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        views = super().forward(target, source, progress)
        return (*views, views[0])


class GlobalMix(Changed):
    def spoil(self, view: View, target: Sample, source: Sample) -> View:
        noisy_BND = view.tokens.x_BND + torch.randn(())
        return View(Tokens(noisy_BND, view.tokens.grid), view.terms)


class Weightless(Mixer):
    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        return (View(target.tokens, (Term(target.head, target.y, 0.0),)),)


class Assuming(Mixer):
    """Breaks where the source has fewer tokens than the target."""

    needs_source = True

    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        assert source is not None
        mixed_BND = (target.tokens.x_BND + source.tokens.x_BND) / 2
        return (View(Tokens(mixed_BND, target.tokens.grid), (Term(target.head, target.y, 1.0),)),)


def test_a_right_mixer_passes() -> None:
    contract.check(Replace)


@pytest.mark.parametrize(
    ("component", "reason"),
    [
        (InPlace, "changes its input in place"),
        (Negative, "weight -0.1"),
        (NotFinite, "weight nan"),
        (WrongHead, "head 'other'"),
        (SwappedLabels, "labels of head 'source' are not those"),
        (NoTerms, "has no terms"),
        (WrongOrigin, "does not hold token|names token"),
        (WrongGrid, "must have shape"),
        (Detached, "no gradient reaches the target"),
        (Twice, "hold the same tokens"),
        (GlobalMix, "context.generator alone"),
        (Weightless, "nothing to train on"),
    ],
)
def test_mixers(component: type[Component], reason: str) -> None:
    fails(component, reason)


def test_a_mixer_that_needs_equal_lengths() -> None:
    with pytest.raises(RuntimeError, match="size of tensor"):
        contract.check(Assuming)


# --- embedders, predictors, backbones ---


class Rows(Embedder):
    """Right: one token a value."""

    def __init__(self, config: Settings, context: Context) -> None:
        super().__init__(config, context)
        self.linear = nn.Linear(1, WIDTH)

    @classmethod
    def grid(cls, config: Any, task: TaskFacts, backbone: BackboneFacts) -> tuple[int, ...]:
        if task.form != "row":
            raise ValueError("only rows")
        return task.shape

    def forward(self, x: Tensor) -> Tokens:
        return Tokens(self.linear(x[..., None]), (x.shape[1],))


class OtherGrid(Rows):
    def forward(self, x: Tensor) -> Tokens:
        return Tokens(super().forward(x).x_BND, (2, 3))


class BatchNormed(Rows):
    def forward(self, x: Tensor) -> Tokens:
        return super().forward(x - x.mean(0))


class Unused(Rows):
    def __init__(self, config: Settings, context: Context) -> None:
        super().__init__(config, context)
        self.idle = nn.Parameter(torch.zeros(()))


class Narrow(Rows):
    def forward(self, x: Tensor) -> Tokens:
        tokens = super().forward(x)
        return Tokens(tokens.x_BND[..., :-1], tokens.grid)


class NoReason(Rows):
    @classmethod
    def grid(cls, config: Any, task: TaskFacts, backbone: BackboneFacts) -> tuple[int, ...]:
        raise ValueError


class Stuck(Rows):
    @classmethod
    def grid(cls, config: Any, task: TaskFacts, backbone: BackboneFacts) -> tuple[int, ...]:
        raise ValueError("nothing suits")


class Mean(Predictor):
    """Right, for labels without a shape."""

    def __init__(self, config: Settings, context: Context) -> None:
        super().__init__(config, context)
        assert context.output is not None
        self.linear = nn.Linear(WIDTH, context.output.size)

    @classmethod
    def supports(cls, output: Target) -> bool:
        return output.kind != "dense"

    def forward(self, features: Tokens) -> Tensor:
        prediction: Tensor = self.linear(features.x_BND.mean(1))
        return prediction


class ClaimsDense(Mean):
    @classmethod
    def supports(cls, output: Target) -> bool:
        return True


class Nothing(Mean):
    @classmethod
    def supports(cls, output: Target) -> bool:
        return False


class Frozen(Mean):
    def forward(self, features: Tokens) -> Tensor:
        return super().forward(features).detach() + 0 * features.x_BND.sum().requires_grad_()


class WrongWidth(TinyBackbone):
    @classmethod
    def describe(cls, config: Settings, store: Store) -> BackboneFacts:
        return replace(tiny_backbone(), width=8)

    def __init__(self, config: Settings, context: Context) -> None:
        super().__init__(config, context)
        self.facts = replace(tiny_backbone(), width=8)


class OtherFacts(TinyBackbone):
    @classmethod
    def describe(cls, config: Settings, store: Store) -> BackboneFacts:
        return replace(tiny_backbone(), name="renamed")


class BatchBackbone(TinyBackbone):
    def forward(self, tokens: Tokens) -> Tokens:
        features = super().forward(tokens)
        return Tokens(features.x_BND - features.x_BND.mean(0), features.grid)


class NoisyBackbone(TinyBackbone):
    def forward(self, tokens: Tokens) -> Tokens:
        features = super().forward(tokens)
        return Tokens(features.x_BND + torch.randn(()), features.grid)


class NoNorm(TinyBackbone):
    def embedding_norm(self) -> nn.LayerNorm:
        return None  # type: ignore[return-value]


@pytest.mark.parametrize("component", [Rows, Mean])
def test_right_ones_pass(component: type[Component]) -> None:
    contract.check(component)


@pytest.mark.parametrize(
    ("component", "reason"),
    [
        (OtherGrid, "but grid\\(\\) says"),
        (BatchNormed, "depend on the other samples"),
        (Unused, "no gradient reaches parameter 'idle'"),
        (Narrow, "must have shape"),
        (NoReason, "without a reason"),
        (Stuck, "refuses every task"),
        (ClaimsDense, "the prediction must have shape"),
        (Nothing, "supports none of the labels"),
        (Frozen, "no gradient reaches parameter"),
        (WrongWidth, "must have shape"),
        (OtherFacts, "facts differ from describe"),
        (BatchBackbone, "depend on the other samples"),
        (NoisyBackbone, "differs between two calls"),
        (NoNorm, "embedding_norm"),
    ],
)
def test_embedders_predictors_backbones(component: type[Component], reason: str) -> None:
    fails(component, reason)


# --- predictors that are fitted ---


class Average(FittedPredictor):
    """Right: the mean label, whatever the sample."""

    names = ("mean_K",)
    mean_K: Tensor

    @classmethod
    def supports(cls, output: Target) -> bool:
        return output.kind == "regression"

    @property
    def fitted(self) -> bool:
        return len(self.mean_K) > 0

    def fit(self, data: FitData) -> None:
        self.mean_K = data.y.mean(0)

    def forward(self, features: Tokens) -> Tensor:
        self.check_fitted()
        return self.mean_K.expand(len(features.x_BND), -1)


class Eager(Average):
    def check_fitted(self) -> None:
        return

    def forward(self, features: Tokens) -> Tensor:
        return self.mean_K.expand(len(features.x_BND), 2) if self.fitted else torch.zeros(1, 2)


class Attribute(Average):
    names = ("known",)
    known: Tensor

    @property
    def fitted(self) -> bool:
        return len(self.known) > 0

    def fit(self, data: FitData) -> None:
        self.known, self.mean_K = torch.ones(1), data.y.mean(0)

    def forward(self, features: Tokens) -> Tensor:
        self.check_fitted()
        mean_K = getattr(self, "mean_K", torch.zeros(2))
        return mean_K.expand(len(features.x_BND), -1)  # type: ignore[no-any-return]


class OfTheBatch(Average):
    def forward(self, features: Tokens) -> Tensor:
        return super().forward(features) + features.x_BND.nan_to_num().mean()


class Fickle(Average):
    def fit(self, data: FitData) -> None:
        self.mean_K = data.y.mean(0) + torch.randn(2)


class InPlace(Average):
    def fit(self, data: FitData) -> None:
        super().fit(data)
        data.x_NF.mul_(2)


class Particular(Average):
    @classmethod
    def problems(cls, config: Settings, facts: Facts) -> Iterable[str]:
        yield "no"


def test_a_right_fitted_predictor_passes() -> None:
    contract.check(Average)


@pytest.mark.parametrize(
    ("component", "reason"),
    [
        (Eager, "predicts without having been fitted"),
        (Attribute, "a model that was loaded predicts otherwise"),
        (OfTheBatch, "depends on the other samples"),
        (Fickle, "the same data and seed give another model"),
        (InPlace, "changes its data in place"),
        (Particular, "rules out every form"),
    ],
)
def test_fitted_predictors(component: type[Component], reason: str) -> None:
    fails(component, reason)


# --- losses, metrics, stages ---


class Squares(Loss):
    """Right."""

    @classmethod
    def supports(cls, output: Target) -> bool:
        return output.kind == "regression"

    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction - y).square().flatten(1).mean(1)


class Averaged(Squares):
    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        return super().forward(prediction, y).mean()


class Coupled(Squares):
    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        return super().forward(prediction, y) * len(y)


class Shifted(Squares):
    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        return super().forward(prediction, y) + 0.1


class Upside(Squares):
    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        return -super().forward(prediction, y)


class RootAtZero(Squares):
    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        return super().forward(prediction, y).sqrt()


class Absolute(Metric):
    """Right."""

    def reset(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, prediction: Tensor, y: Tensor) -> None:
        self.total += float((prediction - y).abs().double().sum())
        self.count += y.numel()

    def compute(self) -> float:
        return self.total / self.count

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        return [] if facts.task.target.kind == "regression" else ["only regression"]


class MeanOfBatches(Absolute):
    def update(self, prediction: Tensor, y: Tensor) -> None:
        self.total += float((prediction - y).abs().mean())
        self.count += 1


class LastBatch(Absolute):
    """Depends on the order."""

    def update(self, prediction: Tensor, y: Tensor) -> None:
        weights = torch.linspace(0, 1, len(y))[:, None]
        self.total += float(((prediction - y).abs() * weights).sum())
        self.count += y.numel()


class NeverForgets(Absolute):
    def reset(self) -> None:
        if not hasattr(self, "total"):
            super().reset()


class OfTensor(Absolute):
    def compute(self) -> float:
        return torch.tensor(super().compute())  # type: ignore[return-value]


class Undefined(Absolute):
    def compute(self) -> float:
        return float("nan")


class WrongWay(Absolute):
    better = "higher"


class Timeless(Stage):
    def steps_per_epoch(self, session: Any) -> int:
        return 1

    def optimizer(self, named: Any) -> None:
        return None

    def steps(self, session: Any, progress: Progress) -> Any:
        yield from ()

    def loss(self, session: Any, micro: Any, progress: Progress) -> Any:
        return torch.zeros(()), {}


class BadPatterns(Timeless):
    class Config(Settings):
        epochs: int = 1
        train: str = "embedder.*"


@pytest.mark.parametrize("component", [Squares, Absolute])
def test_right_scores_pass(component: type[Component]) -> None:
    contract.check(component)


@pytest.mark.parametrize(
    ("component", "reason"),
    [
        (Averaged, "must have shape \\[12\\]"),
        (Coupled, "depends on the other samples"),
        (Shifted, "for a perfect prediction, not 0"),
        (Upside, "for perfect, .* for random"),
        (RootAtZero, "gradient at a perfect prediction"),
        (MeanOfBatches, "in batches of 5"),
        (LastBatch, "in (batches of 5|reverse order)"),
        (NeverForgets, "in batches of 5|keeps some state"),
        (OfTensor, "must give a float, not Tensor"),
        (Undefined, "gives nan"),
        (WrongWay, "better is higher"),
        (Timeless, "neither the setting nor the property"),
        (BadPatterns, "train must be a tuple of patterns"),
    ],
)
def test_losses_metrics_stages(component: type[Component], reason: str) -> None:
    fails(component, reason)


def test_a_class_of_another_kind() -> None:
    with pytest.raises(AssertionError, match="must derive from"):
        contract.check_selector(TinyScheduler)  # type: ignore[arg-type]
