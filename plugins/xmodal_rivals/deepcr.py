"""deepCR: the published U-Net for cosmic rays in Hubble ACS/WFC images, with its own weights.

Nothing is fitted: the weights come out of the package ``deepCR``, whose code is not imported. Batch
norms are folded into the convolutions. Pixels are read in electrons, as the weights expect, so the
task's standardising is undone.

Shapes: B samples, H and W pixels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from xmodal.batch import Tokens
from xmodal.data import Store
from xmodal.errors import DataError
from xmodal.interfaces import Context, Facts, FitData, FittedPredictor, Settings, Target
from xmodal_rivals.packages import absent

LAYERS = (
    ("inc.conv.conv.0", "inc.conv.conv.1"),
    ("inc.conv.conv.3", "inc.conv.conv.4"),
    ("down1.mpconv.1.conv.0", "down1.mpconv.1.conv.1"),
    ("down1.mpconv.1.conv.3", "down1.mpconv.1.conv.4"),
    ("up8.up", None),
    ("up8.conv.conv.0", "up8.conv.conv.1"),
    ("up8.conv.conv.3", "up8.conv.conv.4"),
    ("outc.conv", None),
)
"""Convolutions in the order in which they are used, each with the batch norm behind it."""
EPSILON = 1e-5
FAMILIES = ("astronomy", "image")
"""What may be exposures: also images of which nothing more is stated, such as a user's own."""
PACKAGE, EXTRA = "learned_models", "rivals-images"


class DeepCR(FittedPredictor):
    """The log-odds that a pixel was hit, for one-channel images in electrons.

    The mean over filters (``ACS-WFC``) or the model of one filter.
    """

    class Config(Settings):
        weights: Literal["ACS-WFC", "ACS-WFC-F435W", "ACS-WFC-F606W", "ACS-WFC-F814W"] = Field(
            "ACS-WFC", description="Which of the published models."
        )

    citation = "Zhang and Bloom, deepCR: Cosmic Ray Rejection with Deep Learning, ApJ 2020"
    names = (
        *(f"weight_{layer}" for layer in range(8)),
        *(f"bias_{layer}" for layer in range(8)),
        "mean",
        "scale",
    )
    uses_validation = False
    mean: Tensor
    scale: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.shape = context.facts.task.shape

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Maps of one channel."""
        return output.kind == "dense" and output.size == 1

    @classmethod
    def problems(cls, config: Config, facts: Facts) -> Iterable[str]:
        """Report anything but one-channel images with a map of their own size."""
        task, target = facts.task, facts.task.target
        if task.form != "grid" or task.shape[0] != 1:
            yield f"deepcr reads images of one channel, not samples {list(task.shape)}"
        elif target.kind != "dense" or (target.size, *target.shape) != task.shape:
            yield "deepcr predicts one map of the image's size: whether a cosmic ray hit the pixel"
        elif task.family not in FAMILIES:
            what = f"task '{task.name}' is of family {task.family}"
            yield f"deepcr finds cosmic rays in images; {what}"

    @classmethod
    def missing(cls, config: Config, store: Store) -> Iterable[str]:
        """The package that brings the weights."""
        return (line.replace(PACKAGE, "deepCR") for line in absent(PACKAGE, EXTRA))

    @property
    def fitted(self) -> bool:
        """Whether the weights are there."""
        return self.mean.numel() > 0

    def fit(self, data: FitData) -> None:
        """Read the weights; learn how the task standardises."""
        found = importlib.util.find_spec(PACKAGE)
        folder = "" if found is None else found.origin or ""
        path = Path(folder).parent / "mask" / f"{self.config.weights}.pth"
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            layers = [folded(state, *names) for names in LAYERS]
        except (OSError, KeyError, RuntimeError) as error:
            raise DataError(f"{path}: not the weights of deepCR: {error}") from None
        for layer, (weight, bias) in enumerate(layers):
            setattr(self, f"weight_{layer}", weight)
            setattr(self, f"bias_{layer}", bias)
        raw = data.raw
        if raw is None or raw.mean is None or raw.scale is None:
            self.mean, self.scale = torch.zeros(self.shape), torch.ones(self.shape)
            return
        scale = torch.where(raw.scale.isinf(), 0.0, raw.scale)
        self.mean, self.scale = (
            one.double().cpu().expand(self.shape).clone() for one in (raw.mean, scale)
        )

    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, 1, H, W]``, log-odds."""
        self.check_fitted()
        z_B1HW = features.x_BND.flatten(1).reshape(-1, *self.shape)
        x_B1HW = (z_B1HW * self.scale + self.mean).float()
        # Padded as the authors do: in front, to a multiple of 4.
        up, left = (-side % 4 for side in self.shape[1:])
        with torch.autocast(x_B1HW.device.type, enabled=False):
            x = functional.pad(x_B1HW, (left, 0, up, 0))
            skip = self._twice(x, 0)
            x = self._twice(functional.max_pool2d(skip, 2), 2)
            x = functional.conv_transpose2d(x, *self._layer(4), stride=2)
            x = self._twice(torch.cat([skip, x], dim=1), 5)
            return functional.conv2d(x, *self._layer(7))[:, :, up:, left:]

    def _layer(self, layer: int) -> tuple[Tensor, Tensor]:
        return getattr(self, f"weight_{layer}"), getattr(self, f"bias_{layer}")

    def _twice(self, x: Tensor, first: int) -> Tensor:
        for layer in (first, first + 1):
            x = functional.conv2d(x, *self._layer(layer), padding=1).relu()
        return x


def folded(state: Mapping[str, Any], name: str, norm: str | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution together with the batch norm behind it."""
    weight, bias = (state[f"module.{name}.{what}"].double() for what in ("weight", "bias"))
    if norm is not None:
        gain, offset, mean, variance = (
            state[f"module.{norm}.{what}"].double()
            for what in ("weight", "bias", "running_mean", "running_var")
        )
        factor = gain / (variance + EPSILON).sqrt()
        weight, bias = weight * factor[:, None, None, None], (bias - mean) * factor + offset
    return weight.float(), bias.float()
