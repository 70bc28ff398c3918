"""CIFAR-100: the published pickles, the split, normalisation and augmentation."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from xmodal.data.augment import in_pass
from xmodal.data.loader import labels
from xmodal.data.store import Store
from xmodal.errors import DataError
from xmodal.interfaces import Target
from xmodal_nasbench360.cifar100 import DEVIATION, MEAN, Cifar100
from xmodal_nasbench360.image_set import CropAndFlip

from .published import cifar_archive, task

SMALL = {"partial": True, "validation": 6}


def test_facts_need_no_data(tmp_path: Path) -> None:
    one = task(Cifar100, tmp_path)
    facts = Cifar100.describe(one.config, Store(tmp_path))
    assert facts.shape == (3, 32, 32)
    assert facts.target == Target("classification", 100)
    assert facts.samples == {"train": 40_000, "validation": 10_000, "test": 10_000}


def test_missing_data_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"xmodal data fetch cifar100\n") as caught:
        task(Cifar100, tmp_path).load(0)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("form", ["archive", "folder", "unpacked"])
def test_samples_equal_another_loader(tmp_path: Path, form: str) -> None:
    """Against pickle, NumPy and torchvision's own transforms."""
    arrays = cifar_archive(tmp_path, 20, 9)
    path = {"archive": tmp_path / "cifar-100-python.tar.gz", "folder": tmp_path}.get(form)
    if path is None:
        with tarfile.open(tmp_path / "cifar-100-python.tar.gz") as archive:
            archive.extractall(tmp_path / "here", filter="data")
        path = tmp_path / "here"
        with (path / "cifar-100-python/train").open("rb") as file:
            content = pickle.load(file, encoding="latin1")
        np.testing.assert_array_equal(content["data"].reshape(-1, 3, 32, 32), arrays["train_x"])
    one = task(Cifar100, tmp_path / "cache", path=path, **SMALL)
    data = one.load(0)
    wanted = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, DEVIATION)]
    )
    parts = {"train": (0, 14), "validation": (14, 20), "test": (0, 9)}
    for part, (start, end) in parts.items():
        name = "test" if part == "test" else "train"
        dataset = getattr(data, part)
        assert len(dataset) == end - start
        for n in range(end - start):
            x, y = dataset[n]
            image = arrays[f"{name}_x"][start + n].transpose(1, 2, 0)
            torch.testing.assert_close(x, wanted(image), rtol=0, atol=1e-6)
            assert y == arrays[f"{name}_y"][start + n]
    assert labels(data.train).tolist() == arrays["train_y"][:14].tolist()
    assert data.classes[3] == "class 3"
    assert "NOT the whole benchmark, but 20 training" in data.notes[0]
    facts = Cifar100.describe(one.config, Store(tmp_path / "cache"))
    assert facts.samples == {"train": 14, "validation": 6, "test": 9}


def test_augmentation_is_that_of_torchvision(tmp_path: Path) -> None:
    """Every changed image is one of the 81 crops of the image in a black border, or mirrored."""
    arrays = cifar_archive(tmp_path, 20, 9)
    data = task(Cifar100, tmp_path / "cache", path=tmp_path, **SMALL).load(0)
    once = in_pass(data.train, 1)
    places = set()
    for n in range(14):
        x, y = once[n]
        padded = np.pad(arrays["train_x"][n], ((0, 0), (4, 4), (4, 4)))
        raw = (x * 255 * torch.tensor(DEVIATION)[:, None, None]).numpy()
        raw = np.rint(raw + 255 * np.array(MEAN)[:, None, None])
        found = [
            (top, left, way)
            for way in (1, -1)
            for top in range(9)
            for left in range(9)
            if np.array_equal(padded[:, top : top + 32, left : left + 32][:, :, ::way], raw)
        ]
        assert len(found) == 1
        assert y == arrays["train_y"][n]
        places.add(found[0])
    assert len(places) > 8
    assert in_pass(data.test, 1) is data.test
    plain = task(Cifar100, tmp_path / "cache", path=tmp_path, augment=False, **SMALL).load(0)
    assert in_pass(plain.train, 1) is plain.train


def test_crops_are_drawn_evenly() -> None:
    """Each of 9 x 9 crops and both directions, as RandomCrop(32, 4) and a flip of 1/2."""
    change = CropAndFlip(torch.zeros(1, 1, 1))
    generator = torch.Generator().manual_seed(0)
    mark = torch.zeros(1, 32, 32)
    mark[0, 15, 10] = 1
    counts = torch.zeros(32, 32)
    for _ in range(8100):
        counts += change(mark, torch.tensor(0), generator)[0][0]
    # Row 15 moves to 11 .. 19; column 10 to 6 .. 14, and mirrored to 17 .. 25.
    assert counts[11:20, 6:15].sum() + counts[11:20, 17:26].sum() == 8100
    assert 3900 < counts[:, 6:15].sum() < 4200
    cells = torch.stack([counts[11:20, 6:15], counts[11:20, 17:26]])
    chi = ((cells - 50) ** 2 / 50).sum()
    assert 110 < chi < 220  # 161 degrees of freedom, deviation 18


def test_wrong_files(tmp_path: Path) -> None:
    cifar_archive(tmp_path, 20, 9)
    with pytest.raises(DataError, match="20 train images, 50,000 are published"):
        task(Cifar100, tmp_path / "cache", path=tmp_path, validation=6).load(0)
    cifar_archive(tmp_path, 20, 9, classes=300)
    with pytest.raises(DataError, match=r"not 0 \.\. 99"):
        task(Cifar100, tmp_path / "cache", path=tmp_path, **SMALL).load(0)
    archive = tmp_path / "cifar-100-python.tar.gz"
    archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be unpacked"):
        task(Cifar100, tmp_path / "cache", path=archive, **SMALL).load(0)
    with pytest.raises(DataError, match="holds no file of 'cifar100'"):
        task(Cifar100, tmp_path / "cache", path=tmp_path / "cache", **SMALL).load(0)


def test_converted_once(tmp_path: Path) -> None:
    cifar_archive(tmp_path, 20, 9)
    settings = {"path": tmp_path / "cifar-100-python.tar.gz", **SMALL}
    first = task(Cifar100, tmp_path / "cache", **settings).load(0)
    (folder,) = (tmp_path / "cache/built").iterdir()
    written = (folder / "train_x.npy").stat().st_mtime_ns
    again = task(Cifar100, tmp_path / "cache", **settings).load(5)
    assert (folder / "train_x.npy").stat().st_mtime_ns == written
    assert again.checksum == first.checksum
    # What was converted can be named itself, from any place.
    moved = folder.rename(tmp_path / "prepared")
    other = task(Cifar100, tmp_path / "other", path=moved, **SMALL).load(0)
    assert other.checksum == first.checksum
    assert other.test[3][0].equal(first.test[3][0])
