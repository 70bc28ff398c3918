"""The two paths through a model that MoNA differentiates, as functions of the encoder's weights.

A call runs the model with substitute weights and leaves its own weights and statistics unchanged.
The backbone is called as a module, so the engine counts every sample that passes through it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from xmodal.batch import TARGET
from xmodal.interfaces import Model
from xmodal_mona.bilevel import LossOf, Weights
from xmodal_mona.terms import unit_features

_BODY = "model.backbone."


class _TargetLoss(nn.Module):
    """L_inner: the target's own loss, without mixing."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss over the target samples."""
        model = self.model
        features = model.backbone(model.embedder(x))
        loss: Tensor = model.loss(model.apply_head(TARGET, features), y).mean()
        return loss


class _SourceFeatures(nn.Module):
    """Features of source samples, embedded by the backbone's own frozen embedding."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Unit features ``[B, F]``."""
        model = self.model
        return unit_features(model.backbone(model.embed_source(x)).x_BND)


def target_loss(model: Model, phi: Weights, x: Tensor, y: Tensor) -> Tensor:
    """The loss of the target samples under the encoder's weights ``phi``."""
    return _call(_TargetLoss(model), phi, x, y)


def source_features(model: Model, phi: Weights, x: Tensor) -> Tensor:
    """Unit features ``[B, F]`` of the source samples under the encoder's weights ``phi``."""
    return _call(_SourceFeatures(model), phi, x)


def _call(path: nn.Module, phi: Weights, *inputs: Tensor) -> Tensor:
    # Use copies of the running statistics: a virtual step must not change backbone or head.
    lent = {
        name: buffer.clone()
        for name, buffer in path.named_buffers()
        if not name.startswith("model.embedder.")
    }
    lent |= {_BODY + name: weight for name, weight in phi.items()}
    result: Tensor = functional_call(path, lent, inputs)
    return result


def repeatable(loss_of: LossOf, device: torch.device) -> LossOf:
    """The same function, with the same dropout masks in every call.

    The first call draws from the global generators as usual. Later calls start from the state that
    the first call saw, and restore the generators afterwards.
    """
    seen: list[Any] = []

    def again(phi: Weights) -> Tensor:
        if not seen:
            seen.append(_random_state(device))
            return loss_of(phi)
        before = _random_state(device)
        _set_random_state(device, seen[0])
        try:
            return loss_of(phi)
        finally:
            _set_random_state(device, before)

    return again


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    own: Callable[[], Tensor] | None = None
    if device.type != "cpu":
        own = torch.get_device_module(device).get_rng_state
    return torch.get_rng_state(), None if own is None else own()


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1])
