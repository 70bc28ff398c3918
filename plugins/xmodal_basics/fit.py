"""The stage ``fit``: fits the predictor once to the whole training split; takes no steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, Subset

from xmodal.batch import Progress, Tokens
from xmodal.data import loader
from xmodal.data.augment import for_fit
from xmodal.errors import UsageError
from xmodal.interfaces import FitData, FittedPredictor, Session, Stage, Target

BATCH = 256


class WithoutSteps(Stage):
    """A stage that takes no steps: ``begin`` does its work, and its one epoch is scored."""

    @classmethod
    def planned_epochs(cls, config: Any) -> int:
        """One epoch: nothing is repeated."""
        return 1

    @property
    def train(self) -> tuple[str, ...]:
        """No patterns: gradients train no parameter."""
        return ()

    def steps_per_epoch(self, session: Session) -> int:
        """None."""
        return 0

    def optimizer(self, named: list[tuple[str, nn.Parameter]]) -> None:
        """None."""

    def steps(self, session: Session, progress: Progress) -> Iterator[Iterable[Any]]:
        """No steps."""
        return iter(())

    def loss(
        self, session: Session, micro: Any, progress: Progress
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """Never called: there are no steps."""
        raise NotImplementedError(f"stage '{type(self).__name__}' takes no steps")


class Fit(WithoutSteps):
    """Fits the predictor once to the features of the whole training split; takes no steps."""

    def begin(self, session: Session) -> None:
        """Collect features and labels, then fit. A model that was restored is not fitted again."""
        predictor = session.model.predictor
        if not isinstance(predictor, FittedPredictor):
            raise UsageError("stage 'fit' needs a predictor that is fitted, such as 'sklearn'")
        if predictor.fitted:
            return
        model = session.model
        fit_data = gathered(session, predictor, lambda x: model.backbone(model.embedder(x)))
        with session.interruptible():
            predictor.fit(fit_data)
        predictor.to(session.device)


def gathered(
    session: Session,
    predictor: FittedPredictor,
    read: Callable[[Tensor], Tokens],
    every: bool = False,
) -> FitData:
    """What a predictor is fitted to: what ``read`` makes of batches of samples, flattened.

    ``every``: all training samples, also where it wants a few.
    """
    data, chooses = session.data, session.evaluation_split()
    train, weight_N = for_fit(data.train), data.weights_of(data.train)
    if weight_N is not None:
        weight_N = weight_N.repeat(loader.count(train) // len(weight_N))
    if predictor.most_samples is not None and not every:
        rows = spread(loader.count(data.train), predictor.most_samples, loader.count(train))
        train = Subset(train, rows.tolist())
        weight_N = None if weight_N is None else weight_N[rows]
    x_NF, y, tokens = _features(session, train, read)
    validation_x_NF, validation_y, others_NF = x_NF[:0], y[:0], x_NF[:0]
    # Training samples would choose the closest fit.
    if predictor.uses_validation and chooses is not data.train:
        validation_x_NF, validation_y, _ = _features(session, chooses, read)
    if predictor.keeps_predictions:
        seen = (data.train, chooses) if predictor.uses_validation else (data.train,)
        splits = (data.validation, data.test)
        others = [split for split in splits if not any(split is one for one in seen)]
        others_NF = torch.cat([x_NF[:0], *(_features(session, one, read)[0] for one in others)])
    return FitData(
        x_NF,
        y,
        validation_x_NF,
        validation_y,
        others_NF,
        data.raw,
        session.model.decode,
        tokens,
        weight_N,
    )


def spread(count: int, most: int, rows: int | None = None) -> Tensor:
    """At most ``most`` places of ``count`` samples, spread evenly: many files are sorted by class.

    ``rows``: all samples, then all of them moved, and so on. As many samples as possible come
    first, then as many copies of all of them as there is room for.
    """
    used = min(most, count)
    copies = 1 if rows is None else min(rows // count, most // used)
    place_S = torch.arange(used) * count // used
    return (place_S + count * torch.arange(copies)[:, None]).flatten()


def label_scale(y: Tensor, kind: str) -> Tensor:
    """By what errors of labels ``[N, ...]`` are divided to count alike, float64 ``[K]``.

    For numbers the standard deviation of the known ones, 1 where they are all the same; for classes
    and labels of 0 and 1 always 1. Give training labels: a few of validation may not vary.
    """
    if kind != "regression":
        return torch.ones(1, dtype=torch.float64)
    y_NK = y.flatten(1).double() if y.ndim > 1 else y[:, None].double()
    scale_K = (y_NK - y_NK.nanmean(0)).square().nanmean(0).sqrt()
    return torch.where(scale_K > 0, scale_K, 1.0)  # NaN, where nothing is known, is not above 0


def squared_error(y_NK: Tensor, data: FitData, output: Target) -> float:
    """The mean squared error of probabilities or numbers on validation; labels count alike."""
    y = data.validation_y
    if output.kind == "classification":
        wanted_NK = functional.one_hot(y.long(), output.size)
        return float((y_NK - wanted_NK).square().sum(1).mean())
    scale_K = label_scale(data.y, output.kind)
    return float(((y_NK - y.view(len(y), -1)) / scale_K).square().nanmean())


def _features(
    session: Session, dataset: Dataset[Any], read: Callable[[Tensor], Tokens]
) -> tuple[Tensor, Tensor, int]:
    """Flattened features and labels of a split, on the CPU; labels as the predictor sees them.

    Last, how many tokens a row of features holds.
    """
    model = session.model
    features, labels = [], []
    model.eval()
    with torch.no_grad():
        for x, y in loader.in_order(dataset, BATCH, session.workers):
            with session.autocast():  # as they are scored
                tokens = read(x.to(session.device))
            features.append(tokens.x_BND.flatten(1).float().cpu())
            labels.append(y)
        return torch.cat(features), encoded(model.decode, torch.cat(labels)), tokens.x_BND.shape[1]


def encoded(decode: nn.Module, y: Tensor) -> Tensor:
    """Labels in the unit that ``decode`` reads, by inverting ``decode``.

    Raises UsageError if ``decode`` is not an elementwise affine map.
    """
    if isinstance(decode, nn.Identity) or not y.is_floating_point():
        return y
    device = next(iter([*decode.buffers(), *decode.parameters()]), y).device
    y_there = y.to(device)
    one = torch.ones_like(y_there[:1])
    offset = decode(torch.zeros_like(one))
    slope = decode(one) - offset
    result = torch.where(slope == 0, 0.0, (y_there - offset) / slope)
    known = ~y_there.isnan() & (slope != 0)
    wrong, size = (decode(result) - y_there)[known].abs(), y_there[known].abs()
    if size.numel() and bool((wrong > 1e-3 * size.amax()).any()):
        raise UsageError("stage 'fit' cannot invert the decoding of this task's labels")
    return result.to(y.device)
