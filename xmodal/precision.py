"""Copies of a module's weights in another floating-point type.

The parameters stay in float32: the optimizer, checkpoints and exports see nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class _Cast(torch.autograd.Function):
    """Casts tensors to a type; its gradient casts the gradients back.

    All are cast at once, which is a few kernels on a GPU instead of one for each tensor.
    """

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype = tensors[0].dtype
        copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
        torch._foreach_copy_(copies, tensors)
        # Otherwise a gradient would be computed for each of them, and thrown away.
        needed = ctx.needs_input_grad[1:]
        ctx.mark_non_differentiable(
            *(copy for copy, needs in zip(copies, needed, strict=True) if not needs)
        )
        return tuple(copies)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [gradient for gradient in gradients if gradient is not None]
        # The same function again, so that it has a gradient of its own.
        cast = iter(_Cast.apply(ctx.dtype, *there) if there else ())
        return (None, *(None if gradient is None else next(cast) for gradient in gradients))


def copies(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies of the float32 parameters of ``module`` in type ``dtype``, by name.

    A gradient of a copy reaches its parameter, in float32. Copies are made whenever they are asked
    for: what was kept could outlive a change of the weights that Python does not see, such as an
    update inside a CUDA graph.
    """
    found = {name: p for name, p in module.named_parameters() if p.dtype == torch.float32}
    if not found:
        return {}
    return dict(zip(found, _Cast.apply(dtype, *found.values()), strict=True))


class _FullKernels(TorchFunctionMode):
    """A block in which some functions compute in float32 and return the type of their input."""

    functions = (functional.layer_norm, torch.layer_norm, functional.scaled_dot_product_attention)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func not in self.functions:
            return func(*args, **named)
        given = next(a for a in (*args, *named.values()) if isinstance(a, Tensor))
        full = [_in_full(a) for a in args]
        return func(*full, **{k: _in_full(a) for k, a in named.items()}).to(given.dtype)


def _in_full(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def half_kernels(device: str) -> AbstractContextManager[Any]:
    """A block in which kernels on ``device`` sum in float32 what they read in half precision.

    CUDA's do. On CPUs the gradients of LayerNorm's weights are summed in the type of its input:
    over a thousand rows they lose all but one digit. Those of attention take 1.6 to 4 times as long
    as in float32 (torch 2.15, a Xeon with AMX, 76 to 200 tokens).
    """
    return _FullKernels() if device == "cpu" else nullcontext()
