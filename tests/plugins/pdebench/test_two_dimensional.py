"""PDEBench's tasks in two dimensions: files, splits, grids, generation, and coarse answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tests.plugins.pdebench.published import config, of, task, write_file
from xmodal.data import RawForm
from xmodal.data.datasets import Preparation
from xmodal.data.store import Store
from xmodal_pdebench import darcy_flow, reaction_diffusion_2d, shallow_water
from xmodal_pdebench.two_dimensional import DarcyFlow, DiffusionReaction2D, ShallowWater

ALL = (DarcyFlow, ShallowWater, DiffusionReaction2D)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def everything(data: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    dataset = getattr(data, split)
    x, y = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    return torch.stack(x).numpy(), torch.stack(y).numpy()


def write_paths(kind: Any, folder: Path, samples: int, channels: int) -> Path:
    """A file of groups in the published layout, of which only the first and last time are there.

    In the middle HDF5 would read zeros; a task that used it would not give these numbers.
    """
    path, rng = folder / kind.problem.file.name, np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for row in range(samples):
            shape = (101, 128, 128, channels)
            data = file.create_dataset(f"{row:04d}/data", shape, np.float32, chunks=(1, *shape[1:]))
            file[f"{row:04d}/grid/x"] = np.linspace(-1, 1, 128)
            for time in (0, 100):
                data[time] = rng.normal(size=shape[1:])
    return path


@pytest.mark.parametrize(("kind", "channels"), [(ShallowWater, 1), (DiffusionReaction2D, 2)])
def test_groups_as_h5py_reads_them(kind: Any, channels: int, tmp_path: Path, store: Store) -> None:
    """x: channel 0 at the first time; y: the last channel at the last time; the last tenth tests.

    For reaction-diffusion that is u(0) and v(T), as the released loader has it.
    """
    path = write_paths(kind, tmp_path, 20, channels)
    one = task(kind, store, path=path)
    data = one.load(0)
    with h5py.File(path, "r") as file:
        groups = [file[name]["data"] for name in sorted(file)]
        x = np.stack([group[0, :, :, 0] for group in groups])
        y = np.stack([group[-1, :, :, -1] for group in groups])
    rows = {"train": range(16), "validation": range(16, 18), "test": range(18, 20)}
    for name, of_split in rows.items():
        got_x, got_y = everything(data, name)
        assert np.array_equal(got_x[:, 0], x[of_split])
        assert np.array_equal(got_y[:, 0], y[of_split])
    facts = kind.describe(one.config, store)
    assert facts.shape == (1, 128, 128)
    assert facts.target.shape == (128, 128)
    assert facts.samples == {name: len(of_split) for name, of_split in rows.items()}


@pytest.mark.parametrize("loader", ["paper", "released"])
def test_darcy_as_h5py_reads_it(loader: str, tmp_path: Path, store: Store) -> None:
    """128 x 128 as the paper's Table 9 says, or every second point; the first tenth tests."""
    path = write_file(DarcyFlow, tmp_path, 20)
    one = task(DarcyFlow, store, path=tmp_path, loader=loader)
    step = 1 if loader == "paper" else 2
    with h5py.File(path, "r") as file:
        nu, u = file["nu"][:, ::step, ::step], file["tensor"][:, 0, ::step, ::step]
    data = one.load(0)
    for name, of_split in {"test": slice(0, 2), "train": slice(2, 18)}.items():
        got_x, got_y = everything(data, name)
        assert np.array_equal(got_x[:, 0], nu[of_split])
        assert np.array_equal(got_y[:, 0], u[of_split])
    assert DarcyFlow.describe(one.config, store).shape == (1, 128 // step, 128 // step)


@pytest.mark.parametrize(
    ("kind", "solver"),
    [
        (DarcyFlow, darcy_flow),
        (ShallowWater, shallow_water),
        (DiffusionReaction2D, reaction_diffusion_2d),
    ],
)
def test_generated_is_what_the_solver_gives(kind: Any, solver: Any, store: Store) -> None:
    data = task(kind, store, samples=12, resolution=16).load(0)
    x, y = solver.samples(0, 12, 16)
    rows = slice(0, 1) if kind is DarcyFlow else slice(11, 12)
    got_x, got_y = everything(data, "test")
    assert np.array_equal(got_x, x[rows].astype(np.float32))
    assert np.array_equal(got_y, y[rows].astype(np.float32))
    twelve = of(kind, 12)
    cfg = config(twelve)
    store.make_dataset(
        twelve.card(cfg),
        lambda folder: twelve.prepare(
            cfg, Preparation(store.root / "scratch", generate=True, resolution=16, jobs=2), folder
        ),
    )
    assert task(twelve, store).load(0).checksum == data.checksum


def test_names() -> None:
    """NAS-Bench-360 has a data set 'darcy', too."""
    cards = [kind.card(config(kind)) for kind in ALL]
    assert [card.name for card in cards] == [
        "darcy-pdebench",
        "shallow-water",
        "diffusion-reaction-2d",
    ]
    facts = [kind.describe(config(kind), Store()) for kind in ALL]
    assert [one.name for one in facts] == [
        "pdebench/darcy",
        "pdebench/shallow-water",
        "pdebench/diffusion-reaction-2d",
    ]
    assert [one.samples["test"] for one in facts] == [1000, 100, 100]
    assert all(card.generable and card.fetchable for card in cards)


@pytest.mark.parametrize("loader", ["paper", "released"])
def test_a_coarse_answer_has_the_shape_and_place_of_the_labels(loader: str, store: Store) -> None:
    data = task(DarcyFlow, store, samples=10, resolution=32, loader=loader).load(0)
    x, y = everything(data, "train")
    raw = RawForm(x.shape[1:], x.shape[1:])
    cfg = config(DarcyFlow, loader=loader)
    errors = []
    for points in (8, 31):
        solved = DarcyFlow.coarse(cfg, x.astype(np.float64), points, raw)
        assert solved.shape == y.shape
        gap = np.linalg.norm((solved - y).reshape(len(y), -1), axis=1)
        errors.append((gap / np.linalg.norm(y.reshape(len(y), -1), axis=1)).mean())
    assert errors[1] < 0.25
    assert errors[1] < errors[0]
