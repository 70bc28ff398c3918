"""Cosmic: which images are taken, their values and masks, the sky, the split, both scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from xmodal.data.augment import in_pass
from xmodal.data.store import Store
from xmodal.errors import DataError
from xmodal.interfaces import Target
from xmodal_nasbench360.cosmic import Cosmic
from xmodal_nasbench360.cosmic_files import FIELDS

from .published import cosmic_arrays, cosmic_tars, task

SMALL = {"partial": True, "standardise": False}
TRAIN = (
    [f"npy_train/f435w/10182/pb/{n}.npy" for n in ("1_1", "3_3", "11_2")]
    + [f"npy_train/f435w/10760/2/{n}.npy" for n in ("1_1", "3_3", "4_4", "5_5", "11_2")]
    + [f"npy_train/f435w/12058/16/{n}.npy" for n in ("1_1", "3_3", "4_4", "11_2")]
)
TEST = [f"npy_test/f435w/10342/3/{n}.npy" for n in ("1_1", "3_3", "11_2")] + [
    f"npy_test/f435w/14704/1/{n}.npy" for n in ("1_1", "11_2")
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("deepCR")
    arrays = cosmic_arrays(folder)
    (folder / "tars").mkdir()
    cosmic_tars(folder / "tars", folder)
    return folder, arrays


def test_facts_need_no_data(tmp_path: Path) -> None:
    one = task(Cosmic, tmp_path)
    facts = Cosmic.describe(one.config, Store(tmp_path))
    assert (facts.shape, facts.target) == ((1, 128, 128), Target("dense", 1, (128, 128)))
    assert facts.samples == {"train": 4347, "validation": 483, "test": 420}


def test_missing_data_name_the_stand_in(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--task cosmic-simulated") as caught:
        task(Cosmic, tmp_path).load(0)
    assert caught.value.exit_code == 4


def test_the_table_of_visits() -> None:
    """72 visits, as in NAS-Bench-360's table; 27 of them show galaxies."""
    visits = {kind: names.split() for kind, names in FIELDS.items()}
    assert {kind: len(names) for kind, names in visits.items()} == {"GAL": 27, "EX": 25, "GC": 20}
    assert len({name for names in visits.values() for name in names}) == 72


@pytest.mark.parametrize("form", ["tars", "folders"])
def test_samples_equal_another_loader(
    source: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, form: str
) -> None:
    folder, arrays = source
    path = folder / "tars" if form == "tars" else folder
    if form == "folders":
        (tmp_path / "deepCR").mkdir()
        for part in ("train", "test"):
            (tmp_path / f"deepCR/npy_{part}").symlink_to(folder / f"npy_{part}")
        path = tmp_path / "deepCR"
    one = task(Cosmic, tmp_path / "cache", path=path, protocol_split="order", **SMALL)
    data = one.load(0)
    assert Cosmic.describe(one.config, one.store).samples == {  # type: ignore[attr-defined]
        "train": 10,
        "validation": 2,
        "test": 5,
    }
    for dataset, names in (
        (data.train, TRAIN[:10]),
        (data.validation, TRAIN[10:]),
        (data.test, TEST),
    ):
        assert len(dataset) == len(names)  # type: ignore[arg-type]
        for n, name in enumerate(names):
            x, y = dataset[n]
            raw = arrays[name][:, 64:192, 64:192]
            np.testing.assert_array_equal(x[0].numpy(), raw[0])
            ignored = raw[2] == 1 if len(raw) == 3 else np.zeros((128, 128), bool)
            np.testing.assert_array_equal(y[0].numpy(), np.where(ignored, np.nan, raw[1]))


