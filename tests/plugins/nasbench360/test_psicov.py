"""PSICOV: the file formats, the canvas, the split, the score, and what is refused."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from xmodal.data.datasets import Preparation
from xmodal.data.loader import labels
from xmodal.data.store import Store
from xmodal.data.unpickle import read_npy, read_pickle
from xmodal.errors import DataError
from xmodal.interfaces import Metric, Target
from xmodal.settings import Use
from xmodal_nasbench360 import psicov_files as files
from xmodal_nasbench360.psicov import Psicov
from xmodal_nasbench360.psicov_metric import LongRangeError

from ... import any_parts

PARTS: dict[str, Any] = {
    "loss": any_parts.PARTS["loss"],
    "metric": Use("mae-lr-d8", LongRangeError, LongRangeError.Config()),
}


def features(length: int, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "seq": "A" * length,
        "ss": rng.random((3, length)),
        "pssm": rng.random((length, 22)),
        "sa": rng.random(length),
        "entropy": rng.random(length),
        "ccmpred": rng.random((length, length)),
        "freecon": rng.random((length, length)),
        "potential": rng.random((length, length)),
    }


def distances(length: int) -> np.ndarray:
    walk = np.cumsum(np.ones((length, 3)) * 2.2, axis=0)
    return np.linalg.norm(walk[:, None] - walk[None], axis=-1)


def write_distances(path: Path, matrix: np.ndarray) -> None:
    content = np.empty(3, dtype=object)
    content[:] = [len(matrix), "A" * len(matrix), matrix]
    np.save(path, content, allow_pickle=True)


def write_data(folder: Path, lengths: dict[str, list[int]]) -> Path:
    """A tiny copy of protein.zip, unpacked."""
    rng = np.random.default_rng(0)
    for subset, sizes in lengths.items():
        for kind in ("features", "distance"):
            (folder / "protein" / subset / kind).mkdir(parents=True)
        names = [f"{subset[0]}{i}xyA" for i in range(len(sizes))]
        (folder / "protein" / f"{subset}.lst").write_text("\n".join(names) + "\n")
        for name, size in zip(names, sizes, strict=True):
            place = folder / "protein" / subset
            with (place / "features" / f"{name}.pkl").open("wb") as file:
                pickle.dump(features(size, rng), file)
            write_distances(place / "distance" / f"{name}-cb.npy", distances(size))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", {"deepcov": [20, 25, 60, 30], "psicov": [33, 21]})


def task(path: Path | None, tmp_path: Path, **settings: Any) -> Psicov:
    chosen = {**PARTS, "size": 48, "validation": 1, **settings}
    config = Psicov.Config(path=None if path is None else str(path), **chosen)
    return Psicov(config, SimpleNamespace(store=Store(tmp_path / "cache")))


def test_facts_need_no_data(tmp_path: Path) -> None:
    one = task(None, tmp_path, size=512, validation=100)
    facts = Psicov.describe(one.config, one.store)
    assert facts.shape == (57, 512, 512)
    assert facts.family == "protein"
    assert facts.target == Target("dense", 1, (512, 512))
    assert facts.samples == {"train": 3356, "validation": 100, "test": 150}


def test_missing_data_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        task(None, tmp_path).load(0)
    message = str(caught.value)
    assert caught.value.exit_code == 4
    for part in (
        "xmodal data fetch psicov",
        "1nBs6qJJPK8qNzsmFo3waPsGzHFHplLMo",
        "--task proteins",
    ):
        assert part in message


def zipped(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for path in sorted((folder / "protein").rglob("*")):
            opened.write(path, path.relative_to(folder).as_posix())
    return archive


def test_archive_and_folder_give_the_same(data: Path, tmp_path: Path) -> None:
    """The archive, fetched or not, its unpacked folder anywhere, and what was prepared of them."""
    expected = task(data, tmp_path / "a").load(0)
    archive = zipped(data, tmp_path / "protein.zip")
    ways = [task(archive, tmp_path / "b", partial=True), task(data / "protein", tmp_path / "c")]
    fetched = task(None, tmp_path / "d", partial=True)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    wanted = Preparation(scratch, {"protein.zip": archive})
    folder = fetched.store.make_dataset(
        Psicov.card(None), lambda new: Psicov.prepare(fetched.config, wanted, new)
    )
    assert not list(scratch.rglob("*.pkl"))
    by_hand = task(None, tmp_path / "e")
    (tmp_path / "e/cache/datasets").mkdir(parents=True)
    (tmp_path / "e/cache/datasets/psicov").symlink_to(data)
    for one in (*ways, fetched, by_hand, task(folder, tmp_path / "f")):
        found = one.load(0)
        assert found.checksum == expected.checksum
        assert Psicov.describe(one.config, one.store).samples["train"] == 3
        for split in ("train", "validation", "test"):
            for n in range(len(getattr(expected, split))):
                for got, want in zip(
                    getattr(found, split)[n], getattr(expected, split)[n], strict=True
                ):
                    assert got.equal(want)
    assert "NOT the whole benchmark, but 4 and 2 proteins" in expected.notes[0]


def test_archives_that_are_not_whole(data: Path, tmp_path: Path) -> None:
    archive = zipped(data, tmp_path / "protein.zip")
    with pytest.raises(DataError, match="lists 4 and 2 proteins, 3,456 and 150 are published"):
        task(archive, tmp_path).load(0)
    (data / "protein/psicov/distance/p1xyA-cb.npy").unlink()
    with pytest.raises(DataError, match=r"holds no protein/psicov/distance/p1xyA-cb\.npy"):
        task(zipped(data, archive), tmp_path, partial=True).load(0)
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(DataError, match="cannot be unpacked"):
        task(archive, tmp_path, partial=True).load(0)


def test_a_sample_unpickles_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = task(data, tmp_path).load(0)

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was unpickled")

    monkeypatch.setattr(files, "read_pickle", refuse)
    monkeypatch.setattr(files, "read_npy", refuse)
    again = task(data, tmp_path).load(0)
    assert again.train[1][0].equal(loaded.train[1][0])
    assert labels(again.train).equal(torch.stack([y for _, y in again.train]))


def test_samples(data: Path, tmp_path: Path) -> None:
    one = task(data, tmp_path)
    loaded = one.load(0)
    facts = Psicov.describe(one.config, one.store)
    assert facts.samples == {"train": 3, "validation": 1, "test": 2}
    assert [len(loaded.train), len(loaded.validation), len(loaded.test)] == [3, 1, 2]  # type: ignore[arg-type]
    x, y = loaded.train[0]
    assert x.shape == (57, 48, 48)
    assert y.shape == (1, 48, 48)
    assert x.dtype == y.dtype == torch.float32
    assert loaded.train[0][0].equal(x)


def test_channels(data: Path, tmp_path: Path) -> None:
    x, _ = task(data, tmp_path).load(0).test[0]
    with (data / "protein/psicov/features/p0xyA.pkl").open("rb") as file:
        raw = pickle.load(file)
    inside = slice(5, 5 + 33)
    assert not x[:, :5].any()
    assert not x[:, 38:].any()
    ss1 = torch.tensor(raw["ss"][1], dtype=torch.float32)
    assert x[2, 11, inside].equal(ss1)
    assert x[3, inside, 11].equal(ss1)
    last = torch.tensor(raw["pssm"][:, 21], dtype=torch.float32)
    assert x[48, 7, inside].equal(last)
    assert x[50, 7, inside].equal(torch.tensor(raw["sa"], dtype=torch.float32))
    assert x[53, inside, 7].equal(torch.tensor(raw["entropy"], dtype=torch.float32))
    for channel, name in ((54, "ccmpred"), (55, "freecon"), (56, "potential")):
        expected = torch.tensor(raw[name], dtype=torch.float32)
        assert x[channel, inside, inside].equal(expected)


def test_labels(data: Path, tmp_path: Path) -> None:
    loaded = task(data, tmp_path).load(0)
    y = loaded.test[0][1][0]
    inner = y[5:38, 5:38]
    assert y[0, 0] == 100
    assert y[38, 10] == 100
    assert inner.min() >= 1
    assert inner[4, 4] == pytest.approx((inner[4, 3] + inner[4, 5]) / 2)
    assert inner[0, 0] == inner[0, 1]
    assert inner[-1, -1] == inner[-1, -2]
    assert inner[2, 9] == pytest.approx(7 * 2.2 * 3**0.5, rel=1e-5)
    assert loaded.train[0][1].max() == 16
    assert loaded.validation[0][1].max() > 16


def test_long_proteins_are_cut_to_their_centre(data: Path, tmp_path: Path) -> None:
    x, y = task(data, tmp_path).load(0).train[2]
    with (data / "protein/deepcov/features/d2xyA.pkl").open("rb") as file:
        raw = pickle.load(file)["ccmpred"]
    part = torch.tensor(raw[11:49, 11:49], dtype=torch.float32)
    assert x[54, 5:43, 5:43].equal(part)
    assert y[0, 4, 4] == 16


def test_checksum_follows_the_files(data: Path, tmp_path: Path) -> None:
    before = task(data, tmp_path).load(0).checksum
    assert task(data, tmp_path).load(9).checksum == before
    write_distances(data / "protein/psicov/distance/p0xyA-cb.npy", 2 * distances(33))
    assert task(data, tmp_path).load(0).checksum != before
    (data / "protein/psicov/distance/p1xyA-cb.npy").unlink()
    with pytest.raises(DataError, match="p1xyA-cb"):
        task(data, tmp_path).load(0)


class Hostile:
    """Makes a file when unpickled by a careless reader."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.target}",))


