"""The average of the weights over the steps of a stage, which is scored and saved in their place.

After step t (from 0), with decay d,

    average <- average + (1 - d_t) (weights - average),    d_t = min(d, (1 + t) / (10 + t)).

The second term lets the average forget the weights that training began with, a random head's above
all; it is that of TensorFlow's ``ExponentialMovingAverage(num_updates=...)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from xmodal.batch import Progress


class Averages:
    """Averages of the parameters that a stage trains, in places of their own that never move."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], decay: float) -> None:
        self.decay = decay
        self.names = [name for name, _ in named]
        self.parameters = [parameter.detach() for _, parameter in named]
        self.kept = [parameter.clone() for parameter in self.parameters]

    def restart(self) -> None:
        """Begin with the weights as they are."""
        self._copy(self.kept, self.parameters)

    def share(self, at: Progress) -> float:
        """1 - d_t: how far the average goes towards the weights of a step."""
        step = at.epoch * at.steps + at.step
        return 1.0 - min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, share: Tensor) -> None:
        """Go towards the weights; ``share`` is a 0-d tensor on their device, 0 for no change."""
        way = torch._foreach_sub(self.parameters, self.kept)
        torch._foreach_mul_(way, share)
        torch._foreach_add_(self.kept, way)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """A block in which the model has the averages for weights."""
        before = [parameter.clone() for parameter in self.parameters]
        self.adopt()
        try:
            yield
        finally:
            self._copy(self.parameters, before)

    def adopt(self) -> None:
        """Make the averages the weights of the model, for good."""
        self._copy(self.parameters, self.kept)

    def state(self) -> dict[str, Tensor]:
        """The averages by the names of their parameters."""
        return dict(zip(self.names, self.kept, strict=True))

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on with the averages of a checkpoint. Raises KeyError for one that it lacks."""
        self._copy(self.kept, [state[name] for name in self.names])

    @torch.no_grad()
    def _copy(self, places: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        # In place: captured steps read and write these places.
        for place, value in zip(places, values, strict=True):
            place.copy_(value)
