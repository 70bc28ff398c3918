"""What ``xmodal fit`` finds in ten minutes on data sets that it was not tuned on.

    python benchmarks/fits.py PACKS SERIES TARGET [NAME ...] [--time 10m] [--plain] [--table]

PACKS is a folder of data packs, SERIES one of the UCR archive (a folder a data set with ``.ts``
files, such as those that aeon brings along). For every data set it writes the files to TARGET and
runs ``fit`` in the time; with ``--plain``, plain fine-tuning (``nft``, all settings the usual ones)
in the same time instead: a search with nothing to choose but the number of steps, and its last fit
on all training samples. ``--table`` prints what was found, beside scikit-learn's forest on the raw
values. All are tested on the same samples. Nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from packs import SEED, decoded, esc10, read, some
from sklearn.datasets import load_diabetes
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import OrdinalEncoder

Arrays = Mapping[str, Any]
"""``x_train``, ``y_train``, ``x_test``, ``y_test``: arrays, or ``x`` as a frame."""


def table(name: str) -> Callable[[Path, Path], Arrays]:
    """A table of OpenML-CC18, three quarters for training; levels of a category are text."""

    def make(packs: Path, _: Path) -> Arrays:
        pack = read(packs / "cc18_30.npz")
        about = next(one for one in json.loads(str(pack["meta"])) if one["name"] == name)
        frame = pd.DataFrame(pack[f"{about['did']}_X"])
        for column in about["cat"]:
            frame[column] = frame[column].map("level {:.0f}".format, na_action="ignore")
        frame.columns = [f"x{column}" for column in frame]
        return cut(frame, pack[f"{about['did']}_y"].astype(np.int64))

    return make


def diabetes(_: Path, __: Path) -> Arrays:
    """Progression of diabetes after a year, of ten numbers a patient (scikit-learn)."""
    x, y = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
    return cut(x, y.to_numpy(), stratify=False)


def cut(x: Any, y: NDArray, stratify: bool = True) -> Arrays:
    """Seeded parts that keep the classes' shares, a quarter to test."""
    one, two, y_one, y_two = train_test_split(
        x, y, test_size=0.25, stratify=y if stratify else None, random_state=SEED
    )
    return {"x_train": one, "y_train": y_one, "x_test": two, "y_test": y_two}


def ucr(name: str) -> Callable[[Path, Path], Arrays]:
    """A data set of the UCR archive, with its own parts; shorter series end in NaN."""

    def series(path: Path) -> tuple[NDArray, NDArray]:
        x, y = [], []
        for line in path.read_text().splitlines():
            if line and line[0] not in "#@":
                *channels, label = line.split(":")
                x.append([np.array(one.split(","), dtype=np.float32) for one in channels])
                y.append(label)
        longest = max(len(channel) for one in x for channel in one)
        full = np.full((len(x), len(x[0]), longest), np.nan, dtype=np.float32)
        for i, one in enumerate(x):
            for c, channel in enumerate(one):
                full[i, c, : len(channel)] = channel
        return full, np.array(y)

    def make(_: Path, archive: Path) -> Arrays:
        found: dict[str, NDArray] = {}
        for part in ("train", "test"):
            path = archive / name / f"{name}_{part.upper()}.ts"
            found[f"x_{part}"], found[f"y_{part}"] = series(path)
        longest = max(found["x_train"].shape[2], found["x_test"].shape[2])
        for part in ("x_train", "x_test"):
            rest = longest - found[part].shape[2]
            found[part] = np.pad(found[part], ((0, 0), (0, 0), (0, rest)), constant_values=np.nan)
        return found

    return make


