"""The five tasks: what is read of each published layout, shapes, normalisation and scores."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tests.plugins.pdebench.published import config, of, task, write_file
from xmodal.data.datasets import Preparation
from xmodal.data.store import Store
from xmodal.interfaces import Settings, Target
from xmodal_basics.metrics import NormalisedRMSE
from xmodal_pdebench import advection, burgers, reaction
from xmodal_pdebench.one_dimensional import (
    Advection,
    Burgers,
    DiffusionReaction,
    DiffusionSorption,
    NavierStokes,
)

TENSORS = [(Advection, 200), (Burgers, 200), (DiffusionReaction, 29)]
ALL = [*(kind for kind, _ in TENSORS), DiffusionSorption, NavierStokes]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def split(data: Any, name: str) -> tuple[Any, Any]:
    dataset = getattr(data, name)
    x, y = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    return torch.stack(x).numpy(), torch.stack(y).numpy()


def joined(data: Any, names: tuple[str, ...]) -> tuple[Any, Any]:
    """All samples in the order of the file."""
    parts = [split(data, name) for name in names]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


@pytest.mark.parametrize(("kind", "target"), TENSORS)
def test_files_with_one_tensor(kind: Any, target: int, tmp_path: Path, store: Store) -> None:
    path = write_file(kind, tmp_path, 11)
    x, y = joined(task(kind, store, path=path).load(0), ("test", "train", "validation"))
    with h5py.File(path) as file:
        assert np.array_equal(x[:, 0], file["tensor"][:, 0])
        assert np.array_equal(y[:, 0], file["tensor"][:, target])


def test_files_with_a_group_for_each_sample(tmp_path: Path, store: Store) -> None:
    path = write_file(DiffusionSorption, tmp_path, 12)
    with h5py.File(path, "a") as file:
        file.move("0003", "0012")  # groups count in the order of their numbers
        for group in file.values():
            group["grid/x"] = np.zeros(1024)  # published beside the data
    data = task(DiffusionSorption, store, path=path).load(0)
    x, y = joined(data, ("train", "validation", "test"))
    with h5py.File(path) as file:
        for row, name in enumerate(sorted(file)):
            assert np.array_equal(x[row, 0], file[name]["data"][0, :, 0])
            assert np.array_equal(y[row, 0], file[name]["data"][-1, :, 0])
        assert sorted(file)[11] == "0012"
    assert len(data.test) == 1  # type: ignore[arg-type]


def test_diffusion_sorption_by_either_scheme(store: Store) -> None:
    accurate, published = (
        task(DiffusionSorption, store, samples=10, resolution=16, scheme=scheme).load(0)
        for scheme in ("accurate", "published")
    )
    (x, y), (same_x, other_y) = accurate.train[0], published.train[0]
    assert torch.equal(x, same_x)
    assert 1e-5 < float((y - other_y).abs().max()) < 1e-2
    assert "solved by the published scheme" in published.notes[0]


def test_files_with_three_fields_and_the_released_normalisation(
    tmp_path: Path, store: Store
) -> None:
    path = write_file(NavierStokes, tmp_path, 12)
    one = task(NavierStokes, store, path=path)
    data = one.load(0)
    x, y = joined(data, ("test", "train", "validation"))
    names = ("density", "pressure", "Vx")
    with h5py.File(path) as file:
        before = np.concatenate([file[name][:, 0] for name in names], axis=1)
        after = np.concatenate([file[name][:, 100] for name in names], axis=1)
    train = before[1:11].astype(np.float64)
    mean, scale = train.mean(0), train.std(0, ddof=1) + 1e-5
    np.testing.assert_allclose(x[:, 0], (before - mean) / scale, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(y[:, 0], (after - mean) / scale, rtol=1e-4, atol=1e-5)
    facts = NavierStokes.describe(one.config, store)
    assert facts.shape == (1, 3072)
    assert facts.target == Target("dense", 1, (3072,))
    # A trained model reads raw fields, and answers in the normalised space that was scored.
    assert data.raw is not None
    raw = torch.from_numpy(before[:1].reshape(1, 3, 1024))
    np.testing.assert_allclose(data.raw.apply(raw)[0], x[0], atol=1e-6)
    assert data.raw.restore_labels(torch.ones(1, 1, 3072)).eq(1).all()


def test_navier_stokes_in_physical_space(tmp_path: Path, store: Store) -> None:
    path = write_file(NavierStokes, tmp_path, 12)
    one = task(NavierStokes, store, path=path, space="physical")
    facts = NavierStokes.describe(one.config, store)
    assert facts.shape == (3, 1024)
    assert facts.target == Target("dense", 3, (1024,))
    data = one.load(0)
    x, y = data.test[0]
    assert x.shape == y.shape == (3, 1024)
    with h5py.File(path) as file:
        after = np.stack([file[name][0, 100] for name in ("density", "pressure", "Vx")])
    np.testing.assert_allclose(data.in_unit(y[None])[0], after, atol=1e-5)
    assert abs(float(data.train[0][0].mean())) < 0.2


@pytest.mark.parametrize("kind", ALL)
def test_generated_and_published_have_one_form(kind: Any, tmp_path: Path, store: Store) -> None:
    one = task(kind, store, samples=10, resolution=8)
    data, facts = one.load(0), kind.describe(one.config, store)
    for name, count in facts.samples.items():
        x, y = split(data, name)
        assert x.shape == (count, *facts.shape)
        assert y.shape == (count, facts.target.size, *facts.target.shape)
        assert x.dtype == np.float32
    assert kind.problem.same in data.notes[0]
    # Without data, facts are those of the published file.
    published = kind.describe(config(kind), store)
    assert published.samples == {"train": 8100, "validation": 900, "test": 1000}
    assert published.shape[-1] == (3072 if kind is NavierStokes else 1024)


@pytest.mark.parametrize("kind", ALL)
def test_a_prepared_file_of_every_layout(kind: Any, tmp_path: Path, store: Store) -> None:
    path, twelve = write_file(kind, tmp_path, 12), of(kind, 12)
    one = config(twelve)
    wanted = Preparation(store.root, files={path.name: path})
    store.make_dataset(twelve.card(one), lambda folder: twelve.prepare(one, wanted, folder))
    found = task(twelve, store).load(0).checksum
    assert found == task(kind, store, path=path).load(0).checksum
    card = kind.card(one)
    assert card.fetchable
    assert card.generable
    assert card.files[0].md5 is not None
    assert card.benchmark == "PDEBench"


def test_the_score_is_pdebenchs_normalised_rmse() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(7, 1, 50)) * np.arange(1, 8)[:, None, None]
    guess = y + rng.normal(size=y.shape)
    target = SimpleNamespace(kind="dense", size=1)
    context: Any = SimpleNamespace(output=target)
    metric = NormalisedRMSE(Settings(), context)
    for part in (slice(0, 2), slice(2, 7)):  # unequal batches
        metric.update(torch.from_numpy(guess[part]), torch.from_numpy(y[part]))
    each = np.sqrt(((guess - y) ** 2).mean((1, 2))) / np.sqrt((y**2).mean((1, 2)))
    assert metric.compute() == pytest.approx(each.mean(), rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "solve"),
    [
        (Advection, lambda u: advection.advect(u, advection.END)),
        (Burgers, lambda u: burgers.evolve(u, burgers.END)),
        (DiffusionReaction, lambda u: reaction.evolve(u, reaction.END, reaction.STEPS)),
    ],
)
def test_on_a_ring_a_shifted_start_ends_shifted(kind: Any, solve: Any, store: Store) -> None:
    settings = {"samples": 10, "resolution": 32}
    one = task(kind, store, **settings)
    data, facts = one.load(0), kind.describe(one.config, store)
    assert data.symmetry is not None
    assert (data.symmetry.name, data.symmetry.size) == (facts.symmetry, facts.moves)
    assert facts.moves == 32
    x, y = data.train[2]
    for element in (1, 7, 31):
        moved_x, moved_y = data.symmetry(x, y, element)
        solved = solve(moved_x.double().numpy())
        np.testing.assert_allclose(solved, moved_y.numpy(), atol=1e-5)
        np.testing.assert_allclose(moved_x.numpy(), np.roll(x.numpy(), element, axis=1))
        back_x, back_y = data.symmetry(moved_x, moved_y, 32 - element)
        assert torch.equal(back_x, x)
        assert torch.equal(back_y, y)


@pytest.mark.parametrize("kind", [DiffusionSorption, NavierStokes])
def test_where_points_differ_nothing_is_shifted(kind: Any, tmp_path: Path, store: Store) -> None:
    one = task(kind, store, path=write_file(kind, tmp_path, 11))
    assert one.load(0).symmetry is None
    assert kind.describe(one.config, store).symmetry == ""
