"""The predictor ``kernels``: both kinds of features step by step, and what it is fitted to."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xmodal.batch import Tokens
from xmodal.interfaces import Facts, FitData, Target, TaskFacts
from xmodal.testing import tiny_context
from xmodal_basics import kernels
from xmodal_basics.identity import Identity
from xmodal_basics.kernels import Competition, ConvolutionKernels, Shares, dilations

CLASSES = Target("classification", 2)
TRIPLES = list(combinations(range(9), 3))


def facts(shape: tuple[int, ...], output: Target = CLASSES, train: int = 40) -> Facts:
    return Facts(
        TaskFacts("toy", shape, output, {"train": train}),
        Identity.describe(None, None),  # type: ignore[arg-type]
        grid=(1,),
    )


def made(shape: tuple[int, ...], output: Target = CLASSES, **settings: Any) -> ConvolutionKernels:
    settings = {"shares": 168, "wins": 128, **settings}
    return ConvolutionKernels(
        ConvolutionKernels.Config(**settings), tiny_context(facts(shape, output))
    ).eval()


def tones(count: int, channels: int = 1, length: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise with a slow or a fast tone of any phase: their points say nothing by themselves."""
    draw = np.random.default_rng(seed)
    y = np.arange(count) % 2
    time, phase = np.arange(length), draw.uniform(0, 2 * np.pi, (count, channels, 1))
    x = np.sin(phase + time * (0.5 + 0.5 * y)[:, None, None]) + 0.5 * draw.normal(
        size=(count, channels, length)
    )
    return torch.from_numpy(x).float(), torch.from_numpy(y)


def response(x_CL: Any, weight_CK: Any, dilation: int) -> Any:
    """By the definition: step t of a kernel meets point i + (t - 4) * dilation; 0 beyond ends."""
    channels, length = x_CL.shape
    found = np.zeros(length)
    for i in range(length):
        for c in range(channels):
            for t in range(9):
                place = i + (t - 4) * dilation
                if 0 <= place < length:
                    found[i] += weight_CK[c, t] * x_CL[c, place]
    return found


def on_grid(x: Tensor) -> Tensor:
    return (x * kernels.GRID).round() / kernels.GRID


def test_shares_by_the_definition() -> None:
    x = on_grid(torch.randn(3, 2, 21, generator=torch.Generator().manual_seed(0)))
    part = Shares(2, 21, 3 * 84, torch.Generator().manual_seed(1))
    part.calibrate(x, torch.Generator().manual_seed(2))
    found = part(x)
    column = 0
    assert [dilation for dilation, _ in part.plan] == [1, 2]
    for number, (dilation, count) in enumerate(part.plan):
        weight = part.get_buffer(f"weight_{number}").numpy()
        for j, triple in enumerate(TRIPLES):
            kernel = np.full(9, -1.0)
            kernel[list(triple)] = 2
            for row in weight[j]:
                assert (row == kernel).all() or not row.any()
            assert weight[j].any()
        for t in range(count):
            threshold = part.get_buffer(f"threshold_{number}")[:, t].numpy()
            for j in range(0, 84, 17):
                for b in range(3):
                    above = response(x[b].numpy(), weight[j], dilation) > threshold[j]
                    if j % 2 != number % 2:
                        above = above[4 * dilation : 21 - 4 * dilation]
                    assert found[b, column + j].item() == pytest.approx(above.mean(), abs=1e-6)
            column += 84
    assert found.shape == (3, column)


def test_thresholds_are_quantiles_of_a_training_sample() -> None:
    """Of the sample that they are drawn from, what is left of the level is above."""
    x = on_grid(torch.randn(1, 1, 400, generator=torch.Generator().manual_seed(0)))
    part = Shares(1, 400, 2 * 84, torch.Generator().manual_seed(1))
    part.calibrate(x, torch.Generator().manual_seed(2))
    share = part(x)[0, :84].view(84)
    first_dilation, count = part.plan[0]
    assert (first_dilation, count) == (1, 1)
    golden = (1 + 5**0.5) / 2
    level = torch.arange(1, 85).double() * golden % 1
    whole = torch.arange(84) % 2 == 0  # those that read the ends too, as the quantiles do
    torch.testing.assert_close(share[whole].double(), 1 - level[whole], atol=3 / 400, rtol=0)