def test_the_sky_varies_in_training(
    source: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    folder, arrays = source
    settings = {"path": folder / "tars", "protocol_split": "order", **SMALL}
    data = task(Cosmic, tmp_path, **settings).load(0)
    factors = []
    for seed in range(40):
        once = in_pass(data.train, seed)
        for n in (3, 4, 7):
            added = (once[n][0] - data.train[n][0]).double()
            sky = arrays[str(Path(TRAIN[n]).with_name("sky.npy"))][
                int(Path(TRAIN[n]).name.split("_")[0]) - 1
            ]
            assert added.std() < 1e-3
            factors.append(float(added.mean() / sky))
        assert once[1][0].equal(data.train[1][0])  # a visit without sky.npy
    assert -0.9 <= min(factors) < -0.7
    assert 2.8 < max(factors) <= 3
    assert abs(np.mean(factors) - 1.05) < 0.3
    assert in_pass(data.test, 0) is data.test
    released = task(Cosmic, tmp_path, augment_test=True, **settings).load(0)
    assert in_pass(released.test, 0) is released.test  # drawn once, not in every pass
    added = [(released.test[n][0] - data.test[n][0]).mean().item() for n in range(5)]
    assert len({round(a, 3) for a in added}) == 5
    again = task(Cosmic, tmp_path, augment_test=True, **settings).load(1)
    assert again.test[2][0].equal(released.test[2][0])


def test_visits_are_kept_whole(source: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    data = task(Cosmic, tmp_path, path=source[0] / "tars", **SMALL).load(0)
    train, validation = set(data.groups["train"].tolist()), data.groups["validation"].tolist()
    assert not train & set(validation)
    assert len(data.groups["train"]) + len(validation) == 12
    assert len(set(data.groups["test"].tolist())) == 2


def test_standardised_by_training_images(
    source: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    path = source[0] / "tars"
    plain = task(Cosmic, tmp_path, path=path, **SMALL).load(0)
    data = task(Cosmic, tmp_path, path=path, partial=True).load(0)
    raw = torch.stack([plain.train[n][0] for n in range(len(plain.train))]).double()  # type: ignore[arg-type]
    expected = (plain.test[0][0] - raw.mean()) / raw.std(correction=0)
    torch.testing.assert_close(data.test[0][0], expected.float(), rtol=1e-5, atol=1e-5)
    # What is added to it is the sky in the same unit.
    added = in_pass(plain.train, 3)[0][0] - plain.train[0][0]
    scaled = in_pass(data.train, 3)[0][0] - data.train[0][0]
    torch.testing.assert_close(scaled * raw.std(correction=0).float(), added, rtol=1e-3, atol=1e-3)


def test_other_selections(source: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    path = source[0] / "tars"
    clusters = task(Cosmic, tmp_path, path=path, fields=("GC", "EX"), **SMALL)
    with pytest.raises(DataError, match="one visit, which cannot both train and"):
        clusters.load(0)
    with pytest.raises(DataError, match="no image of filter f606w"):
        task(Cosmic, tmp_path, path=path, filter="f606w", **SMALL).load(0)
    with pytest.raises(DataError, match="12 train images of galaxies in f435w, 4,830 are publ"):
        task(Cosmic, tmp_path, path=path).load(0)


def test_published_lists_choose_and_order(
    source: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    folder, arrays = source
    here = tmp_path / "files"
    here.mkdir()
    for part in ("train", "test"):
        (here / f"npy_{part}").symlink_to(folder / f"npy_{part}")
    chosen = [TRAIN[5], TRAIN[0], TRAIN[9], TRAIN[2]]
    np.save(here / "train_dirs.npy", [f"./cosmic/{name}" for name in chosen])
    settings = {"path": here, "protocol_split": "order", **SMALL}
    data = task(Cosmic, tmp_path / "cache", **settings).load(0)
    for n in range(3):
        expected = arrays[chosen[n]][0, 64:192, 64:192]
        np.testing.assert_array_equal(data.train[n][0][0].numpy(), expected)
    assert any("*_dirs.npy" in note for note in data.notes)
    np.save(here / "train_dirs.npy", ["./cosmic/npy_train/f435w/1/2/3_4.npy"])
    with pytest.raises(DataError, match="which is not in"):
        task(Cosmic, tmp_path / "cache", **settings).load(0)


def test_unknown_visits_and_damaged_files(tmp_path: Path) -> None:
    cosmic_arrays(tmp_path)
    (tmp_path / "npy_train/f435w/999").mkdir()
    (tmp_path / "npy_train/f435w/10760/2").rename(tmp_path / "npy_train/f435w/999/7")
    settings = {"path": tmp_path, **SMALL}
    with pytest.raises(DataError, match="nobody says what these visits show: 999/7"):
        task(Cosmic, tmp_path / "cache", **settings).load(0)
    every = task(Cosmic, tmp_path / "cache", fields=("GAL", "EX", "GC"), **settings).load(0)
    assert len(every.groups["train"]) + len(every.groups["validation"]) == 14
    (tmp_path / "npy_train/f435w/999/7").rename(tmp_path / "npy_train/f435w/10760/2")
    file = tmp_path / "npy_train/f435w/10760/2/3_3.npy"
    image = np.load(file)
    image[0, 100, 100], image[1, 70, 70] = np.inf, 0.5
    np.save(file, image)
    with pytest.raises(DataError, match="the mask has other values than 0 and 1"):
        task(Cosmic, tmp_path / "cache", **settings).load(0)
    image[1, 70, 70] = 0
    np.save(file, image)
    data = task(Cosmic, tmp_path / "cache", protocol_split="order", **settings).load(0)
    assert data.train[4][1][0, 36, 36].isnan()
    assert data.train[4][0].isfinite().all()
    assert any("1 pixels were not finite" in note for note in data.notes)


def test_prepared_otherwise(source: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    settings = {"path": source[0] / "tars", **SMALL}
    task(Cosmic, tmp_path, **settings).load(0)
    (folder,) = (tmp_path / "built").iterdir()
    with pytest.raises(DataError, match=r"was prepared with fields: \['GAL'\], but fields is"):
        task(Cosmic, tmp_path, **{**settings, "path": folder}, fields=("GC",)).load(0)
