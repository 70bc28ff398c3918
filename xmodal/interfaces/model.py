"""The parts of a model, and the losses, metrics and distances that measure it.

Shapes: B samples, N tokens, D width of the tokens, F width of the features, K outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from xmodal import precision
from xmodal.batch import Points, Progress, Sample, Selection, Tokens, View
from xmodal.data.store import Store
from xmodal.facts import BackboneFacts, Target, TaskFacts
from xmodal.interfaces.component import Component
from xmodal.settings import Use


class Embedder(Component, nn.Module):
    """Turns raw target samples ``[B, *shape]`` into tokens of the backbone's width."""

    kind = "embedder"

    @classmethod
    @abstractmethod
    def grid(cls, config: Any, task: TaskFacts, backbone: BackboneFacts) -> tuple[int, ...]:
        """The token grid that this embedder will produce.

        Raises ValueError with the reason if it cannot embed this task for this backbone.
        """

    @classmethod
    def shortened(
        cls, use: Use[Any], task: TaskFacts, backbone: BackboneFacts, most: int
    ) -> Use[Any]:
        """An embedder like ``use`` that makes at most ``most`` tokens of a whole sample.

        It may be another one, by name. The default returns ``use``: it has no such setting.
        """
        return use

    @abstractmethod
    def forward(self, x: Tensor) -> Tokens:
        """Embed a batch."""

    def fit(self, x: Tensor) -> None:
        """See training samples ``[n, *shape]``, on the CPU, once: all, or many drawn at random.

        Called before ``calibrate``, for what depends on the distribution of samples. The default
        does nothing.
        """
        return

    def calibrate(self, x: Tensor, source_norm: float | None) -> None:
        """Adjust to a first batch of training samples; called once, before training.

        ``source_norm`` is the mean Euclidean norm of the backbone's own tokens, or None if it is
        unknown. The default does nothing.
        """
        return

    def pieces(self, x: Tensor) -> Tensor | None:
        """The raw numbers that every token is made from, ``[B, N, P]``; no gradient is needed.

        A number that is missing, or that pads the sample, is NaN. None, the default, if tokens have
        no pieces of their own: they overlap, or are made otherwise.
        """
        return None

    def masked(self, x: Tensor, mask_BN: Tensor, fill_D: Tensor) -> Tokens:
        """Embed a batch with ``fill_D`` for the content of some tokens, which keep their positions.

        For embedders with ``pieces``: nothing of a masked piece may reach any token.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot mask its tokens")


class Selector(Component, nn.Module):
    """Chooses the k most important tokens of every sample.

    Schedules, progress and random draws come through ``xmodal.steps.from_host``; then a step can be
    captured as a CUDA graph. Otherwise it runs operation by operation.
    """

    kind = "selector"

    @abstractmethod
    def forward(self, tokens: Tokens, k: int | Tensor, progress: Progress) -> Selection:
        """Select ``k`` tokens per row; 0 <= k <= N.

        ``k`` is an int, or a 0-d int64 tensor on the device of the tokens. ``ops.hard_subset``
        takes both without waiting for the device.
        """


class Scheduler(Component):
    """Decides how many tokens to replace."""

    kind = "scheduler"

    @abstractmethod
    def __call__(self, progress: Progress, num_tokens: int) -> int:
        """k at this point of the training, 0 <= k <= ``num_tokens``."""

    def observe(
        self, mix: Callable[[int], Tokens], target: Tokens, source: Tokens, progress: Progress
    ) -> None:
        """Observe a training batch before the mixer asks for k; ``mix(k)`` gives its mixed tokens.

        This is for schedules that depend on the data. A schedule with state must also be an
        ``nn.Module`` that keeps its state in buffers. The default does nothing. One that looks at
        the data asks the device, so steps with it are not captured as CUDA graphs.
        """
        return


class Mixer(Component, nn.Module):
    """Builds the views that a step trains on.

    ``needs_source`` asks the engine for source batches, ``needs_unlabelled`` for target samples
    without labels (a run may have none). ``uses`` names the parts that the mixer receives.
    Schedules, progress and random draws come through ``xmodal.steps.from_host``, as in selectors.
    ``keeps_samples``: the b-th sample of every view is the b-th target sample with its own label,
    so that what is known of that sample holds in every view.
    """

    kind = "mixer"
    keeps_samples: ClassVar[bool] = False
    needs_source: ClassVar[bool] = False
    needs_unlabelled: ClassVar[bool] = False
    uses: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        """Mix. ``source`` has as many samples as ``target``, but its N may differ."""


class Predictor(Component, nn.Module):
    """Turns features into predictions of ``context.output``.

    ``reads_samples``: ``from_samples`` adds to them what is no function of the features.
    """

    kind = "predictor"
    reads_samples: ClassVar[bool] = False

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Whether this predictor can produce ``output``."""
        return True

    @abstractmethod
    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K]``, or ``[B, K, *shape]`` for dense outputs."""

    def from_samples(self, x: Tensor, index: Tensor | None = None) -> Tensor | None:
        """What to add to the prediction of samples ``[B, *shape]``; None for nothing.

        It has the shape and the unit of the prediction, and no gradient. ``index`` holds the places
        of the samples in the training split, int64 ``[B]``, in a step of training, and is None
        elsewhere.
        """
        return None

    @property
    def traceable(self) -> bool:
        """Whether ``forward`` and ``offset`` are a graph of torch, which can be exported."""
        return True


@dataclass(frozen=True)
class LibraryModel:
    """A backbone as a model of a public library, for exports.

    ``config`` and ``state`` are in the library's own form. ``prefix`` ``[1, P, D]`` holds tokens of
    the backbone that precede the embedder's tokens; their features are dropped.
    """

    library: Literal["transformers", "timm"]
    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    prefix: Tensor | None = None


class Backbone(Component, nn.Module):
    """A pretrained backbone: its own embedding of source samples, and its encoder.

    ``licence`` is the licence of the pretrained weights, as stated in exports. If ``Config`` has a
    field ``pretrained``, the backbone is built without pretrained weights whenever the weights of a
    run replace them.

    ``native_bf16``: ``forward`` runs as well if weights and tokens are bfloat16. Under
    ``precision: bf16`` it then gets copies of its weights in bfloat16, and everything in it is
    computed in that type; otherwise it runs under autocast, which casts one operation at a time.
    Either way features are float32, and so are the parameters.
    """

    kind = "backbone"
    facts: BackboneFacts
    licence: ClassVar[str] = "that of the publisher of the weights"
    native_bf16: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def describe(cls, config: Any, store: Store) -> BackboneFacts:
        """The backbone's facts, without loading weights."""

    @abstractmethod
    def forward(self, tokens: Tokens) -> Tokens:
        """Encode tokens ``[B, N, D]`` into features ``[B, N', F]``."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tokens:
        """Embed source samples into the tokens that the encoder was pretrained to read."""

    def __call__(self, tokens: Tokens) -> Tokens:
        """Encode, in the precision of the surrounding autocast."""
        device, half = tokens.x_BND.device.type, torch.bfloat16
        wanted = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == half
        if not (self.native_bf16 and wanted):
            return super().__call__(tokens)  # type: ignore[no-any-return]
        with torch.autocast(device, enabled=False), precision.half_kernels(device):
            halved = Tokens(tokens.x_BND.to(half), tokens.grid)
            features: Tokens = functional_call(self, precision.copies(self, half), (halved,))
        return Tokens(features.x_BND.float(), features.grid)

    def recomputable(self) -> Iterable[nn.Module]:
        """The layers to compute again in the backward pass under ``activation_checkpointing``."""
        return ()

    def prepare_source(self, raw: Any) -> Tensor:
        """Turn raw source samples into the input of ``embed``.

        Images are float ``[n, 3, H, W]`` in [0, 1], already of the requested size. Text is a list
        of lists of words. The default returns ``raw`` unchanged.
        """
        return raw  # type: ignore[no-any-return]

    def embedding_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters that only ``embed`` uses. They stay frozen, because embedding is fixed."""
        return ()

    def tokenize(self, words: list[str]) -> list[list[int]]:
        """The word pieces of each word; only for text backbones."""
        raise NotImplementedError(f"{type(self).__name__} does not read text")

    def reference_norm(self) -> float | None:
        """The mean norm of this backbone's own tokens, if known without source samples."""
        return None

    def patch_projection(self) -> nn.Conv2d | None:
        """The pretrained patch projection, for source initialisation of embedders."""
        return None

    def embedding_norm(self) -> nn.LayerNorm | None:
        """The LayerNorm at the end of the pretrained embedding, if there is one."""
        return None

    def positions(self, grid: tuple[int, ...]) -> Tensor | None:
        """Pretrained positions ``[N, D]`` interpolated to ``grid``; None if they are relative."""
        return None

    def library_model(self) -> LibraryModel | None:
        """This backbone as a model of a public library; None if no library has it."""
        return None


