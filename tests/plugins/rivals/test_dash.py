"""The search of kernels: sums of candidates, planted kernels, resuming, loading, predicting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from xmodal import api, runs
from xmodal.engine import checkpoint
from xmodal.testing.running import StopAt, assert_same, weights
from xmodal_rivals.searched import Kernel, SearchedConvolution, candidates, chosen, convolved


@pytest.mark.parametrize(("axes", "extent"), [(1, 5), (1, 31), (2, 3), (2, 17)])
@pytest.mark.parametrize("stride", [1, 2])
def test_large_kernels_convolve_as_torch_does(axes: int, extent: int, stride: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *(19, 24)[:axes], generator=generator, dtype=torch.float64).float()
    kernel = torch.randn(4, 3, *[extent] * axes, generator=generator)
    function = nn.functional.conv1d if axes == 1 else nn.functional.conv2d
    expected = function(x, kernel, stride=stride, padding=extent // 2)
    torch.testing.assert_close(convolved(x, kernel, stride), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("axes", [1, 2])
def test_the_kernel_is_the_weighted_sum_of_dilated_convolutions(axes: int) -> None:
    kernels = (Kernel(3, 1), Kernel(3, 3), Kernel(5, 1), Kernel(5, 7))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = SearchedConvolution(2, 3, 2, axes, kernels)
        x = torch.randn(2, 2, *[40] * axes)
    layer.importance.data = torch.tensor([0.3, -1.0, 0.5, 2.0])
    expected = torch.zeros(2, 3, *[20] * axes)
    for share, weight, kernel in zip(
        layer.importance.softmax(0), layer.weights, kernels, strict=True
    ):
        alone = chosen(2, 3, 2, axes, kernel)
        alone.weight.data = weight.detach()
        expected = expected + share * alone(x)
    torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)
    assert layer.best() == Kernel(5, 7)


def test_candidates_stay_within_the_sample() -> None:
    found = candidates((3, 5), (1, 7), (10, 12))
    assert [(k.size, k.dilation, k.extent) for k in found] == [(3, 1, 3), (3, 7, 15), (5, 1, 5)]
    assert candidates((5, 9), (3,), (2,)) == (Kernel(5, 3),)  # at least the smallest


@pytest.mark.parametrize("planted", [Kernel(7, 1), Kernel(7, 7), Kernel(3, 3)])
def test_the_search_finds_a_planted_kernel(planted: Kernel) -> None:
    """A sequence is convolved with one candidate; the search must find which.

    A larger candidate that has all of its taps is as right as itself.
    """
    kernels = [Kernel(size, dilation) for size in (3, 7) for dilation in (1, 3, 7)]
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(32, 1, 64, generator=generator)
    truth = chosen(1, 1, 1, 1, planted)
    with torch.no_grad():
        # No tap is near zero, or a smaller kernel would be as good.
        truth.weight.copy_(torch.randn(truth.weight.shape, generator=generator).sign())
        y = truth(x)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = SearchedConvolution(1, 1, 1, 1, kernels)
    groups = [
        {"params": list(layer.weights), "lr": 0.02},
        {"params": [layer.importance], "lr": 0.05},
    ]
    optimizer = torch.optim.Adam(groups)
    for _ in range(100):
        optimizer.zero_grad()
        (layer(x) - y).square().mean().backward()
        optimizer.step()
    best = layer.best()
    assert best.dilation == planted.dilation
    assert best.size >= planted.size


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of sequences that differ in what lies seven places apart."""
    random = np.random.default_rng(0)
    noise = random.normal(size=(120, 1, 64)).astype("float32")
    label = np.arange(120) % 2
    echo = np.roll(noise, 7, axis=2) * np.where(label, 1.0, -1.0)[:, None, None]
    path = tmp_path_factory.mktemp("waves") / "waves.npz"
    np.savez(path, x=(noise + echo).astype("float32"), y=label)
    return path


def run(waves: Path, root: Path, observer: Any = None, **options: Any) -> runs.Run:
    overrides = [
        f"task.path={waves}",
        "training.max_steps=null",
        "stages.search-kernels.batch={size: 16}",
        "stages.finetune.batch={size: 16}",
        "predictor.dilations=[1, 7]",
        "predictor.sizes=[3]",
        "saving.every_steps=1",
        "saving.keep=50",
        "saving.finished=50",
    ]
    return api.run(
        "methods/dash",
        "arrays/sequence",
        scale="smoke",
        overrides=overrides,
        root=root,
        report=False,
        observer=observer,
        **options,
    ).run


@pytest.fixture(scope="module")
def whole(waves: Path, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    return run(waves, tmp_path_factory.mktemp("whole"))


def test_a_run_keeps_its_choice_and_predicts(whole: runs.Run, waves: Path) -> None:
    found = weights(whole)
    choice = found["predictor.choice"]
    assert choice.shape == (7, 2)  # the stem and two convolutions in each of three blocks
    assert set(map(tuple, choice.tolist())) <= {(3, 1), (3, 7)}
    assert not [name for name in found if "importance" in name]
    assert any("kernel size x dilation" in line for line in whole.read("result.json")["notes"])
    import xmodal

    x = np.load(waves)["x"]
    model = xmodal.load(whole.path)
    assert model.predict(x).shape == (120,)
    before = [p for p in whole.path.glob("checkpoints/*") if p.name.startswith("step-")]
    searching = [checkpoint.load(p)["model"] for p in before]
    assert any("predictor.body.stem.importance" in state for state in searching)


@pytest.mark.parametrize(
    "records",
    [pytest.param(n, marks=[] if n in (5, 12) else [pytest.mark.slow]) for n in (2, 5, 11, 12, 15)],
)
def test_resuming_changes_nothing(
    records: int, whole: runs.Run, waves: Path, tmp_path: Path
) -> None:
    """In the search, at its very end, and in the training of the network that was chosen."""
    with pytest.raises(RuntimeError, match="crash"):
        run(waves, tmp_path, StopAt(records))
    assert_same(weights(whole), weights(run(waves, tmp_path)))
