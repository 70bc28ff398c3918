"""The parts a model is made of, and what its predictions are measured with.

Shapes: B samples, N tokens, D width of the tokens, F width of the features, K outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from xmodal.batch import Points, Progress, Sample, Selection, Tokens, View
from xmodal.data.store import Store
from xmodal.facts import BackboneFacts, Target, TaskFacts
from xmodal.interfaces.component import Component


class Embedder(Component, nn.Module):
    """Turns raw target samples ``[B, *shape]`` into tokens of the backbone's width."""

    kind = "embedder"

    @classmethod
    @abstractmethod
    def grid(cls, config: Any, task: TaskFacts, backbone: BackboneFacts) -> tuple[int, ...]:
        """The token grid this embedder will produce. Raises ValueError with the reason if it
        cannot.
        """

    @abstractmethod
    def forward(self, x: Tensor) -> Tokens:
        """Embed a batch."""

    def calibrate(self, x: Tensor, source_norm: float | None) -> None:
        """Adjust to a first batch of training samples, once, before training.

        ``source_norm`` is the mean Euclidean norm of the backbone's own tokens, or None where it is
        unknown. The default does nothing.
        """
        return


class Selector(Component, nn.Module):
    """Chooses the k most important tokens of every sample."""

    kind = "selector"

    @abstractmethod
    def forward(self, tokens: Tokens, k: int, progress: Progress) -> Selection:
        """Select ``k`` tokens a row; 0 <= k <= N."""


class Scheduler(Component):
    """Says how many tokens to replace."""

    kind = "scheduler"

    @abstractmethod
    def __call__(self, progress: Progress, num_tokens: int) -> int:
        """k at this point of the training, 0 <= k <= ``num_tokens``."""

    def observe(
        self, mix: Callable[[int], Tokens], target: Tokens, source: Tokens, progress: Progress
    ) -> None:
        """Look at a training batch before k is asked for; ``mix(k)`` gives its mixed tokens.

        For schedules that depend on the data. One with a state of its own must also be an
        ``nn.Module`` that keeps it in buffers. The default looks at nothing.
        """
        return


class Mixer(Component, nn.Module):
    """Builds the views a step trains on.

    ``needs_source`` asks the engine for source batches, ``needs_unlabelled`` for target samples
    without labels (a run may have none); ``uses`` names the parts it is given.
    """

    kind = "mixer"
    needs_source: ClassVar[bool] = False
    needs_unlabelled: ClassVar[bool] = False
    uses: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        """Mix. ``source`` has as many samples as ``target``; its N may differ."""


class Predictor(Component, nn.Module):
    """Turns features into predictions of ``context.output``."""

    kind = "predictor"

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Whether this predictor can produce ``output``."""
        return True

    @abstractmethod
    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K]``, or ``[B, K, *shape]`` for dense outputs."""


@dataclass(frozen=True)
class LibraryModel:
    """A backbone as a model of a public library, for exports.

    ``config`` and ``state`` are the library's own. ``prefix`` ``[1, P, D]`` are tokens of the
    backbone that go in front of an embedder's, and whose features are dropped.
    """

    library: Literal["transformers", "timm"]
    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    prefix: Tensor | None = None


class Backbone(Component, nn.Module):
    """A pretrained backbone: its own embedding of source samples, and its encoder.

    ``licence`` is that of the pretrained weights, as exports state it. A backbone whose ``Config``
    has a field ``pretrained`` is built without its weights where a run's own replace them.
    """

    kind = "backbone"
    facts: BackboneFacts
    licence: ClassVar[str] = "that of the publisher of the weights"

    @classmethod
    @abstractmethod
    def describe(cls, config: Any, store: Store) -> BackboneFacts:
        """The backbone's facts, without loading weights."""

    @abstractmethod
    def forward(self, tokens: Tokens) -> Tokens:
        """Encode tokens ``[B, N, D]`` into features ``[B, N', F]``."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tokens:
        """The pretrained embedding of source samples: what the encoder was trained to read."""

    def prepare_source(self, raw: Any) -> Tensor:
        """Make raw source samples what ``embed`` reads.

        Images: float ``[n, 3, H, W]`` in [0, 1], already of the wanted size. Text: a list of lists
        of words. The default returns ``raw`` unchanged.
        """
        return raw  # type: ignore[no-any-return]

    def embedding_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters that only ``embed`` uses. They stay frozen: the source embedder is fixed."""
        return ()

    def tokenize(self, words: list[str]) -> list[list[int]]:
        """Word pieces of each word; only text backbones have them."""
        raise NotImplementedError(f"{type(self).__name__} does not read text")

    def reference_norm(self) -> float | None:
        """The mean norm of this backbone's own tokens, where it is known without source samples."""
        return None

    def patch_projection(self) -> nn.Conv2d | None:
        """The pretrained patch projection, for source initialisation of embedders."""
        return None

    def embedding_norm(self) -> nn.LayerNorm | None:
        """The LayerNorm at the end of the pretrained embedding, if there is one."""
        return None

    def positions(self, grid: tuple[int, ...]) -> Tensor | None:
        """Pretrained positions ``[N, D]`` interpolated to ``grid``; None where relative."""
        return None

    def library_model(self) -> LibraryModel | None:
        """This backbone as a model of a public library; None where no library has it."""
        return None


class Adapter(Component):
    """Changes a pretrained backbone in place before anything trains, for example adds low-rank
    parts.

    Which of its parameters train is the stage's to say, by their names.
    """

    kind = "adapter"

    @abstractmethod
    def apply(self, backbone: Backbone) -> None:
        """Change the backbone. Must give the same parameter names every time."""


class Loss(Component, nn.Module):
    """A loss of predictions against labels."""

    kind = "loss"

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Whether this loss fits labels of that kind."""
        return True

    def fit(self, y: Tensor) -> None:
        """Look once at all training labels (for class weights). The default does nothing."""
        return

    @abstractmethod
    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The loss of every sample, ``[B]``."""

    def agreement(self, prediction: Tensor, other: Tensor) -> Tensor:
        """How far a prediction is from another one of the same samples, ``[B]``; 0 where equal.

        The default is this loss with the other prediction as the label, which suits numbers.
        """
        disagreement: Tensor = self(prediction, other)
        return disagreement


class Metric(Component):
    """A score over a whole split, fed batch by batch. ``better`` is ``lower`` or ``higher``."""

    kind = "metric"
    better: ClassVar[Literal["lower", "higher"]] = "lower"

    @abstractmethod
    def reset(self) -> None:
        """Forget everything."""

    @abstractmethod
    def update(self, prediction: Tensor, y: Tensor) -> None:
        """Add a batch of predictions (as the predictor and the task's decoding make them)."""

    @abstractmethod
    def compute(self) -> float:
        """The score of everything seen since ``reset``."""

    def smallest(self) -> float | None:
        """The least error above 0 that the labels seen since ``reset`` allow: one sample wrong.

        A comparison of ratios counts errors below half of it as half of it. None where an error is
        never 0 by luck (a mean of distances), or higher is better.
        """
        return None


class Distance(Component):
    """A distance between two sets of points, the source's and the target's.

    ``fit`` is called once with the source and keeps whatever can be computed from it alone.
    """

    kind = "distance"

    @abstractmethod
    def fit(self, source: Points) -> None:
        """Remember the source ``[n, D]``; no gradient flows to it."""

    @abstractmethod
    def __call__(self, target: Points) -> Tensor:
        """The distance (a scalar) of ``target`` ``[m, D]``, differentiable in its points."""
