"""Tables as tasks: read once, classes are classes wherever they come from, predictions alike."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import xmodal
from xmodal import api
from xmodal.data import Store, class_names, infer_kind, name_of, readers, tables
from xmodal.errors import DataError
from xmodal.interfaces import Context
from xmodal_arrays.task import Arrays
from xmodal_openml.task import OpenML

N = 40
COUNT = np.arange(N)


def make(path: Path, **settings: Any) -> Arrays:
    return Arrays(Arrays.Config(path=path, **settings), None)  # type: ignore[arg-type]


def table(folder: Path, labels: Any, end: str = "csv", **columns: Any) -> Path:
    frame = pd.DataFrame({"a": COUNT, **columns, "y": labels})
    path = folder / f"t.{end}"
    frame.to_csv(path, index=False) if end == "csv" else frame.to_parquet(path)
    return path


def test_a_table_is_parsed_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path, ["u", "v"] * (N // 2))
    parsed: list[Path] = []
    real = tables.detect
    monkeypatch.setattr(tables, "detect", lambda p, *more: (parsed.append(p), real(p, *more))[1])

    def run(task: str) -> None:
        parsed.clear()
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        api.run("methods/baseline", "arrays/row", overrides=[f"task={{use: {task}, path: {path}}}"],
                scale="smoke", directory=folder, report=False)  # fmt: skip
        assert parsed == [path]
        xmodal.load(folder)
        assert parsed == [path]

    run("arrays")
    run("openml")
    path.write_text(path.read_text().replace("u", "w"))
    run("arrays")


PAIRS: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (np.array([-1, 1]), ("-1", "1")),
    (np.array([-1, 1], np.int8), ("-1", "1")),
    (np.array([1.0, 2.0]), ("1", "2")),
    (np.array([False, True]), ("False", "True")),
    (np.array([3, 10], np.uint8), ("3", "10")),
    (["None", "NA"], ("NA", "None")),
    (["null", "nan"], ("nan", "null")),
    ([Decimal("1.0"), Decimal("2.0")], ("1", "2")),
)


@pytest.mark.parametrize(("pair", "classes"), PAIRS, ids=lambda v: str(v))
@pytest.mark.parametrize("end", ["npz", "csv", "parquet", "openml"])
def test_classes_are_classes_wherever_they_come_from(
    tmp_path: Path, pair: Any, classes: tuple[str, ...], end: str
) -> None:
    labels = list(pair) * (N // 2)
    array = np.array(labels)
    if end == "npz":
        array = array.astype(float) if array.dtype == object else array
        np.savez(tmp_path / "t.npz", x=np.c_[COUNT, COUNT], y=array)
        data = make(tmp_path / "t.npz").load(0)
    elif end == "openml":
        config = OpenML.Config(path=table(tmp_path, labels))
        data = OpenML(config, Context.outside(Store(tmp_path))).load(0)
    else:
        data = make(table(tmp_path, labels, end)).load(0)
    assert data.classes == classes
    x, y = data.train.tensors  # type: ignore[attr-defined]
    raw = data.raw
    assert raw is not None
    rows = raw.invert(x)[:, 0].round().long().numpy()
    plain = [float(v) if isinstance(v, Decimal) else v for v in labels]
    expected = [classes.index(name_of(plain[row])) for row in rows]
    assert y.tolist() == expected


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint64, np.float16, np.float64])
def test_the_kind_of_labels_does_not_depend_on_their_type(dtype: Any) -> None:
    full = np.arange(128).repeat(2)
    assert infer_kind(full.astype(dtype)) == "classification"
    assert infer_kind((full + 2).astype(dtype)) == "regression"
    assert infer_kind(np.array([0, 1] * 9, dtype)) == "classification"
    if dtype == np.uint8:
        assert infer_kind(np.arange(256, dtype=dtype).repeat(2)) == "classification"


def test_numbers_too_large_to_count_are_no_classes(tmp_path: Path) -> None:
    assert infer_kind(np.array([0, 1e300] * 20)) == "regression"
    assert infer_kind(np.array([2**60, 2**60 + 1] * 20)) == "classification"
    assert class_names([np.array([2**60, 2**60 + 1])])[0] == (str(2**60), str(2**60 + 1))
    np.savez(tmp_path / "t.npz", x=np.c_[COUNT, COUNT], y=np.array([0, 1e300] * (N // 2)))
    with pytest.raises(DataError, match=r"row 1: label 1e\+300 is not a whole number \(20 such"):
        make(tmp_path / "t.npz", kind="classification").load(0)


@pytest.mark.parametrize(
    ("labels", "names", "classes", "first"),
    [
        ([-1, 1], ("no", "yes"), ("no", "yes"), [0, 1]),
        ([1, 2], ("no", "yes"), ("no", "yes"), [0, 1]),
        ([0, 1], ("no", "yes"), ("no", "yes"), [0, 1]),
        ([1, 2], ("2", "1"), ("2", "1"), [1, 0]),
        (["b", "a"], ("b", "a"), ("b", "a"), [0, 1]),
    ],
)
def test_names_of_classes(
    tmp_path: Path, labels: Any, names: tuple[str, ...], classes: tuple[str, ...], first: list[int]
) -> None:
    np.savez(tmp_path / "t.npz", x=np.c_[COUNT, COUNT], y=np.array(labels * (N // 2)))
    data = make(tmp_path / "t.npz", classes=names, split=(1, 0, 0)).load(0)
    assert data.classes == classes
    assert data.train.tensors[1].tolist() == first * (N // 2)  # type: ignore[attr-defined]


def test_a_word_among_numbers_is_no_class_unless_said(tmp_path: Path) -> None:
    path = table(tmp_path, [*(f"{k / 4}" for k in range(N - 2)), "NA", "NA"])
    with pytest.raises(DataError, match=r"'NA' among its numbers in 2 rows \(first: row 38"):
        make(path).load(0)
    path = table(tmp_path, ["1", "2", "NA", "NA"] * (N // 4))
    assert make(path, kind="classification").load(0).classes == ("1", "2", "NA")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pd.date_range("2024-01-01", periods=N), "holds timestamp.* which cannot be labels"),
        ([[1]] * N, "column 'y' holds lists"),
        (["u", None] * (N // 2), r"\(y\) is missing in 20 rows; first: row 1"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(table(tmp_path, labels, "parquet")).load(0)


def test_what_a_column_is_is_decided_by_the_training_file(tmp_path: Path) -> None:
    for name, odd in (("train", "3"), ("test", "tall")):
        lines = [f"{i % 5},{'xy'[i % 2]},{'uv'[i % 2]}" for i in range(20)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["a,b,y", *lines, f"{odd},z,u"]) + "\n")
    with pytest.raises(DataError, match=r"test\.csv: column 'a' must hold numbers; row 20 has"):
        make(tmp_path).load(0)
    coded = make(tmp_path, categories=["a"]).load(0).raw
    assert coded is not None
    assert coded.levels == (("0", "1", "2", "3", "4", "tall"), ("x", "y", "z"))
    data = Arrays.Config(train=tmp_path / "train.csv", test=tmp_path / "t.csv", missing=("tall",))
    lines = (tmp_path / "test.csv").read_text().replace(",", ";").replace("4;", "4,0;")
    (tmp_path / "t.csv").write_text(lines)
    x, _ = Arrays(data, None).load(0).test.tensors  # type: ignore[arg-type, attr-defined]
    assert torch.isnan(x[:, 0]).tolist() == [False] * 20 + [True]


def test_a_trained_model_reads_other_dialects(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(N, 2)).round(3)
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": ["x", "z"] * (N // 2)})
    kept = frame.assign(y=["u", "v"] * (N // 2))
    kept.to_csv(tmp_path / "t.csv", index=False)
    api.run("methods/baseline", "arrays/row", overrides=[f"task.path={tmp_path / 't.csv'}"],
            scale="smoke", directory=tmp_path / "run", report=False)  # fmt: skip
    trained = xmodal.load(tmp_path / "run")
    expected = trained.outputs(frame)
    kept.to_csv(tmp_path / "german.csv", sep=";", decimal=",", encoding="utf-16")
    kept[["y", "c", "b", "a"]].to_csv(tmp_path / "tabs.tsv", sep="\t", index=False)
    kept.to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "german.csv", "tabs.tsv", "t.parquet"):
        notes: list[str] = []
        file = readers.read(tmp_path / name, trained.raw, 7, note=notes.append)
        pieces = [
            (trained.forward(trained.prepare(x)), trained.labels(y)) for x, y, *_ in file.pieces
        ]
        torch.testing.assert_close(torch.cat([p for p, _ in pieces]), expected)
        assert torch.cat([y for _, y in pieces]).tolist() == [0, 1] * (N // 2)
        assert any("(in training: utf-8, separated by ',')" in note for note in notes) == (
            name in ("german.csv", "tabs.tsv")
        )


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_several_labels_are_numbers_or_truth_values(tmp_path: Path, end: str) -> None:
    path = table(tmp_path, COUNT % 3 == 0, end, text="a b", u=COUNT % 2 == 0)
    data = make(path, y=("u", "y"), drop=("text",), split=(1, 0, 0)).load(0)
    y_NK = data.train.tensors[1]  # type: ignore[attr-defined]
    assert y_NK.tolist() == [[row % 2 == 0, row % 3 == 0] for row in range(N)]
    with pytest.raises(DataError, match=r"column 'text' \(y\) row 0 is the text 'a b'; several"):
        make(path, y=("u", "text")).load(0)


@pytest.mark.parametrize("names", [("-inf", "inf"), ("NaN", "nan")])
def test_words_that_could_be_numbers_are_classes_among_themselves(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    task = make(table(tmp_path, np.where(COUNT % 2, *names)))
    assert task.load(0).classes == tuple(sorted(names))
    with pytest.raises(DataError, match="column 'y' has NaN or infinite labels in 1 rows"):
        make(table(tmp_path, ["inf", *COUNT[1:]])).load(0)


def test_a_dropped_label_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, ["u", "v"] * (N // 2))
    with pytest.raises(DataError, match="column 'y' is the label, so drop: has no use"):
        make(path, drop=("y",)).load(0)


@pytest.mark.parametrize(
    "settings", [{"form": "sequence"}, {"channels": "last"}, {"lengths": "pad"}, {"length": 5}]
)
def test_settings_of_arrays_are_refused_for_tables(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    path = table(tmp_path, ["u", "v"] * (N // 2))
    name, value = next(iter(settings.items()))
    with pytest.raises(DataError, match=f"'{name}: {value}' means nothing for a table"):
        make(path, **settings).load(0)
    assert len(make(path, form="row").load(0).train) == 28