def test_competition_by_the_definition() -> None:
    x = torch.randn(2, 3, 30, generator=torch.Generator().manual_seed(0))
    part = Competition(3, 30, 96, torch.Generator().manual_seed(1))
    found = part(x)
    column = 0
    for number, (dilation, half) in enumerate(part.plan):
        weight = part.get_buffer(f"weight_{number}")
        series = x.diff(dim=2) if half else x
        for b in range(2):
            for g in range(len(weight) // 8):
                own = [
                    response(series[b].numpy(), weight[8 * g + j].numpy(), dilation)
                    for j in range(8)
                ]
                most, least = np.zeros(8), np.zeros(8)
                for moment in np.stack(own, axis=1):
                    most[moment.argmax()] += moment.max()
                    least[moment.argmin()] += 1
                at = column + 8 * g
                expected = np.sqrt(most.clip(0))
                np.testing.assert_allclose(found[b, at : at + 8], expected, rtol=1e-4, atol=1e-5)
                at += len(weight)
                np.testing.assert_allclose(found[b, at : at + 8], np.sqrt(least), rtol=1e-6)
        column += 2 * len(weight)
    assert found.shape == (2, column)
    # Weights have mean 0 and sum of sizes 1, so a constant series says nothing but at its ends.
    weight = part.get_buffer("weight_0").sum(1)
    torch.testing.assert_close(weight.sum(1), torch.zeros(len(weight)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("length", "last"), [(9, 1), (16, 1), (17, 2), (46, 5), (1000, 124)])
def test_dilations_reach_as_far_as_a_kernel_fits(length: int, last: int) -> None:
    found = list(dilations(length, 119))
    assert sum(count for _, count in found) == 119
    assert [found[0][0], found[-1][0]] == [1, last]
    assert 8 * last < length
    assert len(found) <= 8


def test_features_do_not_depend_on_the_batch() -> None:
    """Bit for bit, though convolutions of other batches add up in another order."""
    x, _ = tones(64, channels=3)
    part = Shares(3, 60, 840, torch.Generator().manual_seed(0))
    part.calibrate(on_grid(x), torch.Generator().manual_seed(1))
    whole = part(on_grid(x))
    for rows in (slice(0, 1), slice(5, 12)):
        assert torch.equal(part(on_grid(x[rows])), whole[rows])


@pytest.mark.parametrize("part", [{"wins": 0}, {"shares": 0}, {}])
def test_what_the_points_do_not_say_is_learned(part: dict[str, int]) -> None:
    (x, y), (more, wanted) = tones(80, 2), tones(200, 2, seed=1)
    model, heard = made((2, 60), **part), list[str]()
    model.note = heard.append
    model.fit(FitData(x.flatten(1), y, more[:50].flatten(1), wanted[:50]))
    found = model(Tokens(more.flatten(1)[:, None], (1,)))
    torch.testing.assert_close(found.exp().sum(1), torch.ones(200))
    assert (found.argmax(1) == wanted).float().mean() > 0.95
    assert "squared error" in heard[0]
    assert model.chosen()["inverse_penalties"][0] in ConvolutionKernels.Config().inverse_penalties


def test_long_series_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, y), (more, _) = tones(20), tones(7, seed=1)
    model = made((1, 60))
    model.fit(FitData(x.flatten(1), y, x.flatten(1)[:0], y[:0]))
    rows = Tokens(more.flatten(1)[:, None], (1,))
    whole = model(rows)
    assert model.traceable
    monkeypatch.setattr(kernels, "MOST_RESPONSES", 3 * 84 * 60)
    assert not model.traceable
    torch.testing.assert_close(model(rows), whole, atol=1e-5, rtol=0)


def test_what_it_is_not_for() -> None:
    def problems(shape: tuple[int, ...], **settings: Any) -> list[str]:
        return list(
            ConvolutionKernels.problems(ConvolutionKernels.Config(**settings), facts(shape))
        )

    assert not problems((1, 9))
    assert not problems((96, 200))
    assert "9 steps, the series 8" in problems((1, 8))[0]
    assert "at most 128 rows" in problems((3, 96, 96))[0]
    assert "at most 128 rows" in problems((7,))[0]
    assert "no features" in problems((1, 20), shares=0, wins=0)[0]


def test_spikes_and_gaps_have_features() -> None:
    x, y = tones(20)
    x[0, 0, 3], x[1, 0, :] = 1e30, float("nan")
    model = made((1, 60))
    model.fit(FitData(x.flatten(1), y, x.flatten(1)[:0], y[:0]))
    assert model(Tokens(x.flatten(1)[:, None], (1,))).isfinite().all()
