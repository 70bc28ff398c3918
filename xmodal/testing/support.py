"""What all contract checks share: a failure with a message, building, comparing, gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from xmodal.batch import Tokens
from xmodal.interfaces import Component, Context, Settings
from xmodal.testing.tiny import tiny_context

Given = Mapping[str, Any] | Settings | None
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def expect(condition: bool, message: str) -> None:
    """Raise AssertionError with the message, also under ``python -O``."""
    if not condition:
        raise AssertionError(message)


def settings(component: type[Component], given: Given) -> Any:
    """The validated settings of a component."""
    if isinstance(given, Settings):
        return given
    return component.Config.model_validate(dict(given or {}))


def build(component: type[Component], given: Given = None, context: Context | None = None) -> Any:
    """Construct a component as the engine does, under a fixed seed."""
    with seeded(0):
        return component(settings(component, given), context or tiny_context())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators inside the block and put their states back after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def has_dropout(module: nn.Module) -> bool:
    """Whether a module holds dropout, which draws from the global generator."""
    return any(isinstance(part, _DROPOUTS) for part in module.modules())


def finite(value: Tensor, what: str) -> None:
    """Expect a tensor without NaN and infinity."""
    expect(bool(torch.isfinite(value).all()), f"{what} holds NaN or infinity")


def shaped(value: Any, shape: tuple[int, ...], what: str) -> None:
    """Expect a tensor of a shape."""
    expect(isinstance(value, Tensor), f"{what} must be a tensor, not {type(value).__name__}")
    found = tuple(value.shape)
    expect(found == shape, f"{what} must have shape {list(shape)}, not {list(found)}")


def tokens(value: Any, batch: int, width: int, what: str) -> None:
    """Expect finite ``Tokens`` whose grid fits their number; ``width`` 0 allows any."""
    expect(isinstance(value, Tokens), f"{what} must be Tokens, not {type(value).__name__}")
    expect(value.x_BND.ndim == 3, f"{what} must have 3 axes [B, N, D], not {value.x_BND.ndim}")
    count = 1
    for side in value.grid:
        count *= side
    shaped(value.x_BND, (batch, count, width or value.x_BND.shape[2]), f"{what} on {value.grid}")
    finite(value.x_BND, what)


def same(one: Tensor, other: Tensor, what: str, tolerance: float = 1e-4) -> None:
    """Expect two tensors to agree."""
    shaped(other, tuple(one.shape), what)
    close = torch.allclose(one.float(), other.float(), rtol=tolerance, atol=tolerance)
    expect(close, what)


def gradients(module: nn.Module, output: Tensor, name: str) -> None:
    """Expect a finite gradient of ``output`` at every trainable parameter."""
    module.zero_grad(set_to_none=True)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    (output.float() * weights).sum().backward()  # type: ignore[no-untyped-call]
    for key, parameter in module.named_parameters():
        if parameter.requires_grad:
            expect(parameter.grad is not None, f"{name}: no gradient reaches parameter '{key}'")
            assert parameter.grad is not None
            finite(parameter.grad, f"{name}: the gradient of parameter '{key}'")


def check_config(component: type[Component], given: Given = None) -> None:
    """The settings survive dumping, have a JSON schema, and refuse unknown keys."""
    name, config = component.__name__, settings(component, given)
    for mode in ("python", "json"):
        dumped = config.model_dump(mode=mode)
        again = component.Config.model_validate(dumped)
        expect(again == config, f"{name}.Config does not survive a {mode} dump: {dumped}")
    schema = component.Config.model_json_schema()
    expect(schema.get("type") == "object", f"{name}.Config has no JSON schema of an object")
    expect("use" not in component.Config.model_fields, f"{name}.Config: 'use' is a reserved key")
    extra = {**config.model_dump(mode="json"), "no_such_setting": 1}
    try:
        component.Config.model_validate(extra)
    except ValidationError:
        pass
    else:
        raise AssertionError(f"{name}.Config accepts a key it does not know")
    problems = component.problems(config, tiny_context().facts)
    for line in problems:
        expect(isinstance(line, str) and bool(line), f"{name}.problems must give non-empty lines")
