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

from xmodal.data.datasets import Preparation
from xmodal.data.store import Store
from xmodal.errors import DataError, UsageError
from xmodal.interfaces import Target
from xmodal_nasbench360 import darcy, darcy_data, darcy_prepared
from xmodal_nasbench360.darcy import Darcy
from xmodal_nasbench360.darcy_samples import Grid, draw
from xmodal_nasbench360.elliptic import apply_operator, face_coefficients

from ...any_parts import PARTS

pytestmark = pytest.mark.slow


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


def test_a_point_where_all_training_samples_agree_has_the_scale_of_all_points(store: Store) -> None:
    """Its own deviation, 0, would make a sample that differs there 9 / 1e-5."""
    data = task(store, train=2, test=30).load(0)
    a = np.stack([draw(0, 0, i, Grid(11, 21))[0] for i in range(2)]).astype(np.float32)
    test_a = np.stack([draw(0, 1, i, Grid(11, 21))[0] for i in range(30)]).astype(np.float32)
    same = a[0] == a[1]
    assert 0 < same.sum() < same.size
    scale = np.where(same, a.std(ddof=1), a.std(0, ddof=1)) + 1e-5
    x = torch.stack([data.test[i][0][0] for i in range(30)]).numpy()
    assert np.allclose(x, (test_a - a.mean(0)) / scale, atol=1e-5)
    assert np.abs(x).max() < 3
    assert data.raw is not None
    back = data.raw.invert(torch.stack([data.test[i][0] for i in range(30)]))
    assert np.allclose(back.reshape(test_a.shape), test_a, atol=1e-5)


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
    assert "Darcy flow: 50 of 50 samples (100%)" in shown.err
    darcy_data.generate(store, Grid(6, 11), 0, 0, 20, "Darcy flow")
    assert capsys.readouterr().err == ""


def published_set(folder: Path, count: int) -> dict[str, np.ndarray]:
    """Both published files, in format 7.3, on 421 points but with few samples."""
    folder.mkdir()
    kept, grid = {}, Grid(421, 421, "published")
    for split, name in (("train", darcy_data.TRAIN_FILE), ("test", darcy_data.TEST_FILE)):
        # Two real solutions; the rest are these again, scaled, which no check can tell.
        pairs = [draw(0, 1, index, grid) for index in range(2)]
        a = np.stack([pairs[i % 2][0] for i in range(count)])
        u = np.stack([pairs[i % 2][1] * (1 - i / 100) for i in range(count)])
        with h5py.File(folder / name, "w") as file:
            for key, array in (("coeff", a), ("sol", u)):
                file[key] = array.transpose(2, 1, 0)
                file[key].attrs["MATLAB_class"] = np.bytes_("double")
        kept[split] = u
    return kept


def make(store: Store, **wanted: Any) -> Path:
    config = task(store).config
    return store.make_dataset(
        Darcy.card(config),
        lambda folder: Darcy.prepare(
            config, Preparation(scratch=store.root / "scratch", **wanted), folder
        ),
    )


