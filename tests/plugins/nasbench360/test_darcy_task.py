"""The Darcy task: configuration, cache, split, normalisation and the published files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file
from scipy.io import savemat
from torch import Tensor

from xmodal.data.store import Store
from xmodal.errors import DataError
from xmodal.interfaces import Loss, Metric, Target
from xmodal.settings import Use
from xmodal_nasbench360 import darcy_data
from xmodal_nasbench360.darcy import Darcy
from xmodal_nasbench360.darcy_samples import Grid, draw

pytestmark = pytest.mark.slow


class AnyLoss(Loss):
    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction - y).flatten(1).mean(1)


class AnyMetric(Metric):
    def reset(self) -> None: ...
    def update(self, prediction: Tensor, y: Tensor) -> None: ...
    def compute(self) -> float:
        return 0.0


PARTS: dict[str, Any] = {
    "loss": Use("any", AnyLoss, AnyLoss.Config()),
    "metric": Use("any", AnyMetric, AnyMetric.Config()),
}
SMALL: dict[str, Any] = {
    "resolution": 11,
    "solver_grid": 21,
    "train": 12,
    "validation": 5,
    "test": 6,
}


def task(store: Store, **settings: Any) -> Darcy:
    config = Darcy.Config(**{**PARTS, **SMALL, **settings})
    return Darcy(config, SimpleNamespace(store=store))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def test_facts_and_samples_agree(store: Store) -> None:
    one = task(store)
    facts = Darcy.describe(one.config, store)
    assert not list((store.root / "built").glob("*"))
    data = one.load(seed=0)
    assert facts.shape == (3, 11, 11)
    assert facts.family == "pde"
    assert facts.target == Target("dense", 1, (11, 11))
    assert facts.samples == {"train": 12, "validation": 5, "test": 6}
    for split, count in facts.samples.items():
        dataset = getattr(data, split)
        assert len(dataset) == count
        x, y = dataset[count - 1]
        assert x.shape == facts.shape
        assert y.shape == (1, 11, 11)
        assert x.dtype == y.dtype == torch.float32


def test_normalisation_uses_training_samples_only(store: Store) -> None:
    data = task(store).load(0)
    x = torch.stack([data.train[i][0] for i in range(12)])
    y = torch.stack([data.train[i][1] for i in range(12)])
    moving = x[:, 0].std(0) > 0
    assert torch.allclose(x[:, 0].mean(0)[moving], torch.zeros(1), atol=1e-5)
    assert torch.allclose(x[:, 0].std(0)[moving], torch.ones(1), atol=1e-3)
    # As published: numpy.meshgrid's own order, the position along columns first.
    columns, rows = np.meshgrid(np.linspace(0, 1, 11), np.linspace(0, 1, 11))
    assert np.allclose(x[0, 1], columns, atol=1e-7)
    assert np.allclose(x[0, 2], rows, atol=1e-7)
    assert columns[0, 10] == 1.0
    assert columns[10, 0] == 0.0
    encoded = (y - y.mean(0)) / (y.std(0) + 1e-5)
    assert torch.allclose(data.decode(encoded), y, atol=1e-7)
    assert 0 < y.max() < 0.05
    assert not y[:, :, 0].any()
    assert set(dict(data.decode.named_buffers())) == {"mean", "std"}


def test_the_data_are_those_of_the_generator(store: Store) -> None:
    data = task(store, coordinates=False).load(0)
    expected = draw(0, 1, 3, Grid(11, 21))[1].astype(np.float32)
    assert np.array_equal(data.test[3][1][0].numpy(), expected)
    assert data.test[3][0].shape == (1, 11, 11)
    expected = draw(0, 0, 13, Grid(11, 21))[1].astype(np.float32)
    assert np.array_equal(data.validation[1][1][0].numpy(), expected)


def test_run_seed_changes_nothing_and_data_seed_everything(store: Store) -> None:
    first = task(store).load(0)
    assert task(store).load(7).checksum == first.checksum
    assert task(store, data_seed=1).load(0).checksum != first.checksum
    assert task(store, placement="published").load(0).checksum != first.checksum


def test_test_samples_are_not_training_samples(store: Store) -> None:
    data = task(store, train=40, validation=5, test=40).load(0)
    train = {data.train[i][1].numpy().tobytes() for i in range(40)}
    test = {data.test[i][1].numpy().tobytes() for i in range(40)}
    assert len(train) == len(test) == 40
    assert not train & test


def test_a_larger_set_extends_a_smaller_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid(6, 11)
    small = darcy_data.generate(store, grid, 0, 0, 10, "fields")
    calls: list[int] = []
    monkeypatch.setattr(darcy_data, "draw", lambda *key: calls.append(key[2]) or draw(*key))
    large = darcy_data.generate(store, grid, 0, 0, 60, "fields")
    assert sorted(calls) == list(range(50, 100))
    assert np.array_equal(large[1][:10], small[1])
    assert load_file(next((store.root / "built").rglob("*.safetensors")))["u"].dtype == np.float32


def test_an_interrupt_leaves_complete_chunks_only(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(seed: int, stream: int, index: int, grid: Grid) -> Any:
        if index == 70:
            raise KeyboardInterrupt
        return draw(seed, stream, index, grid)

    monkeypatch.setattr(darcy_data, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        darcy_data.generate(store, Grid(6, 11), 0, 0, 100, "fields")
    kept = list((store.root / "built").glob("*/fields.safetensors"))
    assert len(kept) == 1
    monkeypatch.setattr(darcy_data, "draw", draw)
    assert len(darcy_data.generate(store, Grid(6, 11), 0, 0, 100, "fields")[0]) == 100


def test_progress_goes_to_standard_error(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    darcy_data.generate(store, Grid(6, 11), 0, 0, 20, "Darcy flow")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Darcy flow: 50 of 50" in shown.err
    darcy_data.generate(store, Grid(6, 11), 0, 0, 20, "Darcy flow")
    assert capsys.readouterr().err == ""


def test_grids_must_nest() -> None:
    with pytest.raises(ValidationError, match="try 21"):
        Darcy.Config(**{**PARTS, **SMALL, "solver_grid": 22})
    for resolution, solver_grid in ((85, 421), (85, 169), (85, 85), (43, 211), (43, 169)):
        Darcy.Config(**{**PARTS, "resolution": resolution, "solver_grid": solver_grid})


def write_published(folder: Path, version: str, count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Both files in one of the two MATLAB formats; returns a and u of the training file."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    kept = []
    for name in (darcy_data.TRAIN_FILE, darcy_data.TEST_FILE):
        a = np.where(rng.random((count, 21, 21)) < 0.5, 12.0, 3.0)
        u = rng.random((count, 21, 21))
        kept.append((a, u))
        if version == "5":
            savemat(folder / name, {"coeff": a, "sol": u})
        else:
            with h5py.File(folder / name, "w") as file:
                for key, array in (("coeff", a), ("sol", u)):
                    file[key] = array.transpose(2, 1, 0)
                    file[key].attrs["MATLAB_class"] = np.bytes_("double")
    return kept[0]


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_published_files(store: Store, tmp_path: Path, version: str) -> None:
    _, u = write_published(tmp_path / "files", version)
    one = task(store, path=str(tmp_path / "files"))
    data = one.load(0)
    assert Darcy.describe(one.config, store).samples["test"] == 6
    got = data.train[2][1][0].numpy()
    assert np.array_equal(got, u[2, ::2, ::2].astype(np.float32))
    assert data.checksum == one.load(0).checksum
    assert "published" in data.notes[0]


def test_published_files_that_are_missing_or_wrong(store: Store, tmp_path: Path) -> None:
    missing = task(store, path=str(tmp_path))
    with pytest.raises(DataError, match="17anR"):
        Darcy.describe(missing.config, store)
    write_published(tmp_path / "files", "5", count=10)
    with pytest.raises(DataError, match=r"shape \(10, 21, 21\)"):
        task(store, path=str(tmp_path / "files")).load(0)
    with pytest.raises(DataError, match="cannot be thinned"):
        task(store, path=str(tmp_path / "files"), resolution=12, train=5, validation=2).load(0)
    (tmp_path / "files" / darcy_data.TRAIN_FILE).write_bytes(b"not a matlab file at all" * 20)
    with pytest.raises(DataError, match=r"cannot be read as \.mat"):
        task(store, path=str(tmp_path / "files")).load(0)


def test_the_published_files_identify_the_data(store: Store, tmp_path: Path) -> None:
    def identified() -> dict[str, str]:
        return dict(Darcy.contents(task(store, path=str(tmp_path / "files")).config, store))

    write_published(tmp_path / "files", "5")
    first = identified()
    (tmp_path / "files" / "beside.mat").write_text("x")
    assert identified() == first
    with (tmp_path / "files" / darcy_data.TEST_FILE).open("ab") as file:
        file.write(b"x")
    assert identified() != first
    assert Darcy.contents(task(store).config, store) == {}
