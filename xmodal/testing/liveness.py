"""Whether every block of a network takes part in what the network says.

Programs run on with a block whose output is thrown away; only the numbers get worse. A published
baseline of this field lost the output of its Fourier blocks so for years.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

from xmodal.interfaces import TaskFacts
from xmodal.testing.tiny import BATCH, expect, seeded
from xmodal.text import shortlist

JITTER = 0.02
"""Noise on parameters that all have one value; 0 would hide what it multiplies."""


def check_liveness(network: nn.Module, run: Callable[[], Tensor], name: str) -> None:
    """Every block gets a gradient from the predictions, and they change when it is shuffled.

    ``run`` calls the network on a few samples, real ones where that matters, and returns its
    predictions (or features) ``[B, ...]`` with a gradient. A block is a module with parameters of
    its own; shuffled are the whole network, and each of its named children. Weights are jittered
    first: a block that starts at zero, or behind a zero, is alive as soon as it trains. They, the
    mode and the random generators are as before afterwards.
    """
    blocks = {
        key: own
        for key, module in network.named_modules()
        if (own := [p for p in module.parameters(recurse=False) if _is_number(p)])
    }
    if not blocks:
        return
    with _borrowed(network), seeded(0):
        _jitter(blocks)
        predictions = run()
        expect(
            predictions.requires_grad,
            f"{name}: the predictions depend on no parameter; they are detached or constant",
        )
        weights = torch.randn(predictions.shape, dtype=predictions.dtype)
        (predictions * weights.to(predictions.device)).sum().backward()  # type: ignore[no-untyped-call]
        dead = [key for key, own in blocks.items() if not any(map(_has_gradient, own))]
        message = "no gradient of the predictions reaches it, so its output is lost on the way"
        expect(not dead, f"{name}: {_named(dead, blocks)} is dead: {message}")
        with torch.no_grad():
            before = run()
            children = {key: list(child.parameters()) for key, child in network.named_children()}
            groups = {"": list(network.parameters()), **children}
            for key, group in groups.items():
                own = [p for p in group if _is_number(p)]
                block = f"block '{key}'" if key else "the whole network"
                message = f"{name}: {block} is dead: shuffling its weights changes no prediction"
                expect(not own or not _same(before, _shuffled(own, run)), message)


def _is_number(parameter: Tensor) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


@contextmanager
def _borrowed(network: nn.Module) -> Iterator[None]:
    """The network in evaluation with everything trainable; all is put back afterwards."""
    kept = [(p, p.detach().clone(), p.requires_grad, p.grad) for p in network.parameters()]
    buffers = [(b, b.detach().clone()) for b in network.buffers()]
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        for parameter, *_ in kept:
            parameter.requires_grad_(_is_number(parameter))
            parameter.grad = None
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for parameter, value, trained, gradient in kept:
                parameter.copy_(value)
                parameter.requires_grad_(trained)
                parameter.grad = gradient
            for buffer, value in buffers:
                buffer.copy_(value)


@torch.no_grad()
def _jitter(blocks: Mapping[str, list[nn.Parameter]]) -> None:
    for parameter in (p for own in blocks.values() for p in own):
        noise = torch.randn(parameter.shape, dtype=parameter.dtype).to(parameter.device)
        spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
        parameter.add_(noise, alpha=0.1 * spread or JITTER)


def _has_gradient(parameter: nn.Parameter) -> bool:
    gradient = parameter.grad
    return gradient is not None and bool((gradient != 0).any())


def _shuffled(own: list[nn.Parameter], run: Callable[[], Tensor]) -> Tensor:
    """What the network says while the entries of each of these parameters are shuffled."""
    kept = [p.clone() for p in own]
    for parameter in own:
        flat = parameter.flatten()
        order = torch.randperm(len(flat)).to(flat.device)
        # A single number has no other order.
        parameter.copy_((flat[order] if len(flat) > 1 else -flat).view_as(parameter))
    said = run()
    for parameter, value in zip(own, kept, strict=True):
        parameter.copy_(value)
    return said


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal up to what float32 rounds."""
    return bool((one - other).abs().amax() <= 1e-6 * one.abs().amax())


def _named(dead: list[str], blocks: Mapping[str, object]) -> str:
    """The dead blocks, each by the largest module of which nothing lives."""
    living = [key for key in blocks if key not in dead]
    tops: list[str] = []
    for key in dead:
        parts = key.split(".") if key else []
        above = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        whole = (k for k in above if not any(f"{one}.".startswith(f"{k}.") for one in living))
        top = next(whole, key) if living else ""
        if top not in tops:
            tops.append(top)
    called = shortlist(f"'{top}'" for top in tops if top)
    return f"block {called}" if called else "the whole network"


def real_samples(task: TaskFacts, batch: int = BATCH) -> Tensor:
    """Samples ``[B, *shape]`` cut from scikit-learn's photograph of a flower: real data, no files.

    Channels are shifted copies, sequences are rows of pixels; categories are coded 0 .. m-1.
    """
    brightness_HW = _photograph()
    side = brightness_HW.shape[0] * brightness_HW.shape[1]
    count = torch.Size(task.shape).numel()
    place = torch.arange(count).view(task.shape)
    if len(task.shape) == 3:
        channel, row, column = (torch.arange(n) for n in task.shape)
        place = (17 * channel)[:, None, None] + row[:, None] * brightness_HW.shape[1] + column
    start = 40_000 + 20_011 * torch.arange(batch)
    x = brightness_HW.flatten()[(start.view(-1, *[1] * place.dim()) + place) % side]
    for column_number, levels in enumerate(task.levels):
        if levels:
            x[:, column_number] = torch.arange(batch) % levels
    return x


@cache
def _photograph() -> Tensor:
    """The brightness ``[427, 640]`` of the flower, with mean 0 and deviation 1."""
    from sklearn.datasets import load_sample_image

    grey = torch.from_numpy(load_sample_image("flower.jpg").copy()).float().mean(dim=-1)
    return (grey - grey.mean()) / grey.std()
