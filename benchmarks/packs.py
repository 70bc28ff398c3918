"""Small tasks of other modalities, cut out of data packs, in the form the task ``arrays`` reads.

    python benchmarks/packs.py PACKS [TARGET]

reads the packs in the folder PACKS and writes one ``.npz`` a task to TARGET (``benchmarks/data``);
``benchmarks/tasks/*.yaml`` are their recipes. Every cut is seeded, keeps the classes' shares, and
never puts parts of one recording or person on both sides. The numbers belong to these cuts,
not to the benchmarks the packs stem from.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

Arrays = Mapping[str, NDArray]
SEED = 0


def read(path: Path) -> dict[str, NDArray]:
    """Every array of a pack."""
    with np.load(path, allow_pickle=False) as pack:
        return {name: pack[name] for name in pack.files}


def some(x: NDArray, y: NDArray, count: int) -> tuple[NDArray, NDArray]:
    """``count`` samples that keep the classes' shares; all of them where there are no more."""
    if count >= len(x):
        return x, y
    kept, _ = train_test_split(np.arange(len(x)), train_size=count, stratify=y, random_state=SEED)
    return x[kept], y[kept]


def parts(train: tuple, validation: tuple, test: tuple) -> dict[str, NDArray]:
    """The three parts under the names that ``arrays`` knows."""
    named = {"train": train, "val": validation, "test": test}
    return {f"{key}_{name}": part[i] for name, part in named.items() for i, key in enumerate("xy")}


def crop(folder: Path) -> Arrays:
    """UCR Crop: 46 dates of one pixel, 24 land-cover classes. Test series that are also training
    series are left out.
    """
    pack = read(folder / "ucr_crop.npz")
    known = {row.tobytes() for row in pack["TRAIN"]} | {row.tobytes() for row in pack["VALIDATION"]}
    pack["TEST"] = pack["TEST"][[row.tobytes() not in known for row in pack["TEST"]]]
    cut = {"TRAIN": 960, "VALIDATION": 480, "TEST": 1200}
    found = {
        name: some(pack[name][:, None, 1:], pack[name][:, 0].astype(np.int64) - 1, count)
        for name, count in cut.items()
    }
    return parts(found["TRAIN"], found["VALIDATION"], found["TEST"])


def ecg(folder: Path) -> Arrays:
    """CinC 2017 validation records: windows of 3.3 s, normal, atrial fibrillation, other, noise.

    Split by record; up to four windows a record, each record standardised.
    """
    pack = read(folder / "ecg_cinc2017_validation300.npz")
    starts = np.concatenate([[0], np.cumsum(pack["length"])])
    _, label = np.unique(pack["label"], return_inverse=True)
    records = np.arange(len(label))
    rest, test = train_test_split(records, test_size=0.25, stratify=label, random_state=SEED)
    train, held = train_test_split(rest, test_size=0.2, stratify=label[rest], random_state=SEED)

    def windows(chosen: NDArray) -> tuple[NDArray, NDArray]:
        x, y = [], []
        for i in chosen:
            record = pack["signal"][starts[i] : starts[i + 1]].astype(np.float32)
            record = (record - record.mean()) / (record.std() + 1e-6)
            last = len(record) - 1000
            for at in np.linspace(0, last, min(4, 1 + last // 500)).astype(int):
                x.append(record[None, at : at + 1000])
                y.append(label[i])
        return np.stack(x), np.asarray(y)

    return parts(windows(train), windows(held), windows(test))


def myo(folder: Path) -> Arrays:
    """Myo armband: 0.26 s of 8 muscle channels, 7 gestures; people are on one side only."""
    pack = read(folder / "myo_semg.npz")
    draw = np.random.default_rng(SEED)
    people = draw.permutation(np.flatnonzero(~pack["subject_test"]))
    held = set(people[:5].tolist())
    gathered: dict[str, tuple[list[NDArray], list[int]]] = {
        name: ([], []) for name in ("train", "held", "test")
    }
    for i, person in enumerate(pack["subject"]):
        record = pack["signal"][pack["offset"][i] : pack["offset"][i + 1]].astype(np.float32)
        role = "test" if pack["subject_test"][person] else "held" if person in held else "train"
        x, y = gathered[role]
        for at in draw.choice(len(record) - 52, size=2, replace=False):
            x.append(record[at : at + 52].T)
            y.append(int(pack["gesture"][i]))
    cut = {"train": 1200, "held": 400, "test": 800}
    found = {role: some(np.stack(x), np.asarray(y), cut[role]) for role, (x, y) in gathered.items()}
    return parts(found["train"], found["held"], found["test"])


def esc10(folder: Path) -> Arrays:
    """ESC-10: the first 2 s of a clip as a log-mel picture, 10 classes; folds 1-3, 4, 5."""
    pack = read(folder / "esc10_logmel.npz")
    frames, x = 200, []
    for a, b in zip(pack["offset"][:-1], pack["offset"][1:], strict=True):
        db = pack["logmel"][:, a:b].astype(np.float32) * pack["scale"] + pack["zero"]
        # The start of a clip is often silence: take the loudest stretch.
        loud = np.convolve(db.mean(0), np.ones(frames), "valid").argmax()
        chunk = db[:, loud : loud + frames]
        chunk = np.maximum(chunk, chunk.max() - 80) + 75
        x.append((chunk - chunk.mean())[None])
    data, y, fold = np.stack(x), pack["y"].astype(np.int64), pack["fold"]
    chosen = [np.isin(fold, folds) for folds in ((1, 2, 3), (4,), (5,))]
    return parts(*((data[mask], y[mask]) for mask in chosen))


def decoded(pack: Arrays, chosen: NDArray) -> NDArray:
    """Some JPEG images of a pack as bytes ``[n, 3, H, W]``."""
    from PIL import Image

    images = []
    for i in chosen:
        raw = pack["jpeg"][pack["offset"][i] : pack["offset"][i + 1]].tobytes()
        images.append(np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")))
    return np.stack(images).transpose(0, 3, 1, 2)


def pacs(folder: Path) -> Arrays:
    """PACS sketches at 96 x 96, 7 classes."""
    pack = read(folder / "pacs96.npz")
    sketch = np.flatnonzero(pack["domains"][pack["domain"]] == "sketch")
    y, test = pack["y"].astype(np.int64), pack["test"]
    rest, tested = sketch[~test[sketch]], sketch[test[sketch]]
    rest, _ = some(rest, y[rest], 800)
    train, held = train_test_split(rest, test_size=0.25, stratify=y[rest], random_state=SEED)
    tested, _ = some(tested, y[tested], 500)

    def images(chosen: NDArray) -> tuple[NDArray, NDArray]:
        return decoded(pack, chosen).astype(np.float32) / 255, y[chosen]

    return parts(images(train), images(held), images(tested))


TASKS: dict[str, Callable[[Path], Arrays]] = {
    "crop": crop,
    "ecg": ecg,
    "myo": myo,
    "esc10": esc10,
    "pacs": pacs,
}


def main() -> None:
    """Write every task whose pack is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("packs", type=Path)
    parser.add_argument("target", type=Path, nargs="?", default=Path("benchmarks/data"))
    given = parser.parse_args()
    given.target.mkdir(parents=True, exist_ok=True)
    for name, make in TASKS.items():
        arrays = make(given.packs)
        np.savez_compressed(given.target / f"{name}.npz", **arrays)
        shapes = {key: value.shape for key, value in arrays.items() if key.startswith("x")}
        print(f"{name}: {shapes}")


if __name__ == "__main__":
    main()
