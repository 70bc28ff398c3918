"""Where samples come from: the task to learn, and a labelled source like the pretraining data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from xmodal.data.datasets import DataCard, Preparation, State
from xmodal.data.preparation import RawForm
from xmodal.data.store import Store
from xmodal.errors import DataError
from xmodal.facts import SourceFacts, TaskFacts
from xmodal.interfaces.component import Component, Context
from xmodal.text import size

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
    group are not independent; metrics that score groups get them (``Metric.group``).
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

    def groups_of(self, dataset: Dataset[Pair]) -> Tensor | None:
        """The groups of the samples of one of the splits; None if it has none."""
        for name, groups_N in self.groups.items():
            if getattr(self, name) is dataset:
                return groups_N
        return None

    def in_unit(self, y: Tensor) -> Tensor:
        """Labels or decoded predictions in the unit of the user's labels; float64 if restored."""
        return y if self.raw is None else self.raw.restore_labels(y)


class Task(Component):
    """A target task. Its ``Config`` must have ``loss`` and ``metric`` fields.

    A task whose data are published or generated has a ``card``. Its data then lie in the cache
    (``store.dataset(card.name)``) or at the setting ``path``; ``prepare`` makes them ready.
    """

    kind = "task"

    @classmethod
    def card(cls, config: Any) -> DataCard | None:
        """What is known of the task's data before they are there; None if there is nothing to get.

        The same for every ``path``.
        """
        return None

    @classmethod
    def ready(cls, config: Any, store: Store) -> bool:
        """Whether ``load`` has all that it needs. The default looks for the data set."""
        card = cls.card(config)
        return card is None or bool(_own_path(config)) or store.dataset(card) is not None

    @classmethod
    def state(cls, config: Any, store: Store) -> State:
        """What a user can do with the data now."""
        card = cls.card(config)
        if card is None or cls.ready(config, store):
            return "ready"
        if card.generable:
            return "generable"
        return "fetchable" if card.fetchable else "needs your files"

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Check the fetched files, or generate, and write the data set into the empty ``folder``.

        Streams: memory does not grow with the data. Returns plain values to keep with the data,
        for notes of later runs (``{"samples": 1000, "solver": 1}``). Raises DataError.
        """
        raise DataError(f"{cls.__name__} has no data to prepare")

    @classmethod
    def missing(cls, config: Any, store: Store) -> Iterable[str]:
        """How to get the data, if they are missing."""
        card = cls.card(config)
        if card is None or cls.ready(config, store):
            return ()
        return (how_to_get(card, store),)

    @classmethod
    @abstractmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The task's facts. Must be fast, but may read the user's own files. Raises DataError."""

    @abstractmethod
    def load(self, seed: int) -> TaskData:
        """Load, split and normalise. A random split depends only on ``seed``."""

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


def _own_path(config: Any) -> Path | None:
    return getattr(config, "path", None)


def how_to_get(card: DataCard, store: Store) -> str:
    """What a user types to get a data set, for an error message."""
    lines = [f"no data for '{card.name}' in {store.root / 'datasets' / card.name}"]
    if card.generable:
        lines.append(f"generate them: xmodal data generate {card.name}")
    if card.fetchable:
        lines.append(f"fetch them ({size(card.size)}): xmodal data fetch {card.name}")
    if card.files:
        names = ", ".join(file.name for file in card.files if not file.aside)
        lines.append(f"if you have {names}: xmodal data fetch {card.name} --from FOLDER")
    lines += [f"{file.name}: {file.by_hand}" for file in card.files if file.by_hand]
    if card.stand_in:
        lines.append(f"or use the stand-in, which needs no account: --task {card.stand_in}")
    return "\n".join(lines)


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


class Source(Component):
    """A labelled data set of the modality that the backbone was pretrained on.

    Its ``Config`` must have a field ``loss``: the loss of the source head. ``context`` is kept for
    ``load``, which finds the cache in ``context.store``.
    """

    kind = "source"

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.context = context

    @classmethod
    @abstractmethod
    def describe(cls, config: Any) -> SourceFacts:
        """The source's facts; ``target.shape`` stays empty for dense labels."""

    @abstractmethod
    def load(self, request: SourceRequest, seed: int) -> Dataset[Pair]:
        """Load samples that are ready for the model; do all one-time computation here."""
