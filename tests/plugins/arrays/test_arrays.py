"""The user's own files: every format, inference and complaint, and splits that do not leak."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xmodal import api
from xmodal.data import loader
from xmodal.data.numpy_files import MappedRows
from xmodal.data.splits import split
from xmodal.data.store import Store
from xmodal.errors import DataError
from xmodal.interfaces import Context
from xmodal.plugins import registry
from xmodal.recipe.compose import compose, validate
from xmodal_arrays import samples
from xmodal_arrays.layout import layout
from xmodal_arrays.task import Arrays

from ...paths import DATA

h5py = pytest.importorskip("h5py")
pd = pytest.importorskip("pandas")
CROP = DATA / "ucr_crop.npz"
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3, 20)).astype(np.float32) * 4 + 7
Y = np.arange(60) % 3


def make(**settings: Any) -> Arrays:
    return Arrays(Arrays.Config(**settings), None)  # type: ignore[arg-type]


def facts(task: Arrays) -> Any:
    return Arrays.describe(task.config, None)  # type: ignore[arg-type]


def tensors(dataset: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return dataset.tensors


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "my.npz"
    np.savez(path, **arrays)
    return path


def write_npz(folder: Path) -> Path:
    return npz(folder, x=X, y=Y)


def write_npy(folder: Path) -> Path:
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", Y)
    return folder / "x.npy"


def write_folder(folder: Path) -> Path:
    (folder / "damaged.npy").write_bytes(b"junk")
    return write_npy(folder).parent


def write_h5(folder: Path) -> Path:
    with h5py.File(folder / "my.h5", "w") as file:
        file["x"], file["y"] = X, Y
    return folder / "my.h5"


@pytest.mark.parametrize("write", [write_npz, write_npy, write_folder, write_h5])
def test_array_formats_give_the_same_task(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    task = make(path=write(tmp_path))
    assert facts(task).shape == (3, 20)
    assert facts(task).samples == {"train": 42, "validation": 9, "test": 9}
    data, reference = task.load(0), make(path=npz(tmp_path, x=X, y=Y)).load(0)
    for part in ("train", "validation", "test"):
        for a, b in zip(
            tensors(getattr(data, part)), tensors(getattr(reference, part)), strict=True
        ):
            assert torch.equal(a, b)
    assert data.classes == ("0", "1", "2")
    assert "60 samples of shape (3, 20) read as sequence" in data.notes[0]
    assert "int64 with 3 values read as classification (set kind: to change)" in data.notes[0]


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_tables(tmp_path: Path, end: str) -> None:
    frame = pd.DataFrame({
        "age": [20.0 + i if i != 4 else np.nan for i in range(40)],
        "town": ["oslo", "rome", None, "bonn"] * 10,
        "code": [10, 20] * 20,
        "sick": ["no", "yes"] * 20,
    })  # fmt: skip
    path = tmp_path / f"t.{end}"
    frame.to_csv(path, index=False) if end == "csv" else frame.to_parquet(path)
    task = make(path=path, categories=["code"])
    assert facts(task).levels == (0, 3, 2)
    assert facts(task).form == "row"
    data = task.load(0)
    x, y = tensors(data.train)
    assert data.classes == ("no", "yes")
    assert set(x[:, 2].tolist()) == {0.0, 1.0}
    assert torch.isnan(x[:, 1]).any()
    age = x[:, 0][~x[:, 0].isnan()]
    assert abs(float(age.mean())) < 1e-5
    assert torch.equal(x[:, 2].long(), y)
    assert any("column 'town' read as a category of 3 levels" in note for note in data.notes)


def test_text_among_numbers_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,y\n" + "\n".join(f"{i if i != 3 else 'oops'},{i % 2}" for i in range(12)))
    notes = make(path=path).load(0).notes
    assert any("column 'a' has text among its numbers (row 3: 'oops')" in note for note in notes)


@pytest.mark.parametrize(
    ("keys", "settings"),
    [
        (("x_train", "y_train", "x_test", "y_test"), {}),
        (("train_data", "train_label", "test_data", "test_label"), {}),
        (("a_train", "b_train", "a_test", "b_test"), {"x": "a", "y": "b"}),
    ],
)
def test_split_keys_in_one_file(
    tmp_path: Path, keys: tuple[str, ...], settings: dict[str, str]
) -> None:
    arrays = dict(zip(keys, (X[:40], Y[:40], X[40:], Y[40:]), strict=True))
    task = make(path=npz(tmp_path, **arrays), **settings)
    assert facts(task).samples == {"train": 33, "validation": 7, "test": 20}


def test_split_files_and_a_folder_of_them(tmp_path: Path) -> None:
    for name, part in {"train": slice(0, 30), "val": slice(30, 45), "test": slice(45, 60)}.items():
        np.savez(tmp_path / f"{name}.npz", x=X[part], y=Y[part])
    named = make(
        train=tmp_path / "train.npz", validation=tmp_path / "val.npz", test=tmp_path / "test.npz"
    ).load(0)
    found = make(path=tmp_path).load(0)
    assert [len(p) for p in (named.train, named.validation, named.test)] == [30, 15, 15]  # type: ignore[arg-type]
    assert named.checksum == found.checksum
    assert torch.equal(tensors(named.train)[0], tensors(found.train)[0])


CLASSES = ("cross-entropy", "error-rate")
FIELD = RNG.normal(size=(40, 32, 24))


@pytest.mark.parametrize(
    ("x", "y", "expected", "losses"),
    [
        (X, Y, ("sequence", (3, 20), "classification", 3), CLASSES),
        (X[:, 0], Y > 1, ("sequence", (1, 20), "classification", 2), CLASSES),
        (X, Y.astype(str), ("sequence", (3, 20), "classification", 3), CLASSES),
        (X, np.eye(3)[Y], ("sequence", (3, 20), "classification", 3), CLASSES),
        (X, X[:, 0, 0], ("sequence", (3, 20), "regression", 1), ("mse", "rmse")),
        (X, np.arange(60) + 1950, ("sequence", (3, 20), "regression", 1), ("mse", "rmse")),
        (X, X[:, 0, :4], ("sequence", (3, 20), "regression", 4), ("mse", "r2-error")),
        (X, X[:, 0, :4] > 7, ("sequence", (3, 20), "multi-label", 4), ("bce", "auroc-error")),
        (X, X[:, 0], ("sequence", (3, 20), "dense", 1), ("relative-l2", "relative-l2")),
        (X, X[:, :2], ("sequence", (3, 20), "dense", 2), ("relative-l2", "relative-l2")),
        (FIELD, FIELD, ("grid", (1, 32, 24), "dense", 1), ("relative-l2", "relative-l2")),
        (FIELD, FIELD > 0, ("grid", (1, 32, 24), "dense", 1), ("bce", "balanced-error")),
        (FIELD[..., None], FIELD[..., None], ("grid", (1, 32, 24), "dense", 1),
         ("relative-l2", "relative-l2")),
    ],
)  # fmt: skip
def test_what_y_is(tmp_path: Path, x: Any, y: Any, expected: Any, losses: Any) -> None:
    task = make(path=npz(tmp_path, x=x, y=y))
    found = facts(task)
    assert (found.form, found.shape, found.target.kind, found.target.size) == expected
    assert (task.config.loss.name, task.config.metric.name) == losses
    assert task.config.loss.component.supports(found.target)
    data = task.load(0)
    x0, y0 = data.train[0]
    assert x0.shape == found.shape
    assert x0.dtype == torch.float32
    if found.target.kind == "classification":
        assert (y0.shape, y0.dtype) == ((), torch.int64)
    else:
        assert y0.shape == (found.target.size, *found.target.shape)
        standardised = data.raw is not None and data.raw.label_mean is not None
        assert y0.dtype == (torch.float64 if standardised else torch.float32)
        assert loader.first(data.train, 1)[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "shape", "kind"),
    [
        ({"form": "grid"}, (1, 3, 20), "classification"),
        ({"channels": "last"}, (20, 3), "classification"),
        ({"kind": "regression"}, (3, 20), "regression"),
    ],
)
def test_inference_can_be_overridden(
    tmp_path: Path, settings: dict[str, str], shape: tuple[int, ...], kind: str
) -> None:
    found = facts(make(path=npz(tmp_path, x=X, y=Y), **settings))
    assert (found.shape, found.target.kind) == (shape, kind)


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ((46,), ("sequence", (1, 46))),
        ((52, 16), ("sequence", (16, 52))),
        ((4, 1000), ("sequence", (4, 1000))),
        ((96, 102), ("grid", (1, 96, 102))),
        ((3, 32, 32), ("grid", (3, 32, 32))),
        ((32, 32, 3), ("grid", (3, 32, 32))),
        ((64, 8, 8), ("grid", (64, 8, 8))),
        ((60, 40, 3), ("grid", (3, 60, 40))),
    ],
)
def test_layouts(sample: tuple[int, ...], expected: Any) -> None:
    found = layout(sample, "auto", "auto")
    assert (found.form, found.shape) == expected
    assert found.apply(np.zeros((2, *sample))).shape == (2, *expected[1])


def with_nan(x: Any) -> Any:
    x = x.copy()
    x[[5, 9], 0, 0] = np.nan, np.inf
    return x


def changed(y: Any, row: int, value: Any) -> Any:
    y = y.copy()
    y[row] = value
    return y


@pytest.mark.parametrize(
    ("arrays", "settings", "message"),
    [
        ({"signals": X, "y": Y}, {}, r"my\.npz: no array 'x'; it has 'signals' \(60, 3, 20\) f"),
        ({"signals": X, "y": Y}, {"x": "signal"}, r"no array 'signal'; did you mean 'signals'\?"),
        ({"x": X, "y": Y[:50]}, {}, r"my\.npz: 'x' has 60 samples, but .*'y' has 50"),
        ({"x": with_nan(X), "y": Y}, {}, r"'x' has NaN or infinite.* in 2 rows; first: row 5"),
        ({"x": X, "y": changed(X[:, 0, 0], 7, np.nan)}, {}, r"'y' has NaN.* in 1 rows.* row 7"),
        ({"x": X, "y": changed(Y, 8, -1)}, {}, r"'y' row 8: class '-1' has a single sample"),
        ({"x": X, "y": changed(Y, 8, 7)}, {}, r"'y' row 8: class '7' has a single sample"),
        ({"x": X, "y": Y}, {"classes": ["a", "b"]}, r"'y' row 2: label 2 is out of range; "),
        ({"x": X, "y": changed(Y.astype("U9"), 4, "12")}, {"classes": ["0", "1", "2"]},
         r"'y' row 4: label '12' is not in classes; did you mean '[12]'\?"),
        ({"x": X, "y": Y * 0}, {}, r"'y' is constant: every label is '0'"),
        ({"x": X, "y": np.full(60, 0.5)}, {"kind": "regression"}, r"'y' is constant"),
        ({"x": X, "y": Y + 0.5}, {"kind": "classification"}, r"row 0: label 0\.5 is not a whole"),
        ({"x": X, "y": X[:, 0, :4]}, {"kind": "multi-label"}, r"'y' row 0: multi-label needs"),
        ({"x": X, "y": X[:, 0, :4]}, {"kind": "classification"}, r"'y' is not one-hot: row 0"),
        ({"x": X[:0], "y": Y[:0]}, {}, r"'x' has no samples, shape \(0, 3, 20\)"),
        ({"x": X.astype(str), "y": Y}, {}, r"'x' holds text, not real numbers"),
        ({"x": X, "y": Y}, {"form": "row"}, r"'x': form row needs samples with one axis"),
        ({"x": X[:, None, None, None], "y": Y}, {}, r"'x': form auto does not fit samples"),
        ({"x": X, "y": X}, {"kind": "regression"}, r"'y' has labels of shape \(3, 20\), "),
        ({"x": X, "y": changed(Y.astype("U9"), 4, " ")}, {}, r"'y' is empty in 1 rows; .* row 4"),
        ({"x": X, "y": np.stack([Y, Y], 1).astype("U9")}, {}, r"'y' holds 2 texts a sample; sev"),
        ({"x": X, "y": Y}, {"drop": ["a"]}, r"my\.npz: 'drop: a' means nothing for arrays; only"),
        ({"x": X, "y": Y}, {"decimal": ","}, r"my\.npz: 'decimal: ,' means nothing for arrays"),
        ({"x": X[:2], "y": X[:2, 0, 0]}, {}, r"'x': 2 samples cannot be cut into parts of 0\.7"),
    ],
)  # fmt: skip
def test_complaints_about_arrays(
    tmp_path: Path, arrays: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make(path=npz(tmp_path, **arrays), **settings).load(0)


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("unpickled",))


def test_object_arrays_are_refused_and_never_unpickled(tmp_path: Path) -> None:
    ragged = np.empty(2, dtype=object)
    ragged[:] = [Bomb(), Bomb()]
    np.save(tmp_path / "x.npy", ragged, allow_pickle=True)
    np.save(tmp_path / "y.npy", Y[:2])
    np.savez(tmp_path / "my.npz", x=ragged, y=Y[:2])
    for name in ("x.npy", "my.npz"):
        message = rf"{name}: 'x' holds Python objects .* one \.npy a sample .* set lengths: pad"
        with pytest.raises(DataError, match=message):
            make(path=tmp_path / name).load(0)
    (tmp_path / "p.npz").write_bytes(pickle.dumps(1))
    with pytest.raises(DataError, match=r"p\.npz: cannot be read as \.npz"):
        make(path=tmp_path / "p.npz").load(0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.npz", r"mine\.npz: no such file; did you mean 'my\.npz'\?"),
        ("nowhere/my.npz", r"my\.npz: no such file; there is no folder .*nowhere"),
        ("dangling.npz", r"dangling\.npz: no such file: it is a link to .*old\.npz"),
        ("empty.npz", r"empty\.npz: the file is empty"),
        ("cut.npz", r"cut\.npz: cannot be read as \.npz"),
        ("bad.h5", r"bad\.h5: cannot be read as HDF5"),
        ("x.mat", r"x\.mat: cannot be read as \.mat: Mat file appears to be truncated"),
        ("x.mta", r"x\.mta: cannot read '\.mta'; did you mean '\.mat'\?; expected \.npz"),
        ("data_1.npy", r"data_1\.npy|no array 'labels_1'"),
        (".", r"the folder has|no array 'x'"),
    ],
)
def test_complaints_about_files(tmp_path: Path, name: str, message: str) -> None:
    path = write_npz(tmp_path)
    (tmp_path / "empty.npz").touch()
    (tmp_path / "dangling.npz").symlink_to(tmp_path / "old.npz")
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:700])
    for junk in ("bad.h5", "x.mat", "x.mta"):
        (tmp_path / junk).write_text("junk")
    np.save(tmp_path / "data_1.npy", X)
    with pytest.raises(DataError, match=message):
        make(path=tmp_path / name).load(0)


@pytest.mark.parametrize(
    ("first", "noted"),
    [
        (
            "30.5,True,7,no",
            "columns 'True', 'no' are also values in them: does the file lack",
        ),
        ("30.5,7.5,17,sick", "columns '30.5', '7.5', '17' look like numbers: does the file lack"),
        ("0,1,2,sick", None),
        ("2001,2002,2003,y", None),
        ("age,fit,7,sick", None),
        ("age,fit,visits,sick", None),
    ],
)
def test_a_first_row_taken_for_names_is_doubted(
    tmp_path: Path, first: str, noted: str | None
) -> None:
    rows = "\n".join(f"{i}.25,{i % 3 == 0},{i % 5},{'no' if i % 2 else 'yes'}" for i in range(30))
    (tmp_path / "t.csv").write_text(f"{first}\n{rows}\n")
    data = make(path=tmp_path / "t.csv").load(0)
    doubts = [note for note in data.notes if "line of names" in note]
    assert len(doubts) == (noted is not None)
    assert all(note.startswith("arrays: ") and str(noted) in note for note in doubts)
    last = first.rpartition(",")[2]
    said = f"arrays: 30 rows of 3 values; y '{last}' text with 2 values read as classification"
    assert data.notes[0].startswith(said)
    assert "form:" not in data.notes[0]  # a table has no other form


@pytest.mark.parametrize("wide", [False, True])
def test_columns_read_as_numbers_are_noted(tmp_path: Path, wide: bool) -> None:
    frame = pd.DataFrame({f"c{i}": np.arange(20) for i in range(14 if wide else 1)})
    frame["zip"], frame["town"], frame["y"] = "00003", ["a", "b"] * 10, [0, 1] * 10
    frame.to_csv(tmp_path / "t.csv", index=False)
    shown = ", ".join(f"c{i}" for i in range(12)) + ", ... (15)" if wide else "c0, zip"
    noted = f"{tmp_path / 't.csv'}: read as numbers: {shown} (list codes in categories: to change)"
    assert noted in make(path=tmp_path / "t.csv").load(0).notes
    if not wide:
        notes = make(path=tmp_path / "t.csv", categories=["zip", "c0"]).load(0).notes
        assert not any("read as numbers" in note for note in notes)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("a,b,y\n", {}, r"t\.csv: needs a row and two columns, has \(0, 3\)"),
        ("1,2,0\n3,4,1\n", {}, r"t\.csv: the first line holds only numbers"),
        ("age,y\n1,0\n2,1\n", {"y": "aged"}, r"t\.csv: no column 'aged'; did you mean 'age'\?"),
        ("age,y\n1,0\n2,\n", {}, r"column 'y' \(y\) is missing in 1 rows; first: row 1"),
        (
            "age,y\n" + "".join(f"1,{2**62 + row}\n" for row in range(50)),
            {},
            r"output 0 is 4.* in every row, as far as float64 can tell",
        ),
        ("age,y\n1,0\ninf,1\n", {}, r"column 'age' must hold finite numbers; row 1 has 'inf'"),
        ("age,y\n1,0\n2,1\n", {"drop": ["age"]}, r"no column is left for x"),
        ("age,y\n1,0\n2,1,4\n3,4,5,6\n", {}, r"t\.csv: line 3 has 3 fields, but the header 2"),
        ("", {}, r"t\.csv: the file is empty"),
    ],
)
def test_complaints_about_tables(
    tmp_path: Path, text: str, settings: dict[str, Any], message: str
) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        make(path=tmp_path / "t.csv", **settings).load(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "set either path or train"),
        ({"path": "a.npz", "train": "b.npz"}, "set either path or train"),
        ({"path": "a.npz", "test": "b.npz"}, "validation and test go with train"),
        ({"train": "a.npz"}, "train needs test"),
        ({"path": "a.npz", "split": [0.5, 0.5, 0.5]}, "add up to 1"),
    ],
)
def test_complaints_about_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arrays.Config(**settings)


def test_a_test_label_without_training_samples_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", x=X[:50], y=Y[:50])
    np.savez(tmp_path / "test.npz", x=X[50:], y=changed(Y[50:], 3, 9))
    with pytest.raises(DataError, match=r"test\.npz: 'y' row 3: class '9' has no training sample"):
        make(path=tmp_path).load(0)


def test_the_split_is_disjoint_stratified_and_drawn_by_split_seed() -> None:
    y = RNG.choice(5, size=997, p=[0.5, 0.3, 0.15, 0.04, 0.01])
    parts = split(len(y), (0.7, 0.15, 0.15), 0, y)
    assert sorted(np.concatenate(parts)) == list(range(997))
    for part, share in zip(parts, (0.7, 0.15, 0.15), strict=True):
        assert len(part) == pytest.approx(997 * share, abs=2)
        for label in range(5):
            assert abs(np.sum(y[part] == label) - share * np.sum(y == label)) <= 2
    other = split(len(y), (0.7, 0.15, 0.15), 1, y)
    assert [len(p) for p in other] == [len(p) for p in parts]
    assert other[0].tolist() != parts[0].tolist()


def test_split_seed_null_follows_the_run(tmp_path: Path) -> None:
    path = write_npz(tmp_path)
    fixed, tied = make(path=path), make(path=path, split_seed=None)
    assert torch.equal(tensors(fixed.load(0).test)[0], tensors(fixed.load(1).test)[0])
    assert not torch.equal(tensors(tied.load(0).test)[0], tensors(tied.load(1).test)[0])


def test_groups_are_never_cut(tmp_path: Path) -> None:
    group = np.repeat(np.arange(12), 5)
    x = np.repeat(group[:, None], 4, axis=1).astype(np.float32)
    path = npz(tmp_path, x=x, y=Y, patient=group)
    data = make(path=path, group="patient", normalize="none").load(0)
    seen = [set(tensors(p)[0].unique().tolist()) for p in (data.train, data.validation, data.test)]
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]
    assert sum(map(len, seen)) == 12
    for part in (data.train, data.validation, data.test):
        numbers = data.groups_of(part)
        assert numbers is not None
        assert torch.equal(numbers, tensors(part)[0].flatten(1)[:, 0].long())
    frame = pd.DataFrame({"patient": group, "a": x[:, 0], "y": Y})
    frame.to_csv(tmp_path / "t.csv", index=False)
    table = make(path=tmp_path / "t.csv", group="patient", normalize="none").load(0)
    assert set(tensors(table.train)[0].unique().tolist()) == seen[0]
    frame.drop(columns="patient").to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(DataError, match=r"test\.csv: no column 'patient'"):
        make(train=tmp_path / "t.csv", test=tmp_path / "test.csv", group="patient").load(0)
    with pytest.raises(DataError, match="60 samples in 2 groups cannot be cut"):
        make(path=npz(tmp_path, x=x, y=Y, patient=group > 5), group="patient").load(0)
    for gaps in (changed(group.astype(float), 7, np.nan), changed(group.astype("U9"), 7, "")):
        with pytest.raises(DataError, match=r"my\.npz: 'patient' is missing in row 7"):
            make(path=npz(tmp_path, x=x, y=Y, patient=gaps), group="patient").load(0)


def test_statistics_come_from_training_samples_alone(tmp_path: Path) -> None:
    y = X[:, 0, 0] * 10 + 500
    path = npz(tmp_path, x=X, y=y)
    before = make(path=path).load(0)
    flat = tensors(before.train)[0]
    torch.testing.assert_close(flat.mean((0, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(flat.std((0, 2), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    held_out = np.concatenate(split(60, (0.7, 0.15, 0.15), 0)[1:])
    moved, moved_y = X.copy(), y.copy()
    moved[held_out] += 1e4
    moved_y[held_out] += 1e4
    after = make(path=npz(tmp_path, x=moved, y=moved_y)).load(0)
    assert torch.equal(tensors(before.train)[0], tensors(after.train)[0])
    assert torch.equal(before.in_unit(torch.ones(1, 1)), after.in_unit(torch.ones(1, 1)))
    assert torch.equal(tensors(before.train)[1], tensors(after.train)[1])
    assert not torch.equal(tensors(before.test)[0], tensors(after.test)[0])
    assert before.checksum != after.checksum


def test_labels_are_standardised_and_predictions_restored(tmp_path: Path) -> None:
    y = np.stack([X[:, 0, 0] * 3 + 50, X[:, 1, 0] / 9], axis=1)
    data = make(path=npz(tmp_path, x=X, y=y)).load(0)
    _, z_train = tensors(data.train)
    y_train = y[split(60, (0.7, 0.15, 0.15), 0)[0]]
    np.testing.assert_allclose(
        z_train.numpy(), (y_train - y_train.mean(0)) / y_train.std(0), atol=1e-6
    )
    np.testing.assert_allclose(data.in_unit(z_train).numpy(), y_train, rtol=1e-6)
    assert isinstance(data.decode, torch.nn.Identity)


@pytest.mark.parametrize("method", ["pare-published", "orca-published", "pare"])
def test_released_losses_are_in_the_unit_of_the_labels(tmp_path: Path, method: str) -> None:
    """The mean squared error of labels times 1000 is a million times as large, or the same."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(40, 1, 12)), random.normal(size=40)
    found = []
    for factor in (1.0, 1000.0):
        file = npz(tmp_path, x=x, y=5 + factor * y)
        layers = [f"methods/{method}", "arrays/sequence"]
        recipe = validate(compose(layers, registry(), [f"task.path={file}"]), registry())
        data = Arrays(recipe.task.config, None).load(0)  # type: ignore[arg-type]
        labels = torch.stack([data.train[row][1] for row in range(len(data.train))])
        prediction = data.decode(torch.zeros(len(labels), 1))
        found.append(float((prediction - labels).square().mean()))
        own = torch.tensor(5 + factor * y)
        inside = (labels.double().flatten()[:, None] - own[None]).abs().min(1).values
        assert bool((inside < 1e-4 * factor).all()) == (method != "pare")
    assert found[1] / found[0] == pytest.approx(1.0 if method == "pare" else 1e6, rel=1e-3)