class Adapter(Component):
    """Changes a pretrained backbone in place before training, for example adds low-rank updates.

    The stage decides which of the adapter's parameters train, by their names.
    """

    kind = "adapter"

    @abstractmethod
    def apply(self, backbone: Backbone) -> None:
        """Change the backbone. Must give the same parameter names every time."""


class Loss(Component, nn.Module):
    """A loss between predictions and labels.

    ``standardises``: labels that are numbers may be standardised for training, each output by a
    mean and a scale of its own, so that learning does not depend on their unit; ``unit`` tells the
    loss these numbers. A loss whose labels must keep their value (0/1, counts) says False.
    ``degree``: the power of the unit in which the loss is measured (2 for squares, 0 for ratios);
    with it, the loss of a split is reported in the unit of the labels.
    """

    kind = "loss"
    standardises: ClassVar[bool] = True
    degree: ClassVar[int | None] = None

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Whether this loss fits labels of this kind."""
        return True

    def fit(self, y: Tensor) -> None:
        """See all training labels once, for example to weight classes. The default does nothing."""
        return

    def unit(self, mean: Tensor, scale: Tensor) -> None:
        """Learn that labels and predictions are ``(value - mean) / scale``.

        Both are float64 ``[K, 1, ...]``. Called once before training, if labels are standardised.
        The default does nothing.
        """
        return

    @abstractmethod
    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The loss of every sample, ``[B]``."""

    def agreement(self, prediction: Tensor, other: Tensor) -> Tensor:
        """How far a prediction is from another prediction of the same samples, ``[B]``; 0 if equal.

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
        """Forget all batches."""

    def group(self, groups_N: Tensor | None) -> None:
        """Learn the groups of the samples to come, int64 in their order; None if there are none.

        Called after ``reset``. A metric of groups (clips that are scored by the mean over their
        windows) keeps them; the default does nothing.
        """
        return

    @abstractmethod
    def update(self, prediction: Tensor, y: Tensor) -> None:
        """Add a batch of predictions and labels: on the CPU, in the unit of the user's labels."""

    @abstractmethod
    def compute(self) -> float:
        """The score of all batches since ``reset``."""

    def smallest(self) -> float | None:
        """The smallest error above 0 for the labels since ``reset``: a single wrong sample.

        When errors are compared by ratio, errors below half of this value count as half of it. None
        if an error is never 0 by luck (such as a mean of distances), or if higher is better.
        """
        return None


class Distance(Component):
    """A distance between two sets of points: those of the source and those of the target.

    ``fit`` is called once with the source, and keeps all values that depend only on the source.
    """

    kind = "distance"

    @abstractmethod
    def fit(self, source: Points) -> None:
        """Remember the source ``[n, D]``; no gradient flows to it."""

    @abstractmethod
    def __call__(self, target: Points) -> Tensor:
        """The distance (a scalar) to ``target`` ``[m, D]``, differentiable in its points."""
