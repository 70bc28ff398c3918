"""deepCR: its own program's probabilities, whatever the task's standardising."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from xmodal.data import RawForm
from xmodal.interfaces import FitData, Target
from xmodal_rivals.deepcr import DeepCR, folded

from .tables import context, predict

SHAPE = (1, 22, 31)
needs = pytest.mark.skipif(
    importlib.util.find_spec("learned_models") is None, reason="deepCR is not installed"
)


def images() -> Tensor:
    """A sky of 60 electrons with two tracks."""
    x = 60 + 5 * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    x[0, 0, 5:15, 12] += 900
    x[1, 0, 8, 3:20] += 700
    return x


def made(x: Tensor, raw: RawForm | None = None) -> Any:
    around = context(Target("dense", 1, SHAPE[1:]), SHAPE, ())
    predictor = DeepCR(DeepCR.Config(), around)
    predictor.fit(FitData(x.flatten(1), x, x[:0].flatten(1), x[:0], raw=raw))
    return predictor


@needs
def test_it_is_the_published_program() -> None:
    pytest.importorskip("skimage")
    deepCR = pytest.importorskip("deepCR")
    x = images()
    program = deepCR.deepCR(mask="ACS-WFC", device="CPU")
    p = torch.stack(
        [torch.from_numpy(program.clean(i[0].numpy(), binary=False)).float() for i in x]
    )
    torch.testing.assert_close(predict(made(x), x)[:, 0].sigmoid(), p, atol=1e-5, rtol=1e-4)


@needs
def test_it_finds_tracks_whatever_the_task_standardises() -> None:
    x = images()
    plain = made(x)
    logits = predict(plain, x)
    assert logits.shape == (2, *SHAPE)
    assert (logits[0, 0, 5:15, 12] > 0).all()
    assert (logits[0, 0, :, 20:] < 0).all()
    mean, scale = torch.full((1, 1, 1), 100.0), torch.full((1, 1, 1), 37.0)
    raw = RawForm(SHAPE, SHAPE, mean=mean, scale=scale)
    standardised = (x - 100) / 37
    torch.testing.assert_close(
        predict(made(standardised, raw), standardised), logits, atol=1e-3, rtol=1e-3
    )
    fresh = DeepCR(DeepCR.Config(), context(Target("dense", 1, SHAPE[1:]), SHAPE, ()))
    fresh.load_state_dict(plain.state_dict())
    assert torch.equal(predict(fresh, x), logits)


def test_a_batch_norm_is_folded_into_its_convolution() -> None:
    torch.manual_seed(0)
    net = torch.nn.ModuleDict({"a": torch.nn.Conv2d(2, 3, 3), "b": torch.nn.BatchNorm2d(3)}).eval()
    for value in net["b"].state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(3) + 0.5)
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    x = torch.randn(2, 2, 6, 6)
    found = torch.nn.functional.conv2d(x, *folded(state, "a", "b"))
    torch.testing.assert_close(found, net["b"](net["a"](x)), atol=1e-5, rtol=1e-5)


def test_what_it_cannot_read_is_refused() -> None:
    def problems(output: Target, shape: tuple[int, ...]) -> list[str]:
        return list(DeepCR.problems(DeepCR.Config(), context(output, shape, ()).facts))

    assert problems(Target("dense", 1, (8, 8)), (1, 8, 8)) == []
    (channels,) = problems(Target("dense", 1, (8, 8)), (3, 8, 8))
    assert "one channel" in channels
    (classes,) = problems(Target("classification", 2), (1, 8, 8))
    assert "one map" in classes
    field = context(Target("dense", 1, (8, 8)), (1, 8, 8), (), family="pde").facts
    (pde,) = DeepCR.problems(DeepCR.Config(), field)
    assert pde == "deepcr finds cosmic rays in images; task 'toy' is of family pde"
