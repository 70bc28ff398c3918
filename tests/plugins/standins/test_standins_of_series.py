"""The stand-ins of series, sound and DNA: publishers' files, packs, and splits that do not leak."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from xmodal.data import loader
from xmodal.data.store import Store
from xmodal.errors import DataError
from xmodal_standins import crop, ecg_subset, esc10, myo
from xmodal_standins.crop import Crop
from xmodal_standins.dna import BASES, DnaDhs, DnaRice, columns, reverse_complement
from xmodal_standins.ecg_subset import EcgSubset
from xmodal_standins.esc10 import Esc10
from xmodal_standins.myo import Myo, Rotate

RNG = np.random.default_rng(0)
PARTS = ("train", "validation", "test")


def task(kind: Any, path: Path | None, cache: Path, **settings: Any) -> Any:
    config = kind.Config(path=path, **settings)
    return kind(config, SimpleNamespace(store=Store(cache)))


def of_pack(kind: Any, shared: Path, name: str, cache: Path, **settings: Any) -> Any:
    path = shared / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return task(kind, path, cache, **settings)


def zipped(path: Path, files: Iterator[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files:
            archive.writestr(f"repository-0123456/{name}", content)
    return path


def check(one: Any) -> Any:
    """Facts are those of the loaded data, and no group is in two parts."""
    loaded = one.load(0)
    facts = type(one).describe(one.config, one.store)
    assert facts.samples == {part: loader.count(getattr(loaded, part)) for part in PARTS}
    stated = ("", 1) if loaded.symmetry is None else (loaded.symmetry.name, loaded.symmetry.size)
    assert stated == (facts.symmetry, facts.moves)
    assert loaded.test[0][0].shape == facts.shape
    assert loaded.test[0][0].dtype == torch.float32
    found = [{*groups.tolist()} for groups in loaded.groups.values()]
    assert not any(a & b for n, a in enumerate(found) for b in found[:n])
    card = type(one).card(one.config)
    assert card.benchmark == "stand-in"
    missing = task(type(one), None, one.store.root / "empty")
    with pytest.raises(DataError, match=f"no data for '{card.name}'"):
        missing.load(0)
    return loaded


# --- crop -----------------------------------------------------------------------------------------


def crop_files(folder: Path, copies: int = crop.COPIES["test"]) -> dict[str, np.ndarray]:
    tables = {}
    for part, count in crop.COUNTS.items():
        table = RNG.normal(size=(count, 47)).astype(np.float32)
        table[:, 0] = np.sort(RNG.integers(1, 25, count))
        tables[part] = table
    again = crop.COPIES["validation"]
    tables["validation"][50 : 50 + again, 1:] = tables["train"][3000 : 3000 + again, 1:]
    known = np.concatenate([tables["train"][:1500, 1:], tables["validation"][:912, 1:]])
    tables["test"][100 : 100 + copies, 1:] = known[:copies]
    for part, table in tables.items():
        np.save(folder / f"Crop_{part.upper()}.npy", table)
    return tables


@pytest.mark.parametrize("copies", ["drop", "keep"])
def test_crop(tmp_path: Path, copies: str) -> None:
    tables = crop_files(tmp_path)
    loaded = check(task(Crop, tmp_path, tmp_path / "cache", copies=copies))
    for part, table in tables.items():
        if part == "test" and copies == "drop":
            table = np.delete(table, np.s_[100 : 100 + crop.COPIES[part]], axis=0)
        if part == "validation" and copies == "drop":
            table = np.delete(table, np.s_[50 : 50 + crop.COPIES[part]], axis=0)
        held: Any = loader.tensors(getattr(loaded, part))
        np.testing.assert_array_equal(held[0][:, 0].numpy(), table[:, 1:])
        np.testing.assert_array_equal(held[1].numpy(), table[:, 0] - 1)


def test_crop_standardised_and_refused(tmp_path: Path) -> None:
    tables = crop_files(tmp_path)
    loaded = task(Crop, tmp_path, tmp_path / "cache", normalise="series").load(0)
    x = tables["validation"][7, 1:].astype(np.float64)
    wanted = (x - x.mean()) / x.std()
    np.testing.assert_allclose(loaded.validation[7][0][0].numpy(), wanted, rtol=1e-5, atol=1e-6)
    crop_files(tmp_path, copies=5)
    with pytest.raises(DataError, match="5 copies of series before, expected 2,412"):
        task(Crop, tmp_path, tmp_path / "cache").load(0)


def test_crop_of_the_pack(shared_data: Path, tmp_path: Path) -> None:
    loaded = check(of_pack(Crop, shared_data, "ucr_crop.npz", tmp_path))
    train, validation, test = (
        {x.numpy().tobytes() for x, _ in getattr(loaded, part)} for part in PARTS
    )
    assert not train & validation
    assert not (train | validation) & test
    assert len({int(y) for _, y in loaded.test}) == 24


# --- ecg-subset -----------------------------------------------------------------------------------


def test_ecg_subset_of_the_challenges_files(tmp_path: Path) -> None:
    labels = RNG.choice(list("NAO~"), 300, p=[0.5, 0.17, 0.23, 0.1]).tolist()
    records = [RNG.integers(-500, 500, RNG.integers(1100, 1600)).astype(np.int16) for _ in labels]

    def files() -> Iterator[tuple[str, bytes]]:
        lines = []
        for number, (record, label) in enumerate(zip(records, labels, strict=True), 1):
            file = io.BytesIO()
            savemat(file, {"val": record[None]})
            yield f"validation/A{number:05d}.mat", file.getvalue()
            yield f"validation/A{number:05d}.hea", b"a header"
            lines.append(f"A{number:05d},{label}")
        yield "validation/REFERENCE.csv", "\n".join(lines).encode()
        yield "training/REFERENCE.csv", b"A00001,N"

    path = zipped(tmp_path / "EKG_Analysis.zip", files())
    loaded = check(task(EcgSubset, path, tmp_path / "cache"))
    for part in PARTS:
        split, groups = getattr(loaded, part), loaded.groups[part].tolist()
        wanted = []
        for record in dict.fromkeys(groups):
            z = (records[record] - records[record].mean()) / records[record].std()
            stride = ecg_subset.STRIDES["NAO~".index(labels[record])]
            starts = range(0, len(z) - 1000, stride)
            wanted += [(record, z[at : at + 1000], labels[record]) for at in starts]
        assert [record for record, _, _ in wanted] == groups
        for (x, y), (_, z, label) in zip(split, wanted, strict=True):
            np.testing.assert_array_equal(x[0].numpy(), z.astype(np.float32))
            assert ecg_subset.CLASSES[int(y)] == label
    records_of = {part: len({*loaded.groups[part].tolist()}) for part in PARTS}
    assert records_of == {"train": 180, "validation": 60, "test": 60}


def test_ecg_subset_of_the_pack(shared_data: Path, tmp_path: Path) -> None:
    one = of_pack(EcgSubset, shared_data, "ecg_cinc2017_validation300.npz", tmp_path)
    loaded = check(one)
    classes = torch.cat([loader.labels(getattr(loaded, part)) for part in PARTS]).bincount()
    assert classes.tolist() == [2627, 4928, 2729, 7866]


# --- myo ------------------------------------------------------------------------------------------


def myo_archive(path: Path) -> tuple[Path, dict[tuple[Any, ...], np.ndarray]]:
    """28 recordings of each session, as published, with the copied folders."""
    made: dict[tuple[Any, ...], np.ndarray] = {}

    def files() -> Iterator[tuple[str, bytes]]:
        people = {
            "PreTrainingDataset": [f"Female{n}" for n in range(10)]
            + [f"Male{n}" for n in range(12)],
            "EvaluationDataset": [f"Female{n}" for n in range(2)] + [f"Male{n}" for n in range(16)],
        }
        for subset, names in people.items():
            sessions = myo.SESSIONS if subset == "EvaluationDataset" else myo.SESSIONS[:1]
            for name in names:
                for session in sessions:
                    for number in range(28):
                        values = RNG.integers(-128, 128, (80 + number % 3, 8)).astype(np.int8)
                        made[subset, name, session, number] = values
                        place = f"{subset}/{name}/{session}/classe_{number}.dat"
                        yield place, values.astype("<i2").tobytes()
        yield "README.md", b"words"

    return zipped(path, files()), made


@pytest.fixture(scope="module")
def myo_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Any, np.ndarray], Path]:
    folder = tmp_path_factory.mktemp("myo")
    path, made = myo_archive(folder / "MyoArmbandDataset.zip")
    return path, made, folder / "cache"


@pytest.mark.parametrize("split", ["person", "session"])
def test_myo_of_the_publishers_files(
    myo_data: tuple[Path, dict[Any, np.ndarray], Path], split: str
) -> None:
    path, made, cache = myo_data
    one = task(Myo, path, cache, split=split)
    loaded = one.load(0)

    def person(key: tuple[Any, ...]) -> str:
        return f"{'pre' if key[0][0] == 'P' else 'eval'}_{key[1]}"

    own = {key: values for key, values in made.items() if person(key) not in myo.COPIED}
    people = sorted({person(key) for key in own})
    assert (len(own), len(people)) == (2044, 37)
    if split == "person":
        check(one)
        sizes = [len({*loaded.groups[part].tolist()}) for part in PARTS]
        assert sizes == [24, 5, 8]
        training = {people[number] for number in {*loaded.groups["train"].tolist()}}
        tested = {key for key in own if person(key) in myo.TESTED}
        trained = {key for key in own if person(key) in training}
    else:
        three = {key for key in own if key[0] == "EvaluationDataset"}
        tested = {key for key in three if key[2] != "training0"}
        trained = {key for key in three - tested if key[3] < 21}
    over = np.concatenate([own[key] for key in trained]).astype(np.float64)
    mean, scale = over.mean(0), over.std(0)
    wanted = []
    for key in tested:
        for window in np.lib.stride_tricks.sliding_window_view(own[key], 52, axis=0)[::26]:
            wanted.append((key[3] % 7, (window - mean[:, None]) / scale[:, None]))
    found = [(int(y), x[0].numpy()) for x, y in loaded.test]

    def order(pair: tuple[int, np.ndarray]) -> tuple[Any, ...]:
        return (pair[0], *pair[1][:2].round(3).ravel().tolist())

    assert len(found) == len(wanted)
    for (y, x), (label, z) in zip(sorted(found, key=order), sorted(wanted, key=order), strict=True):
        assert y == label
        np.testing.assert_allclose(x, z, rtol=1e-5, atol=1e-5)


def test_myo_of_the_pack(shared_data: Path, tmp_path: Path) -> None:
    loaded = check(of_pack(Myo, shared_data, "myo_semg.npz", tmp_path))
    assert sum(loader.count(getattr(loaded, part)) for part in PARTS) == 75_446
    with np.load(shared_data / "myo_semg.npz") as pack:
        tested = pack["subject_name"][pack["subject_test"]].tolist()
    assert sorted(tested) == sorted(myo.TESTED)


# --- esc10 ----------------------------------------------------------------------------------------


def test_esc10_of_the_pack(shared_data: Path, tmp_path: Path) -> None:
    loaded = check(of_pack(Esc10, shared_data, "esc10_logmel.npz", tmp_path, fold=2))
    with np.load(shared_data / "esc10_logmel.npz") as pack:
        y, fold, offset, values = pack["y"], pack["fold"], pack["offset"], pack["logmel"]
        scale, zero, classes = float(pack["scale"]), float(pack["zero"]), pack["classes"].tolist()
    clips = {part: {*loaded.groups[part].tolist()} for part in ("validation", "test")}
    assert clips["test"] == {*np.flatnonzero(fold == 2).tolist()}
    assert clips["validation"] == {*np.flatnonzero(fold == 3).tolist()}
    seen = sorted(y.item() for _, y in loaded.train)
    assert seen == sorted(y[(fold != 2) & (fold != 3)].tolist())
    # The first clip that tests, piece by piece.
    clip = int(loaded.groups["test"][0])
    db = values[:, offset[clip] : offset[clip + 1]].astype(np.float32) * scale + zero
    pieces = [db[:, at : at + 101] for at in range(0, db.shape[1] - 100, 50)]
    pieces = [piece for piece in pieces if piece.max() > -99]
    mine = [loaded.test[i][0] for i in range(len(pieces))]
    assert (loaded.groups["test"] == clip).sum() == len(pieces)
    for x, piece in zip(mine, pieces, strict=True):
        clipped = np.maximum(piece, piece.max() - 80)
        np.testing.assert_allclose(x[0, :, :-1].numpy(), clipped - clipped.mean(), atol=0.01)
    assert [name.lower() for name in classes] == list(esc10.KINDS)


def test_esc10_of_the_publishers_files(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")

    def files() -> Iterator[tuple[str, bytes]]:
        for number in range(400):
            file = io.BytesIO()
            sound = RNG.normal(size=44_100 + 22_050) * 0.1
            soundfile.write(file, sound, 44_100, format="OGG")
            yield f"{number // 40 + 1:03d} - Sound/{number % 5 + 1}-{number}-A.ogg", file.getvalue()

    path = zipped(tmp_path / "ESC-10.zip", files())
    loaded = check(task(Esc10, path, tmp_path / "cache"))
    assert loader.labels(loaded.train).bincount().tolist() == [24] * 10


# --- dna ------------------------------------------------------------------------------------------


def test_dna(shared_data: Path, tmp_path: Path) -> None:
    for kind, prefix in ((DnaRice, "rice"), (DnaDhs, "dhs")):
        loaded = check(of_pack(kind, shared_data, "dna_rice_dhs.npz", tmp_path))
        with np.load(shared_data / "dna_rice_dhs.npz") as pack:
            text, y, test = (pack[f"{prefix}_{key}"] for key in ("seq", "y", "test"))
        known = y[~test]
        varies = (known.max(0) == 1) & (known.min(0) == 0)
        for (x, labels), row, label in zip(loaded.test, text[test], y[test], strict=True):
            assert bytes(b"ACGT"[k] for k in x.argmax(0)) == row.tobytes()
            assert x.sum() == len(row)
            assert labels.tolist() == label[varies].tolist()


def test_windows_of_rice_that_share_32_bases_are_in_one_part(
    shared_data: Path, tmp_path: Path
) -> None:
    loaded = of_pack(DnaRice, shared_data, "dna_rice_dhs.npz", tmp_path).load(0)
    seen: dict[str, set[bytes]] = {part: set() for part in PARTS}
    for part in PARTS:
        for x, _ in getattr(loaded, part):
            strand = bytes(b"ACGT"[k] for k in x.argmax(0))
            other = strand.translate(bytes.maketrans(b"ACGT", b"TGCA"))[::-1]
            for one in (strand, other):
                seen[part] |= {one[at : at + 32] for at in range(len(one) - 31)}
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]
    assert not seen["train"] & seen["validation"]


def test_a_wrong_pack_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "dna_rice_dhs.npz", other=np.zeros(3))
    with pytest.raises(DataError, match="holds no array"):
        task(DnaRice, tmp_path, tmp_path / "cache").load(0)
    (tmp_path / "myo_semg.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"cannot be read as an \.npz pack"):
        task(Myo, tmp_path / "myo_semg.npz", tmp_path / "cache").load(0)


def test_the_other_strand_is_read_backwards() -> None:
    def of(text: bytes) -> torch.Tensor:
        return columns(np.array([BASES.index(base) for base in text]))

    y = torch.tensor([0.0, 1.0])
    x, label = reverse_complement(of(b"AACGTG"), y, 1)
    assert torch.equal(x, of(b"CACGTT"))
    assert torch.equal(label, y)
    assert torch.equal(reverse_complement(x, y, 1)[0], of(b"AACGTG"))


def test_the_armband_turns_in_the_unit_of_the_device() -> None:
    raw, y = torch.from_numpy(RNG.normal(size=(1, 8, 52))).float(), torch.tensor(3)
    mean, scale = RNG.normal(size=8), RNG.uniform(0.5, 3, size=8)
    mean_C1, scale_C1 = (torch.from_numpy(v).float()[:, None] for v in (mean, scale))
    turn = Rotate(mean, scale)
    for element in range(1, 8):
        moved, label = turn((raw - mean_C1) / scale_C1, y, element)
        wanted = raw[:, [(electrode - element) % 8 for electrode in range(8)]]
        torch.testing.assert_close(moved * scale_C1 + mean_C1, wanted)
        assert label is y
        back, _ = turn(moved, y, 8 - element)
        torch.testing.assert_close(back * scale_C1 + mean_C1, raw)