def test_hostile_pickles_run_nothing(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "executed"
    victim = data / "protein/psicov/features/p0xyA.pkl"
    victim.write_bytes(pickle.dumps(Hostile(target)))
    with pytest.raises(DataError, match="refuses to run code"):
        task(data, tmp_path).load(0)
    content = np.empty(1, dtype=object)
    content[0] = Hostile(target)
    np.save(tmp_path / "bad.npy", content, allow_pickle=True)
    with pytest.raises(DataError, match="refuses to run code"):
        read_npy(tmp_path / "bad.npy")
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"c__builtin__\ngetattr\n.",
        b"c_codecs\nencode\n(S'x'\nS'zlib_codec'\ntR.",
        b"\x80\x04.",
        b"",
        b"not a pickle",
    ],
)
def test_other_pickles_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(DataError):
        read_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_survive_every_protocol(tmp_path: Path, protocol: int) -> None:
    original = {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(2), "c": ["x", (1, None)]}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(original, protocol))
    found = read_pickle(tmp_path / "x.pkl")
    assert np.array_equal(found["a"], original["a"])
    assert found["b"] == 2
    assert found["c"] == ["x", (1, None)]


def test_names_recorded_by_old_numpy(tmp_path: Path) -> None:
    new = pickle.dumps({"a": np.arange(3)}, 2)
    (tmp_path / "x.pkl").write_bytes(new.replace(b"numpy._core", b"numpy.core"))
    assert read_pickle(tmp_path / "x.pkl")["a"].tolist() == [0, 1, 2]


