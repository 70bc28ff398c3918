"""Spherical CIFAR-100: the published pickle, and the projection against its geometry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from xmodal.data.datasets import Preparation
from xmodal.data.store import Store
from xmodal.errors import DataError, UsageError
from xmodal_nasbench360 import sphere
from xmodal_nasbench360.spherical import Spherical

from .published import cifar_archive, spherical_file, task

SMALL = {"partial": True, "validation": 2}
GRID = sphere.grid()


# --- the published file ---


@pytest.mark.parametrize(("last", "protocol"), [(False, 4), (True, 3)])
def test_samples_equal_the_pickle(tmp_path: Path, last: bool, protocol: int) -> None:
    arrays = spherical_file(tmp_path, 8, 5, last, protocol)
    one = task(Spherical, tmp_path / "cache", path=tmp_path, **SMALL)
    data = one.load(0)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [6, 2, 5]  # type: ignore[arg-type]
    for dataset, name, start in ((data.train, "train", 0), (data.validation, "train", 6)):
        for n in range(2):
            x, y = dataset[n]
            expected = arrays[f"{name}_x"][start + n].astype(np.float32) / np.float32(255)
            np.testing.assert_allclose(x.numpy(), expected, rtol=1e-7)
            assert y == arrays[f"{name}_y"][start + n]
    assert Spherical.describe(one.config, Store(tmp_path / "cache")).samples["train"] == 6


def test_wrong_files(tmp_path: Path) -> None:
    spherical_file(tmp_path, 8, 5, False)
    with pytest.raises(DataError, match="8 train images, 50,000 are published"):
        task(Spherical, tmp_path / "cache", path=tmp_path, validation=2).load(0)
    file = tmp_path / "s2_cifar100.gz"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DataError, match="cannot be unpacked"):
        task(Spherical, tmp_path / "cache", path=file, **SMALL).load(0)


# --- the projection ---


def by_hand(image: np.ndarray, point: np.ndarray) -> float:
    """One value, by the intersection of the ray with the plane and four pixels."""
    light, place = np.array([0, 0, 2.001]), point + np.array([0, 0, 1])
    # light + t (place - light) has height 0.
    t = light[2] / (light[2] - place[2])
    x, y, _ = light + t * (place - light)
    side = len(image)
    r, c = ((x + 1.5) / 3 * side, (y + 1.5) / 3 * side)
    total = 0.0
    for row in (int(r) - 1, int(r) + 1):
        for column in (int(c) - 1, int(c) + 1):
            if 0 <= row < side and 0 <= column < side:
                near = (2 - abs(row - r)) * (2 - abs(column - c)) / 4
                total += near * image[row, column]
    return total


def test_values_equal_rays_drawn_one_by_one() -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (16, 16)).astype(float)
    turned = np.tensordot(sphere.rotation(random), sphere.grid(6), 1)
    found = (sphere.weights(turned, 16) @ image.ravel()).reshape(12, 12)
    expected = [[by_hand(image, turned[:, j, k]) for k in range(12)] for j in range(12)]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_the_south_pole_shows_the_middle_and_circles_stay_circles() -> None:
    """Stereographic: the angle a from the south pole lies 2 tan(a / 2) from the middle."""
    assert np.allclose(np.linalg.norm(GRID, axis=0), 1)
    assert np.allclose(sphere.pixels(np.array([0.0, 0.0, -1.0]), 32), 16)
    angle = np.pi - np.arange(20, 60) * np.pi / 60
    place = sphere.pixels(GRID[:, 20:], 32) - 16
    radius = np.linalg.norm(place, axis=0) * 3 / 32
    # The light is 1/1000 above the pole.
    np.testing.assert_allclose(radius, np.tile(2 * np.tan(angle / 2), (60, 1)).T, rtol=2e-3)


def test_a_slope_stays_a_slope() -> None:
    """Interpolation keeps linear functions: inside the image, each point shows its own place."""
    rows, columns = np.meshgrid(np.arange(32.0), np.arange(32.0), indexing="ij")
    place = sphere.pixels(GRID, 32)
    inside = ((place > 1) & (place < 30)).all(axis=0)
    assert inside.sum() > 1000
    shown = sphere.weights(GRID, 32) @ (3 * rows - columns + 7).ravel()
    expected = 3 * place[0] - place[1] + 7
    np.testing.assert_allclose(shown.reshape(60, 60)[inside], expected[inside], atol=1e-9)


@pytest.mark.parametrize("steps", [1, 15, 37])
def test_turning_around_the_pole_moves_the_columns(steps: int) -> None:
    angle = 2 * np.pi * steps / 60
    c, s = np.cos(angle), np.sin(angle)
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    image = np.random.default_rng(1).integers(0, 256, 32 * 32).astype(float)
    plain = (sphere.weights(GRID, 32) @ image).reshape(60, 60)
    turned = np.tensordot(about_z, GRID, 1)
    found = (sphere.weights(turned, 32) @ image).reshape(60, 60)
    # Points on a border between pixels may fall to either side.
    off = np.abs(found - np.roll(plain, -steps, axis=1)) > 1e-6
    assert off.mean() < 0.02


def test_rotations_are_even() -> None:
    random = np.random.default_rng(2)
    many = np.stack([sphere.rotation(random) for _ in range(4000)])
    np.testing.assert_allclose(
        many @ many.transpose(0, 2, 1), np.tile(np.eye(3), (4000, 1, 1)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(many), 1)
    # Every entry is even on [-1, 1], and the trace is 1 + 2 cos(a), with (1 - cos a) / pi the
    # density of a.
    for i in range(3):
        for j in range(3):
            assert stats.kstest(many[:, i, j], stats.uniform(-1, 2).cdf).pvalue > 1e-3
    angle = np.arccos(np.clip((np.trace(many, axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert stats.kstest(angle, lambda a: (a - np.sin(a)) / np.pi).pvalue > 1e-3


def test_channels_are_stretched_to_bytes() -> None:
    images = np.random.default_rng(3).integers(100, 140, (2, 3, 32, 32), dtype=np.uint8)
    images[1, 2] = 0
    shown = sphere.project(images, GRID)
    assert shown.shape == (2, 3, 60, 60)
    assert shown.min(axis=(2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert shown.max(axis=(2, 3)).tolist() == [[255, 255, 255], [255, 255, 0]]


# --- data that are made of other images ---


def generated(folder: Path, source: Path, **settings: int) -> Spherical:
    one = task(Spherical, folder / "cache", path=folder, **SMALL, **settings)
    wanted = Preparation(folder / "scratch", {"images": source}, generate=True)
    wanted.scratch.mkdir(parents=True)
    about = Spherical.prepare(one.config, wanted, folder)
    store = Store(folder / "cache")
    store.make_dataset(Spherical.card(None), lambda new: _moved(folder, new, about))
    return task(Spherical, folder / "cache", **SMALL)  # type: ignore[return-value]


def _moved(folder: Path, new: Path, about: dict[str, object]) -> dict[str, object]:
    for file in folder.glob("*.npy"):
        file.rename(new / file.name)
    return dict(about)


def test_made_of_an_archive(tmp_path: Path) -> None:
    arrays = cifar_archive(tmp_path, 6, 3)
    one = generated(tmp_path / "out", tmp_path)
    data = one.load(0)
    turned = np.tensordot(sphere.rotation(np.random.default_rng([0, 1, 0])), GRID, 1)
    expected = sphere.project(arrays["test_x"], turned)
    np.testing.assert_allclose(data.test[2][0].numpy() * 255, expected[2], atol=1e-4)
    assert data.test[2][1] == arrays["test_y"][2]
    assert "NOT the published file; cifar-100-python.tar.gz projected here" not in data.notes[0]
    assert "NOT the published file" in data.notes[0]


def test_made_of_a_pack(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {
        "train_x": random.integers(0, 256, (6, 3, 20, 20), dtype=np.uint8),
        "test_x": random.integers(0, 256, (4, 3, 20, 20), dtype=np.uint8),
        "train_fine": np.arange(6) % 3,
        "test_fine": np.arange(4) % 3,
    }
    np.savez(tmp_path / "photos.npz", **arrays)
    one = generated(tmp_path / "out", tmp_path / "photos.npz")
    facts = Spherical.describe(one.config, Store(tmp_path / "out/cache"))
    assert (facts.name, facts.target.size) == ("spherical/photos", 3)
    assert one.load(0).train[1][1] == 1
    one.config = one.config.model_copy(update={"rotation_seed": 1})
    with pytest.raises(DataError, match=r"generated with rotation_seed: 0, but .* is 1"):
        one.load(0)


def test_without_images_it_says_what_to_give(tmp_path: Path) -> None:
    one = task(Spherical, tmp_path)
    with pytest.raises(UsageError, match="xmodal data generate spherical --from IMAGES"):
        Spherical.prepare(one.config, Preparation(tmp_path, generate=True), tmp_path)
