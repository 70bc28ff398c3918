"""Predictors that are fitted once, to a whole split, by the stage ``fit``; no gradient trains them.

Their checkpoints hold tensors like those of any model: arrays, or the bytes of a library's own
file format. Nothing is pickled.

Shapes: B and n samples, F numbers per sample (``prod(facts.task.shape)``), K outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xmodal.data.preparation import RawForm
from xmodal.errors import DataError, UsageError
from xmodal.facts import Facts
from xmodal.interfaces.model import Predictor

LARGEST_GB = 8.0


@dataclass(frozen=True)
class FitData:
    """What a predictor is fitted to, on the CPU: flattened samples and their labels.

    ``x_NF`` is float32 ``[n, F]``, standardised as the task says; a missing number is NaN, a
    missing category is below 0 (``facts.task.levels`` tells categories from numbers). ``y`` is
    ``[n]``, ``[n, K]`` or ``[n, K, *shape]`` in the predictor's own unit (before ``decode``); an
    unknown label is NaN. The validation samples (those that choose the best epoch of a method) are
    for early stopping alone; a predictor that does not use them gets none. ``others_NF`` holds the
    samples of the other splits, without labels, for a predictor that ``keeps_predictions``, and is
    empty for any other. ``raw`` says how raw samples became ``x_NF``, and ``decode`` how outputs
    of the predictor become labels. ``tokens``: how many tokens of the backbone lie end to end in a
    row of ``x_NF``. ``weight_N``: how much each sample counts, float64 ``[n]``, or None; only a
    predictor that ``weighs`` gets weights.
    """

    x_NF: Tensor
    y: Tensor
    validation_x_NF: Tensor
    validation_y: Tensor
    others_NF: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    raw: RawForm | None = None
    decode: nn.Module = field(default_factory=nn.Identity)
    tokens: int = 1
    weight_N: Tensor | None = None

    def some(self, rows: Tensor) -> FitData:
        """Some of the training samples, by their places or a mask."""
        weight_N = None if self.weight_N is None else self.weight_N[rows]
        return replace(self, x_NF=self.x_NF[rows], y=self.y[rows], weight_N=weight_N)


class FittedBuffers(nn.Module):
    """A module whose buffers get their shapes and types when it is fitted or loaded.

    ``names`` lists them; each is empty before. ``optional`` ones are None before, and may stay so.
    """

    names: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in self.names:
            self.register_buffer(name, torch.empty(0))
        for name in self.optional:
            self.register_buffer(name, None)

    def loaded(self) -> None:
        """Called when buffers were loaded: forget what was made of the old ones."""
        return

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in self.names:
            if prefix + name in state_dict:
                device = getattr(self, name).device
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=device))
        for name in self.optional:
            given = state_dict.get(prefix + name)
            setattr(self, name, None if given is None else torch.empty_like(given))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.loaded()


class FittedPredictor(FittedBuffers, Predictor):
    """A predictor without gradients: ``fit`` is called once, by the stage ``fit``.

    It reads flattened samples (embedder ``flat``, backbone ``identity``), or the features of a
    frozen backbone. What is fitted lies in buffers, its own (``names``) or those of a
    ``FittedBuffers`` inside it, so that a restored model predicts the same to the last bit.
    ``uses_validation``: it wants validation samples. ``most_samples``: how many training samples it
    wants at most, spread evenly over the split; None: all. ``keeps_predictions``: the buffers hold
    predictions instead of a model, because its library can only pickle it; ``fit`` then gets the
    samples of all splits. ``reads_features``: it is meant for the features of a backbone, and makes
    nothing of whole samples. ``weighs``: ``fit`` lets samples count by their weights.
    """

    uses_validation: ClassVar[bool] = True
    keeps_predictions: ClassVar[bool] = False
    most_samples: ClassVar[int | None] = None
    reads_features: ClassVar[bool] = False
    weighs: ClassVar[bool] = False

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether it can predict: it was fitted, or loaded from a run that did."""

    @abstractmethod
    def fit(self, data: FitData) -> None:
        """Fit. The same data, settings and seed give the same model."""

    def chosen(self) -> Mapping[str, Any] | None:
        """What it chose on validation, as settings: with them a fit to all chooses nothing.

        None: it cannot say, and no model can be fitted to the validation samples too. Values of one
        setting have an order, or are words: of several fits the one in the middle is taken.
        """
        return None if self.uses_validation else {}

    @property
    def traceable(self) -> bool:
        """Whether ``forward`` is a graph of torch, which can be exported; a library's is not."""
        return False

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """A training split that is too large for memory, by default."""
        return too_large(facts)

    def check_fitted(self) -> None:
        """Raise UsageError if there is nothing to predict with."""
        if not self.fitted:
            name = type(self).__name__.lower()
            raise UsageError(
                f"predictor '{name}' was never fitted; its recipe needs the stage 'fit'"
            )


def too_large(
    facts: Facts, bytes_per_number: int = 8, most_gb: float = LARGEST_GB
) -> Iterable[str]:
    """Yield a problem if the flattened training split with its labels does not fit into memory."""
    task = facts.task
    numbers = prod(task.shape) + task.target.size * prod(task.target.shape)
    gigabytes = 1e-9 * bytes_per_number * numbers * task.samples.get("train", 0)
    if gigabytes > most_gb:
        yield (
            f"would need {gigabytes:.0f} GB for the flattened training split of task "
            f"'{task.name}' (at most {most_gb:.0f})"
        )


def as_bytes(parts: Sequence[bytes]) -> tuple[Tensor, Tensor]:
    """Texts of bytes as two tensors: all bytes end to end, uint8, and the length of each, int64."""
    joined = bytearray(b"".join(parts))
    held = torch.frombuffer(joined, dtype=torch.uint8).clone() if joined else torch.empty(0)
    return held.to(torch.uint8), torch.tensor([len(part) for part in parts], dtype=torch.int64)


def from_bytes(joined: Tensor, lengths: Tensor) -> list[bytes]:
    """The texts that ``as_bytes`` was given. Raises DataError if the two do not fit."""
    if int(lengths.sum()) != len(joined):
        raise DataError(
            "the checkpoint is damaged: the bytes of a fitted model have another length"
        )
    data = joined.cpu().numpy().tobytes()
    parts, start = [], 0
    for length in lengths.tolist():
        parts.append(data[start : start + length])
        start += length
    return parts