def test_a_loss_that_needs_the_unit_gets_it(tmp_path: Path) -> None:
    y = np.stack([X[:, 0] > 7, X[:, 1] > 7], axis=1) * 0.5 + 0.25  # 0/1 with smoothing
    data = make(path=npz(tmp_path, x=X, y=y), loss="bce").load(0)
    y_train = tensors(data.train)[1]
    assert set(y_train.unique().tolist()) == {0.25, 0.75}
    zero, one = data.decode(torch.zeros(1, 2, 20)), data.decode(torch.ones(1, 2, 20))
    torch.testing.assert_close(zero[0, :, 0], y_train.mean((0, 2)))
    torch.testing.assert_close((one - zero)[0, :, 0], y_train.std((0, 2), correction=0))


@pytest.mark.parametrize("unit", [1, 1e-200, 1e200])
def test_channels_of_two_values_become_zero_and_one_unless_asked(
    tmp_path: Path, unit: float
) -> None:
    x = X.astype(np.float64)
    x[:, 1] = (x[:, 1] > 7) * unit
    path = npz(tmp_path, x=x, y=Y)
    auto, standard = (make(path=path, normalize=n).load(0) for n in ("auto", "standard"))
    assert set(tensors(auto.train)[0][:, 1].unique().tolist()) == {0.0, 1.0}
    assert abs(float(tensors(standard.train)[0][:, 1].mean())) < 1e-5


