"""The base of rivals that solve the task's own equation for each sample, and learn from no other.

Shapes: B samples, F numbers per sample, K outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from xmodal.batch import Tokens
from xmodal.data import RawForm
from xmodal.errors import UsageError
from xmodal.interfaces import Context, FitData, FittedPredictor
from xmodal.settings import Use


class SolvesEquation(FittedPredictor):
    """It sees what every model sees: normalised samples.

    The stage ``fit`` tells it how the task normalises, no more, and notes what a sample costs.
    """

    names: ClassVar[tuple[str, ...]] = ("mean", "scale", "offset", "slope")
    mean: Tensor
    scale: Tensor
    offset: Tensor
    slope: Tensor
    uses_validation = False
    most_samples = 5
    name: str

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.shape = context.facts.task.shape
        self.task: Use[Any] | None = context.components.get("task")
        self.note = context.note

    @abstractmethod
    def solve(self, task: Use[Any], raw: Tensor, form: RawForm) -> Tensor:
        """Labels in the unit of the user, ``[B, K, *shape]``, of raw samples, float64."""

    @abstractmethod
    def cost(self, x_NF: Tensor) -> str:
        """What a sample costs, measured on a few normalised ones."""

    @property
    def fitted(self) -> bool:
        """Whether it knows how the task normalises."""
        return bool(self.slope.numel())

    def fit(self, data: FitData) -> None:
        """Keep how raw samples and labels become those of the model; time a few samples."""
        raw = data.raw or RawForm(self.shape, self.shape)
        shape = raw.laid
        mean, scale = (torch.zeros(()), torch.ones(()))
        if raw.mean is not None and raw.scale is not None:
            mean, scale = raw.mean, torch.where(raw.scale.isinf(), 0.0, raw.scale)
        self.mean = mean.double().cpu().expand(shape).clone()
        self.scale = scale.double().cpu().expand(shape).clone()
        self._keep_labels(data, raw)
        self.note(f"{self.name}: {self.cost(data.x_NF)}")

    def _keep_labels(self, data: FitData, raw: RawForm) -> None:
        """The affine map from outputs to labels: decoded, then in the unit of the user."""
        decode = data.decode
        like = next(iter([*decode.buffers(), *decode.parameters()]), data.y)
        zero = torch.zeros_like(data.y[:1], device=like.device)
        with torch.no_grad():
            at = [decode(zero + value).double().cpu() for value in (0.0, 1.0, 2.0)]
        offset, slope = at[0], at[1] - at[0]
        if not torch.allclose(at[2], offset + 2 * slope, rtol=1e-4, atol=1e-9):
            raise UsageError(f"{self.name} cannot invert the decoding of this task's labels")
        if raw.label_mean is not None and raw.label_scale is not None:
            offset = offset * raw.label_scale + raw.label_mean
            slope = slope * raw.label_scale
        self.offset, self.slope = offset[0], slope[0]

    def raw(self, x_BF: Tensor) -> Tensor:
        """Normalised samples as they were, float64 on the CPU."""
        x = x_BF.double().cpu().reshape(len(x_BF), *self.shape)[:, : len(self.mean)]
        return x * self.scale.cpu() + self.mean.cpu()

    def forward(self, features: Tokens) -> Tensor:
        """Solve: ``[B, K, *shape]``, in the unit of the predictor's outputs."""
        self.check_fitted()
        if self.task is None:
            raise UsageError(f"predictor '{self.name}' was built without its task")
        x_BF = features.x_BND.flatten(1)
        mean, scale = self.mean.cpu(), self.scale.cpu()
        form = RawForm(self.shape, tuple(mean.shape), mean=mean, scale=scale)
        y = self.solve(self.task, self.raw(x_BF), form)
        slope = self.slope.cpu()
        # Where all labels are equal, decoding gives them whatever the output.
        encoded = torch.where(slope == 0, 0.0, (y - self.offset.cpu()) / slope)
        return encoded.to(x_BF.device, torch.float32)
