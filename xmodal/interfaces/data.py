"""Where samples come from: the task to learn, and a labelled source like the pretraining data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from xmodal.data.augment import Symmetry
from xmodal.data.preparation import RawForm
from xmodal.data.store import Store
from xmodal.errors import DataError
from xmodal.facts import SourceFacts, TaskFacts
from xmodal.interfaces.with_data import WithData

Pair = tuple[Tensor, Tensor]
"""A sample and its label."""


@dataclass
class TaskData:
    """A loaded task. Every dataset maps an index to ``(x, y)``; the engine shuffles.

    ``decode`` turns a predictor's output into the unit of ``y`` (for example, it undoes a
    normalisation); losses get the decoded prediction. ``checksum`` identifies the data.
    ``unlabelled`` holds training samples whose labels must not be used. If the task has no test
    samples, ``test`` is the same object as ``validation``, and results report this. ``images``
    names channels to draw in reports: ``{"title": channel of x}``. ``raw`` describes how samples
    were prepared, so that a trained model can prepare others; None if ``x`` is as in the files.
    Labels that are numbers should come standardised (``raw.label_mean`` and ``raw.label_scale``)
    where ``loss.standardises``; metrics and predictions are in the unit of the user's labels.
    Labels may be float64: losses get them in float32, metrics as they are. ``groups`` holds the
    group (person, record, clip) of each sample of a split, int64 ``[n]``, where samples of one
    group are not independent; metrics that score groups get them (``Metric.group``). A group has
    the same number in all splits.
    ``validation_joins``: whether the published protocol trains on the validation split too.
    ``weights``: how much each sample of a split counts when a model is fitted, float64 ``[n]``, not
    negative; scores count all samples alike. Without an entry for training, all count alike there.
    ``rows`` holds the place of each sample of a split in its file, from 0, int64 ``[n]``.
    ``symmetry``: the group under which samples and labels move together exactly, as the facts say;
    recipes with ``augment: true`` use it.
    """

    train: Dataset[Pair]
    validation: Dataset[Pair]
    test: Dataset[Pair]
    checksum: str
    decode: nn.Module = field(default_factory=nn.Identity)
    notes: tuple[str, ...] = ()
    images: Mapping[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    unlabelled: Dataset[Pair] | None = None
    raw: RawForm | None = None
    groups: Mapping[str, Tensor] = field(default_factory=dict)
    validation_joins: bool = True
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    symmetry: Symmetry | None = None
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    def groups_of(self, dataset: Dataset[Pair]) -> Tensor | None:
        """The groups of the samples of one of the splits; None if it has none."""
        return self._of(self.groups, dataset)

    def weights_of(self, dataset: Dataset[Pair]) -> Tensor | None:
        """The weights of the samples of one of the splits; None if all count alike."""
        return self._of(self.weights, dataset)

    def rows_of(self, dataset: Dataset[Pair]) -> Tensor | None:
        """The places of the samples of one of the splits in its file; None if it has no file."""
        return self._of(self.rows, dataset)

    def _of(self, named: Mapping[str, Tensor], dataset: Dataset[Pair]) -> Tensor | None:
        for name, values_N in named.items():
            if getattr(self, name) is dataset:
                return values_N
        return None

    def in_unit(self, y: Tensor) -> Tensor:
        """Labels or decoded predictions in the unit of the user's labels; float64 if restored."""
        return y if self.raw is None else self.raw.restore_labels(y)


Residual = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of u, u_t, u_x and u_xx at the same points: zero where u solves the equation."""
End = Callable[[Tensor, Tensor], Tensor]
"""Of u and u_x at an end of the interval: zero where the boundary condition holds."""


@dataclass(frozen=True)
class Equation:
    """The partial differential equation of a task with one field u(x, t) on an interval.

    Samples are u at time 0 at ``places_X``, labels u there at time ``end``, all in the units of
    ``residual``, which works elementwise on tensors of any shape. ``domain``: left and right end.
    ``ends``: the conditions there; None if u is periodic.
    """

    residual: Residual
    places_X: NDArray[np.float64]
    domain: tuple[float, float]
    end: float
    ends: tuple[End, End] | None = None


class Task(WithData):
    """A target task. Its ``Config`` must have ``loss`` and ``metric`` fields."""

    kind = "task"

    @classmethod
    @abstractmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The task's facts. Must be fast, but may read the user's own files. Raises DataError."""

    @abstractmethod
    def load(self, seed: int) -> TaskData:
        """Load, split and normalise. A random split depends only on ``seed``."""

    @classmethod
    def few(cls, config: Any, samples: int) -> Any:
        """The settings with which it generates about so many samples, for a dry run.

        The default is ``config`` as it is: data that need not be generated are only read.
        """
        return config

    @classmethod
    def coarse(
        cls, config: Any, x: NDArray[np.float64], points: int, raw: RawForm
    ) -> NDArray[np.float64]:
        """Solve the task's equation numerically on ``points`` points along each side.

        ``x`` holds raw samples ``[n, *raw.laid]``; the result ``[n, K, *shape]`` is in the unit of
        the labels, on their grid (``raw``: for labels that are standardised as the samples are).
        What samples do not tell (a random start) is set to its mean. Only for tasks whose facts say
        ``coarse``. Raises ArithmeticError.
        """
        raise NotImplementedError(f"{cls.__name__} has no equation to solve")

    @classmethod
    def equation(cls, config: Any, points: int) -> Equation:
        """The equation, for samples of so many points. Only for tasks whose facts say so."""
        raise NotImplementedError(f"{cls.__name__} gives no residual of an equation")

    @classmethod
    def decoder(cls, config: Any, state: Mapping[str, Tensor]) -> nn.Module:
        """Rebuild the ``decode`` of a finished run from its state dict, without the data.

        The default supports only the identity, and raises DataError for anything else.
        """
        if state:
            raise DataError(
                f"{cls.__name__} cannot decode predictions without its data: it has no 'decoder'"
            )
        return nn.Identity()


@dataclass(frozen=True)
class SourceRequest:
    """The samples that a run requests from a source.

    ``size``: image height and width, or ``(length,)`` in tokens. ``label_shape``: spatial shape of
    dense labels. ``prepare`` is the backbone's ``prepare_source``. ``tokenize``, for text
    backbones, gives the word pieces of each word.
    """

    size: tuple[int, ...]
    label_shape: tuple[int, ...]
    prepare: Callable[[Any], Tensor]
    tokenize: Callable[[list[str]], list[list[int]]] | None = None


class Source(WithData):
    """A labelled data set of the modality that the backbone was pretrained on.

    Its ``Config`` must have a field ``loss``: the loss of the source head.
    """

    kind = "source"

    @classmethod
    @abstractmethod
    def describe(cls, config: Any) -> SourceFacts:
        """The source's facts; ``target.shape`` stays empty for dense labels."""

    @abstractmethod
    def load(self, request: SourceRequest, seed: int) -> Dataset[Pair]:
        """Load samples that are ready for the model; do all one-time computation here."""
