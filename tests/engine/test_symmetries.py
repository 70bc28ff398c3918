"""``augment: true``: who gets moved samples, and that a run with them resumes bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xmodal import api, plugins, runs
from xmodal.batch import Progress
from xmodal.data import loader
from xmodal.data.augment import Copies, Symmetric, turned
from xmodal.data.store import Store
from xmodal.engine.build import Builder
from xmodal.engine.plan import compose_plan
from xmodal.errors import RecipeError
from xmodal.testing.running import StopAt, assert_same, weights

FIELDS = "task={use: darcy, train: 12, validation: 4, test: 4, resolution: 9, solver_grid: 9}"
NETWORK = (
    "embedder={use: patch, size: native, patch: 3}",
    "predictor={use: dense, fit: resize}",
)


def settings(method: str, overrides: tuple[str, ...]) -> list[str]:
    return [FIELDS, "device=cpu", *(NETWORK if method == "nft" else ()), *overrides]


def builder(method: str, *overrides: str) -> Builder:
    names = [f"methods/{method}", "tasks/darcy"]
    spelled = settings(method, overrides)
    made = compose_plan(names, plugins.registry(), Store(), spelled, "smoke")
    return Builder(made, Store(), lambda line: None)


def run(root: Path, method: str, *overrides: str, **more: Any) -> runs.Run:
    return api.run(
        f"methods/{method}",
        "tasks/darcy",
        scale="smoke",
        overrides=settings(method, overrides),
        root=root,
        report=False,
        **more,
    ).run


def test_networks_see_another_move_in_every_epoch() -> None:
    made = builder("nft", "augment=true")
    held = made.session(made.data())
    assert isinstance(held.data.train, Symmetric)

    def fields(epoch: int) -> list[Tensor]:
        now = held.now(Progress(0, epoch, 2, 0, 3))
        return [now[n][1] for n in range(12)]

    plain = [held.data.train[n][1] for n in range(12)]
    seen = [fields(epoch) for epoch in (0, 1, 0)]
    for n in range(12):
        moved = [turned(plain[n], element) for element in range(8)]
        assert all(any(torch.equal(one[n], m) for m in moved) for one in seen)
        assert torch.equal(seen[0][n], seen[2][n])
    assert any(not torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True))
    # What judges a model, and what it was normalised by, stays as it is.
    assert not isinstance(held.data.validation, Symmetric)
    assert not isinstance(held.data.test, Symmetric)


def test_without_it_nothing_moves() -> None:
    data = builder("nft").data()
    assert data.symmetry is not None
    assert loader.tensors(data.train) is not None


def test_what_is_fitted_once_gets_copies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from xmodal_basics.majority import Majority

    counts, means = [], []
    plain = Majority.fit

    def counted(self: Majority, data: Any) -> None:
        counts.append((len(data.x_NF), len(data.y)))
        means.append(data.decode(data.y).mean(0))
        plain(self, data)

    monkeypatch.setattr(Majority, "fit", counted)
    run(tmp_path, "majority", "augment=true")
    run(tmp_path, "majority")
    assert counts == [(96, 96), (12, 12)]
    # The mean of all eight moves looks the same from all sides.
    for element in range(8):
        torch.testing.assert_close(turned(means[0], element), means[0], atol=1e-6, rtol=1e-5)
    assert (turned(means[1], 1) - means[1]).abs().max() > 1e-4
    made = builder("majority", "augment=true")
    assert isinstance(Copies(made.data().train), Copies)


@pytest.mark.long
def test_a_run_with_moved_samples_resumes_bit_equal(tmp_path: Path) -> None:
    overrides = ("augment=true", "saving.every_steps=1", "training.epochs=3")
    whole = run(tmp_path / "whole", "nft", *overrides)
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "cut", "nft", *overrides, observer=StopAt(4))
    resumed = run(tmp_path / "cut", "nft", *overrides)
    assert_same(weights(whole), weights(resumed))
    plain = run(tmp_path / "plain", "nft", *overrides[1:])
    with pytest.raises(AssertionError):
        assert_same(weights(whole), weights(plain))


def test_a_task_without_a_symmetry_refuses() -> None:
    names = ["methods/nft", "tasks/car"]
    with pytest.raises(RecipeError, match=r"(?s)augment.*states no symmetry"):
        compose_plan(names, plugins.registry(), Store(), ["augment=true"], "smoke")


def test_copies_count_as_samples_before_memory_is_asked_for() -> None:
    many = ("task.train=9000", "task.resolution=85", "task.solver_grid=85")
    builder("baseline", *many)
    with pytest.raises(RecipeError, match="flattened training split"):
        builder("baseline", *many, "augment=true")