def test_plain_npy_and_damaged_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(4.0))
    assert read_npy(tmp_path / "x.npy").tolist() == [0, 1, 2, 3]
    whole = (tmp_path / "x.npy").read_bytes()
    for damaged in (whole[:40], whole[:-3], b"PK" + whole):
        (tmp_path / "x.npy").write_bytes(damaged)
        with pytest.raises(DataError):
            read_npy(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("pssm", np.zeros((22, 30)), "shape"),
        ("sa", np.full(30, np.nan), "NaN or infinite"),
        ("entropy", None, "entropy"),
    ],
)
def test_wrong_features_are_named(tmp_path: Path, key: str, value: Any, reason: str) -> None:
    made = features(30, np.random.default_rng(0)) | {key: value}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(made))
    with pytest.raises(DataError, match=reason):
        files.read_values(tmp_path / "x.pkl")


def test_list_names_cannot_leave_the_folder(data: Path) -> None:
    (data / "protein" / "psicov.lst").write_text("../../secret\n")
    with pytest.raises(DataError, match="not the name of a protein"):
        files.read_list(data / "protein", "psicov")


def metric(*, released: bool = False) -> Metric:
    return LongRangeError(LongRangeError.Config(released=released), SimpleNamespace())


def test_score_by_hand() -> None:
    y = torch.full((3, 1, 40, 40), 100.0)
    y[0, 0, 0, 30] = y[0, 0, 30, 0] = 6.0
    y[0, 0, 2, 26] = y[0, 0, 26, 2] = 8.0
    y[0, 0, 2, 25] = y[0, 0, 25, 2] = 4.0  # 23 apart: too close
    y[1, 0, 1, 39] = y[1, 0, 39, 1] = 5.0
    p = torch.zeros_like(y)
    p[0, 0, 0, 30], p[0, 0, 30, 0] = 5.0, 9.0  # symmetric mean 7: off by 1
    p[0, 0, 2, 26] = p[0, 0, 26, 2] = 5.0  # off by 3
    p[1, 0, 1, 39] = p[1, 0, 39, 1] = -4.0  # raised to 0.01: off by 4.99
    score = metric()
    score.update(p, y)
    # The third protein has no such pair and is skipped.
    assert score.compute() == pytest.approx((2 + 4.99) / 2)
    score.reset()
    assert np.isnan(score.compute())


def test_score_ignores_batching() -> None:
    rng = torch.Generator().manual_seed(0)
    y = torch.rand((6, 1, 50, 50), generator=rng) * 20
    y[2:, :, 30:] = 100
    y[2:, :, :, 30:] = 100
    p = torch.rand(y.shape, generator=rng) * 20
    together, apart = metric(), metric()
    together.update(p, y)
    for i in range(6):
        apart.update(p[i : i + 1], y[i : i + 1])
    assert together.compute() == pytest.approx(apart.compute())