@pytest.mark.parametrize("write", [write_npy, write_h5, write_npz])
def test_large_files_are_read_row_by_row(
    tmp_path: Path, write: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    whole = make(path=path).load(0)
    monkeypatch.setattr(samples, "MEMORY", 0)
    lazy = pickle.loads(pickle.dumps(make(path=path).load(0).test))
    assert isinstance(lazy, samples.FileSamples)
    x, y = tensors(whole.test)
    for index in (0, len(lazy) - 1, -1):
        assert torch.equal(lazy[index][0], x[index])
        assert torch.equal(lazy[index][1], y[index])
    assert len(list(lazy)) == len(x)


def test_describing_reads_no_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_npz(tmp_path)
    keys = []
    real = MappedRows.read
    monkeypatch.setattr(MappedRows, "read", lambda s, i: (keys.append(s.name), real(s, i))[1])
    facts(make(path=path))
    assert set(keys) == {"'y'"}


@pytest.mark.skipif(not CROP.is_file(), reason=f"no crop data at {CROP}")
def test_real_series(tmp_path: Path) -> None:
    with np.load(CROP) as pack:
        train, test = pack["TRAIN"], pack["TEST"][::20]
    path = npz(
        tmp_path, x_train=train[:, 1:], y_train=train[:, 0], x_test=test[:, 1:], y_test=test[:, 0]
    )
    task = make(path=path)
    found = facts(task)
    assert (found.shape, found.target.kind, found.target.size) == ((1, 46), "classification", 24)
    data = task.load(0)
    assert data.classes[0] == "1"
    assert any("numbered 0 to 23" in note for note in data.notes)
    x, y = tensors(data.train)
    assert x.shape == (found.samples["train"], 1, 46)
    assert int(y.max()) == 23


def test_what_is_not_held_out_is_the_same_object(tmp_path: Path) -> None:
    """So the engine can say on what a result was selected."""
    path = npz(tmp_path, x=X, y=Y)
    data = make(path=path, split=(0.8, 0.2, 0)).load(0)
    assert data.test is data.validation is not data.train
    data = make(path=path, split=(1, 0, 0)).load(0)
    assert data.test is data.validation is data.train
    assert make(path=path).load(0).test is not data.validation


@pytest.mark.parametrize(
    ("split", "selected"), [("[0.8, 0.2, 0]", "test"), ("[0.7, 0.1, 0.2]", "validation")]
)
def test_a_result_says_that_nothing_was_held_out(tmp_path: Path, split: str, selected: str) -> None:
    path = npz(tmp_path, x=X, y=Y)
    recipe = tmp_path / "mine.yaml"
    task = f"{{path: {path}, split: {split}}}"
    recipe.write_text(f"extends: [methods/nft, arrays/sequence]\ntask: {task}\n")
    made = api.run(str(recipe), scale="smoke", directory=tmp_path / "run", report=False)
    assert made.result["selected_on"] == selected


def test_all_files_identify_the_data_wherever_they_lie(tmp_path: Path) -> None:
    def identified(**settings: Any) -> tuple[dict[str, str], str]:
        config = Arrays.Config(**settings)
        task = Arrays(config, Context.outside(Store()))
        return dict(Arrays.contents(config, Store())), task.load(0).checksum

    def folder(name: str) -> Path:
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", X)
        np.save(tmp_path / name / "y.npy", Y)
        return tmp_path / name

    X, Y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    first = identified(path=folder("a"))
    np.save(tmp_path / "a" / "unread.npy", X)
    (tmp_path / "a" / "README").write_text("x")
    (tmp_path / "a").rename(tmp_path / "b")
    assert identified(path=tmp_path / "b") == first
    np.save(tmp_path / "b" / "y.npy", 1 - Y)
    assert identified(path=tmp_path / "b") != first

    split = {"train": tmp_path / "t.npz", "test": tmp_path / "v.npz"}
    for name in ("t", "v"):
        np.savez(tmp_path / f"{name}.npz", x=X if name == "t" else X + 1, y=Y)
    one, checksum = identified(**split)
    assert set(one) == {"train", "test"}
    other = identified(train=split["test"], test=split["train"])
    assert other[0] != one
    assert other[1] != checksum


def test_the_files_that_hdf5_draws_on_identify_the_data(tmp_path: Path) -> None:
    X, Y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    (tmp_path / "a").mkdir()
    with h5py.File(tmp_path / "a" / "source.h5", "w") as file:
        file["v"] = X
    layout = h5py.VirtualLayout(X.shape, X.dtype)
    layout[:] = h5py.VirtualSource("source.h5", "v", X.shape)
    (tmp_path / "a" / "labels.bin").write_bytes(Y.tobytes())
    with h5py.File(tmp_path / "a" / "d.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
        file.create_dataset("y", Y.shape, Y.dtype, external=[("labels.bin", 0, Y.nbytes)])

    def identified(folder: str) -> dict[str, str]:
        return dict(Arrays.contents(Arrays.Config(path=tmp_path / folder / "d.h5"), Store()))

    first = identified("a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert identified("b") == first
    (tmp_path / "b" / "labels.bin").write_bytes((1 - Y).tobytes())
    second = identified("b")
    with h5py.File(tmp_path / "b" / "source.h5", "r+") as file:
        file["v"][0] = 1.0
    assert len({first["path"], second["path"], identified("b")["path"]}) == 3
