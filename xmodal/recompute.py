"""Layers whose results are computed again in the backward pass instead of being stored.

It saves the memory of all activations within a layer and costs one more forward pass. Values,
gradients and random draws stay the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xmodal import precision

Weights = Mapping[tuple[nn.Module, str], Tensor | None]


def recompute(layers: Iterable[nn.Module]) -> int:
    """Let these layers store only what they read; returns how many there are."""
    count = 0
    for layer in layers:
        layer.forward = _Recomputed(layer)
        count += 1
    return count


class _Recomputed:
    """The forward pass of a layer under activation checkpointing."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.inner = layer, layer.forward
        self.draws = False

    def __call__(self, *given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.inner(*given, **named)
        device = next(self.layer.parameters()).device
        weights = _weights(self.layer)
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if capturing and self.draws:
            raise RuntimeError("recomputed layers with dropout cannot be captured as a CUDA graph")
        before = None if capturing else _random_state(device)

        def run(*given: Any) -> Any:
            # The backbone may be lent other weights for one pass, such as copies in bf16.
            with _lent(weights):
                return self.inner(*given, **named)

        out = checkpoint(
            run,
            *given,
            use_reentrant=False,
            # It reads the state of the generators, which a capture forbids. Whether a layer draws
            # is known from the passes before it.
            preserve_rng_state=not capturing,
            context_fn=lambda: (nullcontext(), _kernels(weights, device)),
        )
        if before is not None:
            self.draws |= before != _random_state(device)
        return out


def _random_state(device: torch.device) -> tuple[bytes, ...]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return tuple(state.numpy().tobytes() for state in states)


def _weights(layer: nn.Module) -> Weights:
    return {
        (module, name): tensor
        for module in layer.modules()
        for name, tensor in module._parameters.items()
    }


@contextmanager
def _lent(weights: Weights) -> Iterator[None]:
    """A block in which modules have these weights."""
    own = {(module, name): module._parameters[name] for module, name in weights}
    try:
        _put(weights)
        yield
    finally:
        _put(own)


def _put(weights: Weights) -> None:
    for (module, name), tensor in weights.items():
        module._parameters[name] = tensor  # type: ignore[assignment]


def _kernels(weights: Weights, device: torch.device) -> AbstractContextManager[Any]:
    """The kernels that the first pass used (``precision.half_kernels``)."""
    half = any(tensor is not None and tensor.dtype == torch.bfloat16 for tensor in weights.values())
    return precision.half_kernels(device.type) if half else nullcontext()
