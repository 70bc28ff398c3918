"""What all tasks of PDEBench share: published files, the ready folder, generation, splits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.plugins.pdebench.published import config, of, task, write_file
from xmodal.data.datasets import Preparation
from xmodal.data.store import Store
from xmodal.errors import DataError
from xmodal_pdebench import arrays, layout
from xmodal_pdebench.one_dimensional import Advection, DiffusionSorption
from xmodal_pdebench.task import split

Twenty = of(Advection, 20)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(Advection, tmp_path_factory.mktemp("published"), 20)


def read(path: Path) -> np.ndarray[Any, Any]:
    with h5py.File(path, "r") as file:
        return np.asarray(file["tensor"][:])


def everything(data: Any, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    dataset = getattr(data, split)
    x, y = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    return torch.stack(x), torch.stack(y)


def prepared(store: Store, **wanted: Any) -> Path:
    cfg = config(Twenty)
    scratch = store.root / "scratch"
    return store.make_dataset(
        Twenty.card(cfg), lambda folder: Twenty.prepare(cfg, Preparation(scratch, **wanted), folder)
    )


@pytest.mark.parametrize("stride", [1, 4])
def test_a_published_file_is_read_as_h5py_reads_it(
    published: Path, store: Store, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "PIECE", 3 * 8 * 1024)  # three samples at a time
    loader = "paper" if stride == 1 else "released"
    one = task(Advection, store, path=published, loader=loader)
    data = one.load(0)
    tensor = read(published)[:, :, ::stride]
    rows = {"test": [0, 1], "train": list(range(2, 18)), "validation": [18, 19]}
    for name, of_split in rows.items():
        x, y = everything(data, name)
        assert np.array_equal(x[:, 0].numpy(), tensor[of_split, 0])
        assert np.array_equal(y[:, 0].numpy(), tensor[of_split, 200])
    facts = Advection.describe(one.config, store)
    assert facts.shape == (1, 1024 // stride)
    assert facts.samples == {"train": 16, "validation": 2, "test": 2}


def test_fetched_and_prepared_is_what_path_reads(published: Path, store: Store) -> None:
    assert not Twenty.ready(config(Twenty), store)
    folder = prepared(store, files={published.name: published})
    assert Twenty.ready(config(Twenty), store)
    assert np.load(folder / "x.npy", mmap_mode="r").shape == (20, 1, 1024)
    from_cache = task(Twenty, store).load(0)
    from_file = task(Twenty, store, path=published.parent).load(0)
    from_folder = task(Twenty, store, path=folder).load(0)
    assert from_cache.checksum == from_file.checksum == from_folder.checksum
    assert from_cache.notes == ("advection: the published file",)


def test_a_file_with_another_number_of_samples_is_not_the_published_one(
    published: Path, store: Store
) -> None:
    one = config(Advection)
    with pytest.raises(DataError, match=r"holds 20 samples, not the published 10000.*task\.path="):
        Advection.prepare(
            one, Preparation(store.root, files={published.name: published}), store.root
        )


def test_missing_data_say_how_to_get_them(store: Store) -> None:
    one = config(Advection)
    assert Advection.state(one, store) == "generable"
    assert Advection.describe(one, store).samples["test"] == 1000
    (text,) = Advection.missing(one, store)
    assert "xmodal data generate advection" in text
    assert "1D_Advection_Sols_beta0.4.hdf5" in text
    with pytest.raises(DataError, match="no data for 'advection'"):
        task(Advection, store).load(0)


def test_another_file_of_the_same_size_and_time_is_read_again(tmp_path: Path, store: Store) -> None:
    path = write_file(Advection, tmp_path, 10)
    before = task(Advection, store, path=path).load(0)
    status = path.stat()
    with h5py.File(path, "r+") as file:
        file["tensor"][9, 0] = 7
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    after = task(Advection, store, path=path).load(0)
    assert after.checksum != before.checksum
    assert after.validation[0][0].eq(7).all()


def test_samples_in_groups_are_in_the_order_of_their_numbers(tmp_path: Path, store: Store) -> None:
    path = tmp_path / DiffusionSorption.problem.file.name
    for names in ([f"{n:04d}" for n in range(12)], [str(n) for n in range(12)]):
        with h5py.File(path, "w") as file:
            for name in reversed(names):
                whole = np.full((101, 1024, 1), int(name), np.float32)
                file.create_dataset(f"{name}/data", data=whole, compression="gzip")
        data = task(DiffusionSorption, store, path=path).load(0)
        values = [everything(data, part)[0][:, 0, 0].tolist() for part in ("train", "test")]
        assert values == [list(range(10)), [11]]
    with h5py.File(path, "r+") as file:
        file["about/data"] = np.zeros((101, 1024, 1), np.float32)
    with pytest.raises(DataError, match=r"one group for each sample.*; it has about"):
        task(DiffusionSorption, store, path=path).load(0)


def test_wrong_files(tmp_path: Path, store: Store) -> None:
    def refused(match: str) -> None:
        with pytest.raises(DataError, match=match):
            task(Advection, store, path=path).load(0)

    path = tmp_path / "a.hdf5"
    refused("is not there")
    path.write_bytes(b"text")
    refused("not an HDF5 file")
    for value, match in (
        (np.zeros((12, 201, 512), np.float32), r"has shape \[12, 201, 512\], expected \[samples"),
        (np.zeros((12, 101, 1024), np.float32), r"expected \[samples, 201, 1024\]"),
        (np.zeros((12, 201, 1024), np.int16), "holds int16"),
        (np.full((12, 201, 1024), np.nan, np.float32), "sample 0 has NaN"),
        (np.zeros((9, 201, 1024), np.float32), "9 samples cannot be split"),
    ):
        with h5py.File(path, "w") as file:
            file.create_dataset("tensor", data=value, compression="gzip")
        refused(match)
    with h5py.File(path, "w") as file:
        file["fields"] = np.zeros(3)
    refused(r"no array 'tensor' \[samples, 201, 1024\]; it has fields")
    (tmp_path / "empty").mkdir()
    path = tmp_path / "empty"
    refused(r"holds neither; expected 1D_Advection_Sols_beta0\.4\.hdf5")


def test_generated_for_a_recipe_and_into_the_cache_are_equal(store: Store) -> None:
    on_the_fly = task(Twenty, store, samples=12, resolution=16)
    assert Twenty.ready(on_the_fly.config, store)
    data = on_the_fly.load(0)
    assert len(data.test) == 1  # type: ignore[arg-type]
    assert "12 samples generated on 16 points (published: 20 on 1024)" in data.notes[0]
    prepared(store, generate=True, samples=12, resolution=16, jobs=2)
    assert task(Twenty, store).load(0).checksum == data.checksum
    # What an older solver made is not taken for what this one makes.
    about = store.root / "datasets" / "advection" / "dataset.json"
    text = about.read_text()
    about.write_text(text.replace("solve 1", "solve 0"))
    with pytest.raises(DataError, match=r"wants .*:solve 1\ngenerate it again: .* --again"):
        task(Twenty, store).load(0)
    about.write_text(text)
    # A larger set begins with the smaller one.
    x, _ = arrays.read(store.root / "datasets" / "advection")
    longer = task(Twenty, store, samples=60, resolution=16)._arrays()[0]
    assert np.array_equal(longer[:12], x)


def test_generation_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xmodal_pdebench import advection

    solved: list[int] = []
    interrupted = [True]
    real = advection.solve

    def solve(first: int, count: int, resolution: int) -> Any:
        solved.append(first)
        if first == 8 and interrupted:
            interrupted.pop()
            raise KeyboardInterrupt
        return real(first, count, resolution)

    monkeypatch.setattr(advection, "solve", solve)
    making, scratch = arrays.Making("xmodal_pdebench.advection:solve", chunk=4), tmp_path / "s"
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()

    def generate(folder: str, jobs: int = 1) -> None:
        arrays.generate(making, 18, 8, tmp_path / folder, scratch, jobs, lambda finished: None)

    with pytest.raises(KeyboardInterrupt):
        generate("x")
    kept = {int(file.stem[-6:]) for file in scratch.glob("*.npz")}
    assert {0, 4} <= kept <= {0, 4, 12}  # 12 may have begun before the interruption was seen
    (scratch / "solve-1-8-000000.npz").write_bytes(b"damaged")
    solved.clear()
    generate("x", jobs=2)
    assert sorted(solved) == sorted({0, 4, 8, 12, 16} - kept | {0})
    whole = real(0, 18, 8)
    for part, found in zip(whole, arrays.read(tmp_path / "x"), strict=True):
        assert np.array_equal(part.astype(np.float32), found)


def test_released_thinning_needs_a_grid_that_it_divides(store: Store) -> None:
    with pytest.raises(DataError, match=r"set task\.resolution to a multiple of 4"):
        Advection.describe(config(Advection, samples=12, resolution=30, loader="released"), store)


def test_path_and_samples_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="set one or the other"):
        config(Advection, path="x", samples=20)


@pytest.mark.parametrize("samples", [10, 11, 99, 1000, 10_000])
@pytest.mark.parametrize("validation", [0.001, 0.1, 0.9999])
def test_splits_cover_every_sample_once(samples: int, validation: float) -> None:
    for test in ("first", "last"):
        parts = split(samples, test, validation)  # type: ignore[arg-type]
        assert sorted(row for rows in parts.values() for row in rows) == list(range(samples))
        assert all(len(rows) for rows in parts.values())
        assert len(parts["test"]) == samples // 10
    assert split(10_000, "first", 0.1)["test"] == range(1000)
    assert split(10_000, "first", 0.1)["validation"] == range(9100, 10_000)
    assert split(1000, "last", 0.1)["test"] == range(900, 1000)