def helices(packs: Path, _: Path) -> Arrays:
    """Secondary structure (helix, strand, other) of a residue, of 15 residues around it.

    Channels are the 20 amino acids. Chains of a cluster are on one side.
    """
    pack, reach = read(packs / "proteins_115.npz"), 7
    one_hot = np.eye(int(pack["seq"].max()) + 1, dtype=np.float32)[pack["seq"]]
    x, y, test = [], [], []
    for chain, (a, b) in enumerate(zip(pack["offset"][:-1], pack["offset"][1:], strict=True)):
        padded = np.pad(one_hot[a:b], ((reach, reach), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=0)
        x.append(windows)
        y.append(pack["ss"][a:b].astype(np.int64))
        test.append(np.full(b - a, pack["test"][chain]))
    x_all, y_all, tested = np.concatenate(x), np.concatenate(y), np.concatenate(test)
    train = some(x_all[~tested], y_all[~tested], 4000)
    held = some(x_all[tested], y_all[tested], 2000)
    return {"x_train": train[0], "y_train": train[1], "x_test": held[0], "y_test": held[1]}


def cifar10(packs: Path, _: Path) -> Arrays:
    """CIFAR-10: 2,000 training and 1,000 test photographs of 32 x 32."""
    pack = read(packs / "cifar10_6000.npz")
    x, y = some(pack["train_x"], pack["train_y"], 2000)
    return {"x_train": x, "y_train": y, "x_test": pack["test_x"], "y_test": pack["test_y"]}


def paintings(packs: Path, _: Path) -> Arrays:
    """PACS art paintings at 96 x 96, 7 classes."""
    pack = read(packs / "pacs96.npz")
    chosen = np.flatnonzero(pack["domains"][pack["domain"]] == "art_painting")
    x, y = decoded(pack, chosen), pack["y"][chosen].astype(np.int64)
    test = pack["test"][chosen]
    return {"x_train": x[~test], "y_train": y[~test], "x_test": x[test], "y_test": y[test]}


def sounds(packs: Path, _: Path) -> Arrays:
    """ESC-10: folds 1 to 4 train, fold 5 tests."""
    found = esc10(packs)
    both = {key: np.concatenate([found[f"{key}_train"], found[f"{key}_val"]]) for key in "xy"}
    return {"x_train": both["x"], "y_train": both["y"],
            "x_test": found["x_test"], "y_test": found["y_test"]}  # fmt: skip


DATA: dict[str, Callable[[Path, Path], Arrays]] = {
    "MiceProtein": table("MiceProtein"),
    "credit-g": table("credit-g"),
    "cmc": table("cmc"),
    "diabetes": diabetes,
    "OSULeaf": ucr("OSULeaf"),
    "JapaneseVowels": ucr("JapaneseVowels"),
    "helices": helices,
    "cifar10": cifar10,
    "paintings": paintings,
    "sounds": sounds,
}


def write(arrays: Arrays, folder: Path) -> list[str]:
    """The data as files in a folder; returns what to tell xmodal of them."""
    folder.mkdir(parents=True, exist_ok=True)
    x = arrays["x_train"]
    if isinstance(x, pd.DataFrame):
        for part in ("train", "test"):
            frame = arrays[f"x_{part}"].assign(y=arrays[f"y_{part}"])
            frame.to_csv(folder / f"{part}.csv", index=False)
        return [str(folder / "train.csv"), "--test", str(folder / "test.csv")]
    np.savez(folder / "data.npz", **arrays)
    uneven = x.dtype.kind == "f" and np.isnan(x).any()
    return [str(folder / "data.npz"), *(["task.lengths=pad"] if uneven else [])]


def xmodal(*words: str) -> None:
    """Run a command, its output on the screen."""
    print("xmodal", *words, flush=True)
    subprocess.run([sys.executable, "-m", "xmodal", *words], check=True)


def search(folder: Path, told: list[str], time: str) -> None:
    """Search as a user would."""
    xmodal("fit", *told, "--time", time, "--root", str(folder / "fits"))


def plain(folder: Path, told: list[str], time: str) -> None:
    """Fine-tune plainly: as many steps as there is time for, then once more on all samples."""
    space = folder / "plain.yaml"
    space.write_text("methods: [nft]\nwidth: 1\n")
    root = folder / "plain"
    xmodal(
        "fit", *told, "--time", time, "--space", str(space), "--no-ensemble", "--root", str(root)
    )
    tried = [one for one in lines(root) if not one["cheap"]]
    if tried:
        best = max(tried, key=lambda one: (one["rung"], len(one["directories"])))
        recipe = f"{best['directories'][0]}/cell.yaml"
        whole = ["task.test_apart=false", "task.refit=true", "task.folds=null", "task.fold=0"]
        xmodal("run", recipe, *whole, "--directory", str(root / "last"))


def record(root: Path) -> Any:
    """What a search has written."""
    return json.loads(next(root.glob("*/fit.json")).read_text())


def lines(root: Path) -> list[Any]:
    """Everything that a search has tried."""
    found = record(root)
    return [*found["leaderboard"], *found["lower_rungs"]]


def forest(arrays: Arrays) -> float:
    """The test error of scikit-learn's forest of 500 trees on the raw values."""
    x, test = arrays["x_train"], arrays["x_test"]
    if isinstance(x, pd.DataFrame):
        words = list(x.select_dtypes(exclude="number"))
        coder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
        coder.fit(x[words])
        x, test = (t.assign(**dict(zip(words, coder.transform(t[words]).T, strict=True)))
                   for t in (x, test))  # fmt: skip
    x, test = (np.asarray(t, dtype=np.float64).reshape(len(t), -1) for t in (x, test))
    y, truth = arrays["y_train"], arrays["y_test"]
    settings = {"n_estimators": 500, "random_state": SEED, "n_jobs": 2}
    if y.dtype.kind == "f":
        predicted = RandomForestRegressor(**settings).fit(x, y).predict(test)
        return float(np.sqrt(np.mean((predicted - truth) ** 2)))
    return float((RandomForestClassifier(**settings).fit(x, y).predict(test) != truth).mean())


def row(name: str, folder: Path, arrays: Arrays) -> str:
    """A line of the table."""
    found = record(folder / "fits")
    board, test = found["leaderboard"], found["test"]
    chosen, ends = board[0], test["interval"]
    cheap = next(one for one in board if one["cheap"])
    against = {one["words"]: one["metric"] for one in test["against"]}
    cheap_test = test["metric"] if chosen["cheap"] else against[cheap["name"]]
    tuned = next((one for one in board if not one["cheap"] and one["rung"] is not None), None)
    best = f"{tuned['name']}: {tuned['score']:.3f}" if tuned else "none in time"
    last = folder / "plain" / "last" / "result.json"
    nft = f"{json.loads(last.read_text())['test']['metric']:.3f}" if last.exists() else "–"
    return (
        f"| {name} | {chosen['name']} | {chosen['score']:.3f} | {test['metric']:.3f} "
        f"[{ends['low']:.3f}, {ends['high']:.3f}] | {cheap['name']} {cheap_test:.3f} | {best} | "
        f"{nft} | {forest(arrays):.3f} | {found['seconds']:.0f} |"
    )


HEADS = ("data", "chosen", "validation", "test [95 %]", "best cheap, test",
         "best fine-tuned, validation", "nft", "forest", "s")  # fmt: skip


def main() -> None:
    """Every data set in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("packs", type=Path)
    parser.add_argument("series", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--time", default="10m")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.table:
        print("| " + " | ".join(HEADS) + " |\n" + "|---" * len(HEADS) + "|")
    for name in given.names or DATA:
        arrays, folder = DATA[name](given.packs, given.series), given.target / name
        if given.table:
            if list(folder.glob("fits/*/fit.json")):
                print(row(name, folder, arrays), flush=True)
        else:
            (plain if given.plain else search)(folder, write(arrays, folder), given.time)


if __name__ == "__main__":
    main()