def test_released_score_by_hand() -> None:
    """The pair (0, 30): upper entry 5, lower 9. Published: 5/4 + 3 · 9/4 = 8; ours: 7."""
    y, p = torch.full((1, 1, 40, 40), 100.0), torch.zeros(1, 1, 40, 40)
    y[0, 0].fill_diagonal_(4.0)
    y[0, 0, 0, 30] = y[0, 0, 30, 0] = 6.0
    p[0, 0, 0, 30], p[0, 0, 30, 0] = 5.0, 9.0
    for score, expected in ((metric(released=True), 2.0), (metric(), 1.0)):
        score.update(p, y)
        assert score.compute() == pytest.approx(expected)


def test_released_score_raises_small_values_between_the_averages() -> None:
    """-8 above, 2 below: the mean -3 becomes .01, then (.01 + 2)/2. Turned: (3 + .01)/2."""
    for upper, lower, expected in ((-8.0, 2.0, 1.005), (8.0, -2.0, 1.505)):
        y, p = torch.full((1, 1, 40, 40), 100.0), torch.zeros(1, 1, 40, 40)
        y[0, 0].fill_diagonal_(4.0)
        y[0, 0, 1, 30] = y[0, 0, 30, 1] = 6.0
        p[0, 0, 1, 30], p[0, 0, 30, 1] = upper, lower
        score = metric(released=True)
        score.update(p, y)
        assert score.compute() == pytest.approx(6 - expected)


def published_score(predictions: np.ndarray, y: np.ndarray, lengths: list[int]) -> float:
    """The formula of the published code, entry by entry: all proteins with the first's length."""
    errors = []
    for predicted, true in zip(predictions.astype(float), y.astype(float), strict=True):
        size = len(predicted)
        for i in range(size):
            for j in range(i, size):
                predicted[i, j] = (predicted[i, j] + predicted[j, i]) / 2
        predicted[predicted < 0.01] = 0.01
        at = []
        for i in range(lengths[0]):
            for j in range(i + 24, lengths[0]):
                row, column = i + files.MARGIN, j + files.MARGIN
                if true[row, column] <= 8:
                    again = (predicted[row, column] + predicted[column, row]) / 2
                    at.append(abs(again - true[row, column]))
        errors.append(np.mean(at) if at else np.nan)
    return float(np.nanmean(errors))


@pytest.mark.parametrize("lengths", [[40, 30, 52], [52, 40, 30], [30, 52, 40]])
def test_released_score_is_the_published_formula(lengths: list[int]) -> None:
    random, size = np.random.default_rng(sum(lengths[:2])), 64
    p = random.normal(6, 5, (3, size, size)).astype(np.float32)
    y = np.full((3, size, size), 100, np.float32)
    for map_, length in zip(y, lengths, strict=True):
        half = random.uniform(1, 20, (length, length))
        inside = slice(files.MARGIN, files.MARGIN + length)
        map_[inside, inside] = (half + half.T) / 2
        np.fill_diagonal(map_[inside, inside], 3.0)
    expected = published_score(p.copy(), y, lengths)
    for batch in (1, 2, 3):  # the first protein stays the first, whatever the batches
        score = metric(released=True)
        for start in range(0, 3, batch):
            rows = slice(start, start + batch)
            score.update(torch.from_numpy(p[rows, None]), torch.from_numpy(y[rows, None]))
        assert score.compute() == pytest.approx(expected, rel=1e-6)
    ours = metric()
    ours.update(torch.from_numpy(p[:, None]), torch.from_numpy(y[:, None]))
    assert abs(ours.compute() / expected - 1) > 0.02


def test_all_files_of_all_proteins_identify_the_data(data: Path, tmp_path: Path) -> None:
    def identified(path: Path) -> tuple[str, str]:
        one = task(path, tmp_path)
        (digest,) = Psicov.contents(one.config, one.store).values()
        (folder,) = {f.parent for f in path.rglob("deepcov.lst")}
        known = [p for part in ("deepcov", "psicov") for p in files.read_list(folder, part)]
        return digest, files.fingerprint(known)

    first = identified(data)
    (data / "protein" / "unlisted.txt").write_text("x")
    moved = data.rename(tmp_path / "elsewhere")
    assert identified(moved) == first
    assert first[0] == first[1]
    victim = moved / "protein" / "psicov" / "distance" / "p0xyA-cb.npy"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1  # the size stays
    victim.write_bytes(content)
    assert identified(moved)[0] != first[0]
    assert Psicov.contents(task(None, tmp_path).config, Store(tmp_path / "cache")) == {}
