"""What only a GPU shows of a step, shown without one: copies between host and device, which end a
capture.

Fake tensors know their device and shape and hold no numbers. Their backward pass would need a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from xmodal.batch import Batch, Progress
from xmodal.engine.capture import CannotBeCaptured, ClosedProgress, NoQuestions
from xmodal.steps import Make, answered_by

from .test_capture import methods, session_of


@pytest.fixture(autouse=True)
def _modules_take_fake_parameters() -> Iterator[None]:
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield
    torch.__future__.set_overwrite_module_params_on_conversion(before)


class FakeGPU:
    """Answers ``from_host`` with fake tensors, as captured steps have them in fixed places."""

    def __init__(self, at: Progress) -> None:
        self.at, self.mode = at, FakeTensorMode(allow_non_fake_inputs=True)

    def take(self, make: Make, device: torch.device) -> Mapping[str, Any]:
        with _disable_current_modes():
            values = make(self.at)
            return {k: self.fake(v) if isinstance(v, Tensor) else v for k, v in values.items()}

    def fake(self, value: Tensor) -> Tensor:
        with self.mode:
            return torch.empty(value.shape, dtype=value.dtype, device="cuda")


def copies_nothing(method: str, *overrides: str) -> None:
    """Go through the forward pass of the last stage twice: the first pass may fill caches."""
    session = session_of(method, *overrides)
    for earlier in session.stages[:-1]:
        if not earlier.steps_per_epoch(session):
            earlier.begin(session)
    stage = session.stages[-1]
    at = Progress(len(session.stages) - 1, 0, stage.epochs, 0, 3)
    micro = next(next(iter(stage.steps(session, at))))
    gpu = FakeGPU(at)
    x, y, *source = map(gpu.fake, (micro.x, micro.y, *(micro.source or ())))
    further = None if micro.unlabelled is None else gpu.fake(micro.unlabelled)
    index = None if micro.index is None else gpu.fake(micro.index)
    pair = (source[0], source[1]) if source else None
    batch = Batch(x, y, pair, further, index=index)
    closed = cast(Progress, ClosedProgress())
    with gpu.mode, answered_by(gpu):
        model = session.model.to("cuda").train()
        model(batch, closed)
        with NoQuestions():
            loss, _ = model(batch, closed)
    assert loss.device.type == "cuda"


@pytest.mark.parametrize("method", methods())
def test_no_method_copies_between_host_and_device(method: str) -> None:
    if method == "pare-by-distance":
        pytest.skip("it measures, which asks the device, and is not captured")
    copies_nothing(method)


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone",
    [
        "{use: vit-s14, pretrained: false, layers: 1}",
        "{use: swin, size: tiny, pretrained: false}",
        "{use: timm, name: vit_tiny_patch16_224, pretrained: false}",
    ],
)
def test_no_backbone_copies_between_host_and_device(backbone: str) -> None:
    copies_nothing("pare", f"backbone={backbone}")


def test_a_copy_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from xmodal_backbones.tiny import Tiny

    embed = Tiny.embed
    monkeypatch.setattr(Tiny, "embed", lambda self, x: embed(self, torch.ones(x.shape).to(x)))
    with pytest.raises(CannotBeCaptured, match="copies between host and device"):
        copies_nothing("pare")