def test_the_published_files_made_ready(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every 5th of 421 points, as an independent reader of the file gives them."""
    monkeypatch.setattr(darcy_prepared, "PUBLISHED", 7)
    monkeypatch.setattr(darcy_data, "PIECE", 3)
    settings: dict[str, Any] = {"prepared": True, "resolution": 85, "train": 4, "validation": 3}
    one = task(store, **settings)
    assert Darcy.state(one.config, store) == "generable"
    assert not Darcy.ready(one.config, store)
    (how,) = Darcy.missing(one.config, store)
    assert "xmodal data generate darcy" in how
    assert "17anR-H_C7It5sytoNFOk7YmOeeCX11F6" in how
    with pytest.raises(DataError, match="no data for 'darcy'"):
        one.load(0)
    u = published_set(tmp_path / "files", 7)
    names = (darcy_data.TRAIN_FILE, darcy_data.TEST_FILE)
    make(store, files={name: tmp_path / "files" / name for name in names})
    assert Darcy.state(one.config, store) == "ready"
    data = one.load(0)
    for split, row, source, number in (
        ("train", 3, "train", 3),
        ("validation", 2, "train", 6),
        ("test", 5, "test", 5),
    ):
        got = getattr(data, split)[row][1][0].numpy()
        assert np.array_equal(got, u[source][number, ::5, ::5].astype(np.float32))
    assert data.notes == ("Darcy flow: the published files",)
    from_files = task(
        store, path=str(tmp_path / "files"), resolution=85, train=4, validation=3
    ).load(0)
    assert from_files.checksum == data.checksum
    assert set(Darcy.contents(one.config, store)) == {"prepared"}
    with pytest.raises(DataError, match="has 7 samples of 'train', the recipe asks for 8"):
        task(store, **{**settings, "train": 5}).load(0)
    with pytest.raises(UsageError, match="85, 43, 29 and 22 can"):
        task(store, **{**settings, "resolution": 12}).load(0)
    # What a recipe generates does not depend on what is in the cache.
    assert "generated" in task(store).load(0).notes[0]


def test_wrong_published_files_are_not_made_ready(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_published(tmp_path / "files", "5")
    files = {path.name: path for path in (tmp_path / "files").iterdir()}
    monkeypatch.setattr(darcy_prepared, "SIDE", 21)
    with pytest.raises(DataError, match=r"not \(1024\+, n, n\)"):
        make(store, files=files)
    monkeypatch.setattr(darcy_prepared, "PUBLISHED", 20)
    with pytest.raises(DataError, match=r"'sol' reaches 0\.99"):
        make(store, files=files)
    monkeypatch.setattr(darcy_prepared, "HIGH", 4.0)
    with pytest.raises(DataError, match="'coeff' holds 3, 12; published are 3 and 4"):
        make(store, files=files)
    assert not (store.root / "datasets" / "darcy").exists()


def test_generated_and_made_ready(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(darcy_data, "CHUNK", 10)
    make(store, generate=True, samples=11, resolution=169, jobs=2)
    one = task(store, prepared=True, resolution=43, train=8, validation=2, test=1)
    data = one.load(0)
    expected = draw(0, 1, 0, Grid(85, 169, "published"))[1][::2, ::2].astype(np.float32)
    assert np.array_equal(data.test[0][1][0].numpy(), expected)
    assert "solved on 169x169" in data.notes[0]
    with monkeypatch.context() as newer:
        newer.setattr(darcy, "GENERATOR", 2)
        with pytest.raises(DataError, match="version 1 of the solver, this is 2"):
            one.load(0)
    for wanted, match in (
        ({"resolution": 100}, "try 85"),
        ({"samples": 2}, "at least 4"),
    ):
        with pytest.raises(UsageError, match=match):
            make(store, generate=True, **wanted)
    with pytest.raises(ValidationError, match="set one"):
        task(store, prepared=True, path="x")


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


def test_a_sample_that_is_turned_still_solves_its_equation(store: Store) -> None:
    """-div(a grad u) = 1 by the generator's own operator, for all eight moves."""
    made = task(store, solver_grid=11)  # on its own grid, so that u solves it to the last digits
    data, facts = made.load(0), Darcy.describe(made.config, store)
    assert data.symmetry is not None
    assert (data.symmetry.name, data.symmetry.size) == (facts.symmetry, facts.moves)
    assert data.raw is not None
    x, y = data.train[3]
    seen = []
    for element in range(8):
        moved_x, moved_y = data.symmetry(x, y, element)
        a = data.raw.invert(moved_x[None])[0].numpy()
        left = apply_operator(face_coefficients(a), moved_y[0, 1:-1, 1:-1].double().numpy())
        np.testing.assert_allclose(left, 1, atol=2e-3)
        assert not moved_y[0, 0].any()
        assert torch.equal(moved_x[1:], x[1:])
        assert not any(torch.equal(moved_y, one) for one in seen)
        seen.append(moved_y)
        if element:  # the sample alone, or the label alone, does not
            half = data.symmetry(x, y, element)[0]
            a = data.raw.invert(half[None])[0].numpy()
            left = apply_operator(face_coefficients(a), y[0, 1:-1, 1:-1].double().numpy())
            assert np.abs(left - 1).max() > 0.05
    # Four quarters are none.
    turned_x, turned_y = x, y
    for _ in range(4):
        turned_x, turned_y = data.symmetry(turned_x, turned_y, 1)
    torch.testing.assert_close(turned_x, x, atol=1e-4, rtol=1e-4)
    assert torch.equal(turned_y, y)
