"""The predictor ``coarse-solve``: solves the task's own equation on a coarse grid; learns nothing.

A learned solver is worth its training only where it beats a numerical one of the same cost
(McGreivy & Hakim 2024, Nature Machine Intelligence 6). Tasks bring their solver (``Task.coarse``).

Shapes: B samples, F numbers per sample, K outputs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from xmodal.batch import Tokens
from xmodal.data import RawForm
from xmodal.errors import DataError, UsageError
from xmodal.interfaces import Context, Facts, FitData, FittedPredictor, Settings
from xmodal.settings import Use


class CoarseSolve(FittedPredictor):
    """A numerical solution on few points, interpolated to the grid of the task.

    It sees what every model sees: normalised samples. The stage ``fit`` tells it how the task
    normalises, no more, and notes how long a sample takes. Where a part of the start is not in the
    samples (Darcy flow and reaction-diffusion of PDEBench), its mean stands in.
    """

    citation = "McGreivy & Hakim, Nature Machine Intelligence 6 (2024): beat a solver of equal cost"

    class Config(Settings):
        """How finely to solve."""

        points: int | None = Field(
            None, ge=4, description="Points along each side; default: what the task suggests."
        )

    config: Config
    names = ("mean", "scale", "offset", "slope")
    mean: Tensor
    scale: Tensor
    offset: Tensor
    slope: Tensor
    uses_validation = False
    most_samples = 5

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        task = context.facts.task
        self.shape, self.points = task.shape, config.points or task.coarse
        self.task: Use[Any] | None = context.components.get("task")
        self.note = context.note

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """Report a task without an equation."""
        if not facts.task.coarse:
            yield (
                f"task '{facts.task.name}' has no equation to solve; 'coarse-solve' is for tasks "
                "of partial differential equations, such as darcy and pdebench/advection"
            )

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
        self._time(data.x_NF)

    def _keep_labels(self, data: FitData, raw: RawForm) -> None:
        """The affine map from outputs to labels: decoded, then in the unit of the user."""
        decode = data.decode
        like = next(iter([*decode.buffers(), *decode.parameters()]), data.y)
        zero = torch.zeros_like(data.y[:1], device=like.device)
        with torch.no_grad():
            at = [decode(zero + value).double().cpu() for value in (0.0, 1.0, 2.0)]
        offset, slope = at[0], at[1] - at[0]
        if not torch.allclose(at[2], offset + 2 * slope, rtol=1e-4, atol=1e-9):
            raise UsageError("coarse-solve cannot invert the decoding of this task's labels")
        if raw.label_mean is not None and raw.label_scale is not None:
            offset = offset * raw.label_scale + raw.label_mean
            slope = slope * raw.label_scale
        self.offset, self.slope = offset[0], slope[0]

    def _time(self, x_NF: Tensor) -> None:
        """Note the processor time of a sample, without the first one, which also imports."""
        self(Tokens(x_NF[:1, None], (1,)))
        rest = x_NF[1:] if len(x_NF) > 1 else x_NF
        started = time.process_time()
        self(Tokens(rest[:, None], (1,)))
        each = 1e3 * (time.process_time() - started) / len(rest)
        cost = f"{each:.3g} ms of processor time a sample"
        self.note(f"coarse-solve: {self.points} points a side, {cost}")

    def forward(self, features: Tokens) -> Tensor:
        """Solve: ``[B, K, *shape]``, in the unit of the predictor's outputs."""
        self.check_fitted()
        if self.task is None:
            raise UsageError("predictor 'coarse-solve' was built without its task")
        x_BF = features.x_BND.flatten(1)
        x = x_BF.double().cpu().reshape(len(x_BF), *self.shape)[:, : len(self.mean)]
        mean, scale = self.mean.cpu(), self.scale.cpu()
        raw = x * scale + mean
        try:
            form = RawForm(self.shape, tuple(mean.shape), mean=mean, scale=scale)
            solved = self.task.component.coarse(self.task.config, raw.numpy(), self.points, form)
        except ArithmeticError as error:
            raise DataError(f"coarse-solve: {error}") from error
        y = torch.from_numpy(solved)
        slope = self.slope.cpu()
        # Where all labels are equal, decoding gives them whatever the output.
        encoded = torch.where(slope == 0, 0.0, (y - self.offset.cpu()) / slope)
        return encoded.to(x_BF.device, torch.float32)
