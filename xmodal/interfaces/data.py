"""Where samples come from: a task to learn, and a labelled proxy of the pretraining modality."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from xmodal.data.preparation import RawForm
from xmodal.data.store import Store
from xmodal.errors import DataError
from xmodal.facts import SourceFacts, TaskFacts
from xmodal.interfaces.component import Component, Context

Pair = tuple[Tensor, Tensor]
"""A sample and its label."""


@dataclass
class TaskData:
    """A loaded task. Every dataset maps an index to ``(x, y)``; training order is the engine's.

    ``decode`` turns a predictor's output into the unit of ``y`` (for example, it undoes a
    normalisation); losses and metrics see the decoded prediction. ``checksum`` identifies the data.
    ``unlabelled`` holds samples to train on whose labels must not be looked at. Where nothing is
    held out to test on, ``test`` is the same object as ``validation``, and results say so.
    ``images`` names channels worth drawing in a report: ``{"title": channel of x}``. ``raw`` says
    how samples were prepared, so that a trained model can prepare others; None where ``x`` is as
    it was in the files.
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


class Task(Component):
    """A target task. Its ``Config`` must have ``loss`` and ``metric`` fields."""

    kind = "task"

    @classmethod
    @abstractmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The task's facts; cheap. May read the user's own files. Raises DataError."""

    @abstractmethod
    def load(self, seed: int) -> TaskData:
        """Load, split and normalise. A random split is a function of ``seed``."""

    @classmethod
    def decoder(cls, config: Any, state: Mapping[str, Tensor]) -> nn.Module:
        """The ``decode`` of a finished run without its data; ``state`` is its state dict.

        The default knows only the identity, and raises DataError for anything else.
        """
        if state:
            raise DataError(
                f"{cls.__name__} cannot decode predictions without its data: it has no 'decoder'"
            )
        return nn.Identity()


@dataclass(frozen=True)
class SourceRequest:
    """What the run wants from a source.

    ``size``: image height and width, or ``(length,)`` in tokens. ``label_shape``: spatial shape for
    dense labels. ``prepare`` is the backbone's ``prepare_source``; ``tokenize``, of a text
    backbone, gives the word pieces of each word.
    """

    size: tuple[int, ...]
    label_shape: tuple[int, ...]
    prepare: Callable[[Any], Tensor]
    tokenize: Callable[[list[str]], list[list[int]]] | None = None


class Source(Component):
    """A labelled proxy of the modality the backbone was pretrained on.

    Its ``Config`` must have a ``loss`` field: the loss of the source head. ``context`` is kept for
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
        """Load model-ready samples. Everything that can be computed once is computed here."""
