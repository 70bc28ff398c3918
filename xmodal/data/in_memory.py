"""Samples and labels that a caller holds in memory: how they are read, and files to train from.

Tables whose columns are not all numbers become Parquet files, everything else ``.npy`` files.
Nothing is split, encoded or standardised here, except that classes are numbered. The caller checks
the values.

Shapes: n samples, F columns, C channels, K outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pandas.api.types import is_numeric_dtype
from pyarrow.parquet import write_table

from xmodal.data import lengths, tables
from xmodal.data.arrays import ArrayRows
from xmodal.data.labels import Kind, infer_kind
from xmodal.data.naming import name_of
from xmodal.errors import DataError
from xmodal.files import contents, scratch

Array = NDArray[Any]
Form = Literal["row", "sequence", "grid"]
TRAIN, VALIDATION = "train", "validation"


def as_table(x: Any, names: Sequence[str] | None = None) -> pa.Table | None:
    """``x`` as an Arrow table if it holds more than numbers; None if it is all numbers.

    Frames keep their types. In arrays of text and numbers, columns that are all numbers become
    numbers. ``names``, the columns of an earlier table, make ``x`` a table in any case. Raises
    ValueError for names that occur twice, and for cells that cannot be read.
    """
    try:
        table = tables.of(x, "X")
    except DataError as error:
        raise ValueError(str(error)) from error
    if table is not None:
        if names is None and table.num_columns and _all_numbers(x, table):
            return None
        return table
    if isinstance(x, list | tuple) and any(isinstance(v, str) for row in x for v in _cells(row)):
        x = np.asarray(x, dtype=object)
    if names is not None and not hasattr(x, "dtype"):
        x = np.asarray(x)
    if not isinstance(x, np.ndarray) or x.ndim != 2 or (names is None and not _has_text(x)):
        return None
    fitting = names if names is not None and len(names) == x.shape[1] else None
    called = fitting or [f"x{i}" for i in range(x.shape[1])]
    # Later, text stays text: the fit has decided which columns are numbers.
    read = _number_if_all if names is None else _as_it_is
    return as_table(pd.DataFrame({name: read(x[:, i]) for i, name in enumerate(called)}), called)


def without_index(x: Any, warn: bool) -> Any:
    """A pandas frame without its first column, if that is an index that was saved to CSV."""
    if not isinstance(x, pd.DataFrame) or not tables.starts_with_index([str(c) for c in x.columns]):
        return x
    if warn:
        left_out = f"X: left out: the first column, '{x.columns[0]}' (a saved index)"
        warnings.warn(left_out, stacklevel=4)
    return x.iloc[:, 1:]


def require_size(table: pa.Table, least: int, estimator: str) -> None:
    """Raise ValueError, in scikit-learn's words, for no column or fewer than ``least`` rows."""
    found = f"(shape={table.shape}) while a minimum of"
    if not table.num_columns:
        raise ValueError(f"Found array with 0 feature(s) {found} 1 is required.")
    if table.num_rows < least:
        raise ValueError(
            f"Found array with {table.num_rows} sample(s) {found} {least} is required by "
            f"{estimator}."
        )


def _all_numbers(x: Any, table: pa.Table) -> bool:
    """Whether a table is an array of numbers as well; Decimals and objects are read as tables."""
    if isinstance(x, pd.DataFrame):
        return all(is_numeric_dtype(kind) and getattr(kind, "kind", "") != "O" for kind in x.dtypes)
    types = pa.types
    return all(types.is_integer(kind) or types.is_floating(kind) for kind in table.schema.types)


def _cells(row: Any) -> Any:
    return row if isinstance(row, list | tuple | np.ndarray) else ()


def _has_text(x: Array) -> bool:
    if x.dtype.kind == "O":
        return any(isinstance(value, str) for value in x.flat)
    return x.dtype.kind in "UST"


def _as_it_is(column: Array) -> Any:
    return pd.Series(column, dtype=object)


def _number_if_all(column: Array) -> Any:
    series = pd.Series(column, dtype=object)
    numbers = pd.to_numeric(series, errors="coerce")
    return series if numbers[series.notna()].isna().any() else numbers.astype(float)


def one_length(x: Any, form: str, channels: str) -> tuple[Any, int | None]:
    """Arrays of unequal lengths as one array, filled up with NaN, and the axis of their lengths.

    Anything else comes back as it is, with None. Raises ValueError if only one length can be right.
    """
    items = _items(x)
    if items is None or len({item.shape for item in items}) == 1:
        return x, None
    found = _measured(items)
    if form not in ("auto", "sequence") or len(found.shape) > 2:
        raise ValueError("X: only sequences, (length,) or (channels, length), may differ in length")
    if len(found.shape) == 2 and found.axis != (0 if channels == "last" else 1):
        other = "first" if channels == "last" else "last"
        raise ValueError(f"X: the axis of unequal lengths holds channels; set channels='{other}'")
    filled = f"X has samples of {found.shortest} to {found.longest} values"
    warnings.warn(f"{filled}, filled up at the end to {found.longest}", stacklevel=4)
    return as_long(x, found.of(found.longest), found.axis), found.axis


def as_long(x: Any, shape: tuple[int, ...], axis: int) -> Any:
    """Samples filled up, or cut with a warning, along ``axis`` to ``shape``. Raises ValueError."""
    items = _items(x)
    if items is None and np.ndim(x) != len(shape) + 1:
        return x
    rows = ArrayRows(np.asarray(x) if items is None else items)
    found = _measured(rows.array, axis)
    if len(found.shape) != len(shape):
        raise ValueError(f"X has samples of {len(found.shape)} axes, expected {len(shape)}")
    if found.longest > shape[axis]:
        warnings.warn(
            f"X: samples of {found.longest} values are cut to {shape[axis]}", stacklevel=4
        )
    try:
        return lengths.even(rows, "X", shape, axis).read(slice(None))
    except DataError as error:
        raise ValueError(str(error)) from error


def _items(x: Any) -> Array | None:
    """A list of arrays as an array of arrays; None for anything else."""
    listed = isinstance(x, list | tuple) or (isinstance(x, np.ndarray) and x.dtype == object)
    if not listed or not len(x) or not all(hasattr(item, "shape") for item in x):
        return None
    items = np.empty(len(x), object)
    for row, item in enumerate(x):
        items[row] = np.asarray(item)
    return items


def _measured(samples: Array, axis: int | None = None) -> lengths.Lengths:
    try:
        return lengths.measure([(ArrayRows(samples), "X")], axis)
    except DataError as error:
        raise ValueError(str(error)) from error


def form_of(ndim: int, form: str, text: bool = False) -> Form:
    """The form of samples in an array of ``ndim`` axes; ``text``: in a table with text.

    Raises ValueError if the user's ``form`` does not fit.
    """
    if text and form not in ("auto", "row"):
        raise ValueError(f"form='{form}' needs numbers, but X has columns of text or categories")
    fitting: dict[str, tuple[int, ...]] = {"row": (2,), "sequence": (2, 3), "grid": (3, 4)}
    if form == "auto":
        forms: dict[int, Form] = {2: "row", 3: "sequence", 4: "grid"}
        if ndim not in forms:
            raise ValueError(
                f"Found array with dim {ndim}. X must be (n, features), (n, channels, length) or "
                "(n, channels, height, width)"
            )
        return forms[ndim]
    if ndim not in fitting[form]:
        axes = " or ".join(str(axis) for axis in fitting[form])
        raise ValueError(f"form='{form}' needs X of {axes} dimensions, got {ndim}")
    return form  # type: ignore[return-value]


def channels_first(x: Array, form: Form, channels: str) -> Array:
    """Samples as ``[n, F]``, ``[n, C, length]`` or ``[n, C, height, width]``."""
    full = {"row": 2, "sequence": 3, "grid": 4}[form]
    if x.ndim < full:
        return x[:, None]
    return np.moveaxis(x, -1, 1) if channels == "last" and form != "row" else x


def doubtful(x: Array, form: Form, channels: str) -> str | None:
    """A warning if the axes of ``x`` look as if they meant something else, or None."""
    if form == "row" or x.ndim != {"sequence": 3, "grid": 4}[form] or channels == "last":
        return None
    first, last = x.shape[1], x.shape[-1]
    if form == "sequence" and min(first, last) >= 16 and max(first, last) <= 2 * min(first, last):
        hint = f"{first} channels of length {last}; if these are images, set form='grid'"
    elif (form == "sequence" and first > last) or (form == "grid" and first > 4 >= last):
        sizes = " x ".join(map(str, x.shape[2:]))
        what = "of length " if form == "sequence" else "of "
        hint = f"{first} channels {what}{sizes}; if the last axis holds them, set channels='last'"
    else:
        return None
    return f"X has shape {x.shape}, read as {hint}"


@dataclass(frozen=True)
class CodedLabels:
    """Labels as they are written to files: the names of classes ``[n]``, anything else as numbers.

    ``classes`` are the user's values of the classes 0, 1, ...; ``binary``: all values are 0 or 1.
    """

    kind: Kind
    values: Array
    classes: Array | None = None
    binary: bool = False


def code_labels(y: Array, kind: str, form: Form, shape: tuple[int, ...]) -> CodedLabels:
    """Labels ``[n, ...]`` of samples of ``shape``, with their kind. Raises ValueError."""
    if kind == "auto":
        kind = _kind(y, shape[-1] if form == "sequence" else None)
    binary = y.dtype.kind in "iufb" and bool(np.isin(y, (0, 1)).all())
    if kind == "classification":
        classes, codes_N = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y has one class only ({classes[0]}); at least 2 classes are needed")
        names = np.array([name_of(value) for value in classes.tolist()])
        return CodedLabels("classification", names[codes_N], classes)
    if y.dtype.kind not in "iufb":
        raise ValueError(f"Unknown label type: y holds {y.dtype}, {kind} labels are numbers")
    if kind == "multi-label" and not (binary and y.ndim == 2):
        raise ValueError("y: several labels are rows of 0 and 1, (n, labels)")
    if kind == "regression" and y.ndim > 2:
        raise ValueError(f"y has shape {y.shape}; numbers to predict are (n,) or (n, outputs)")
    if kind == "dense" and y.ndim < 2:
        raise ValueError(f"y has shape {y.shape}; a field has a value at every place of a sample")
    if kind == "dense" and form == "row":
        raise ValueError("rows of a table have no places to predict at; set form= or kind=")
    return CodedLabels(kind, y if y.dtype.kind == "f" else y.astype(np.float64), binary=binary)  # type: ignore[arg-type]


def _kind(y: Array, length: int | None) -> Kind:
    """The kind as of files, but rows of 0/1 are always several labels, not one class each."""
    if y.dtype.kind == "O":
        return "classification"
    kind = infer_kind(y, length)
    return "multi-label" if kind == "classification" and y.ndim == 2 else kind


def plain_labels(y: Array) -> Array:
    """Labels as numbers, booleans or text. Raises ValueError for gaps and for anything else."""
    missing = np.argwhere(pd.isna(y))
    if len(missing):
        raise ValueError(f"Input y contains NaN: row {missing[0, 0]} has no label")
    if y.dtype.kind in "cmMV":
        raise ValueError(
            f"Unknown label type: y holds {y.dtype}, not numbers, truth values or text"
        )
    if y.dtype.kind == "S":
        return np.char.decode(y, "utf-8")
    if y.dtype.kind != "O":
        return y
    if all(isinstance(value, str) for value in y.flat):
        return y
    if all(isinstance(value, Decimal) for value in y.flat):
        return y.astype(np.float64)
    plain = np.array(y.tolist())
    if plain.shape != y.shape or plain.dtype.kind not in "iufb":
        raise ValueError("Unknown label type: y mixes text with something else")
    return plain


def same_labels(y: Array, labels: CodedLabels) -> Array:
    """More labels, coded as ``labels`` are. Raises ValueError for a new class."""
    if labels.classes is None:
        shape = labels.values.shape[1:]
        if [size for size in y.shape[1:] if size > 1] != [size for size in shape if size > 1]:
            raise ValueError(f"validation_data: y has shape {y.shape}, y {labels.values.shape}")
        return y.reshape(len(y), *shape).astype(labels.values.dtype)
    known, values = {*labels.classes.tolist()}, y.ravel().tolist()
    new = [value for value in values if value not in known]
    if new:
        raise ValueError(f"validation_data: class {new[0]!r} is not in y")
    return np.array([name_of(value) for value in values])


def write(
    root: Path,
    parts: Mapping[str, tuple[Any, Array]],
    groups: Array | None = None,
    weights: Array | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Write samples (an array or an Arrow table) and labels into a folder below ``root``.

    ``groups`` and ``weights`` are those of the training samples. The folder's name is a digest of
    its content, so equal content is kept once. Also returns the settings that a task needs to read
    it.
    """
    root.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {}
    each = {"group": groups, "weight": weights}
    known = {name: values for name, values in each.items() if values is not None}
    with scratch(root) as unfinished:
        folder = unfinished / "new"
        folder.mkdir()
        for part, (x, y) in parts.items():
            own = known if part == TRAIN else {}
            if isinstance(x, np.ndarray):
                np.save(folder / f"x_{part}.npy", x)
                np.save(folder / f"y_{part}.npy", y)
                settings["channels"] = "first"
                for name, values in own.items():
                    np.save(folder / f"{name}_{part}.npy", values)
                    settings[name] = name
                continue
            y_NK = y.reshape(len(y), -1)
            names = [_free(f"y{k}" if y_NK.shape[1] > 1 else "y", x) for k in range(y_NK.shape[1])]
            columns = [pa.array(column) for column in y_NK.T]
            settings["y"] = names if len(names) > 1 else names[0]
            for name, values in own.items():
                settings[name] = _free(name, x)
                names, columns = [settings[name], *names], [pa.array(values), *columns]
            table = pa.Table.from_arrays([*x.columns, *columns], [*x.column_names, *names])
            write_table(table, folder / f"{part}.parquet")
        kept = root / contents(folder)[:16]
        if not kept.is_dir():
            folder.replace(kept)
    return kept, settings


def _free(name: str, table: pa.Table) -> str:
    """A name that no column has."""
    while name in table.column_names:
        name = f"_{name}"
    return name


def score_numbers(
    y_NK: Array, found_NK: Array, weight_N: Any = None, binary: bool = False
) -> float:
    """R² of numbers or fields ``[n, K, ...]``, the mean over outputs; accuracy of 0/1 fields."""
    from sklearn.metrics import accuracy_score, r2_score

    y_MK, found_MK = (np.moveaxis(v, 1, -1).reshape(-1, v.shape[1]) for v in (y_NK, found_NK))
    weight_M = None if weight_N is None else np.repeat(weight_N, len(y_MK) // len(y_NK))
    if binary and y_NK.ndim > 2:
        weight = None if weight_M is None else np.repeat(weight_M, y_MK.shape[1])
        return float(accuracy_score(y_MK.ravel(), found_MK.ravel(), sample_weight=weight))
    # Powers of two, so that squares of 1e200 stay finite and no digit changes.
    size_K = np.ldexp(1.0, np.frexp(np.abs(y_MK).max(axis=0))[1])
    return float(r2_score(y_MK / size_K, found_MK / size_K, sample_weight=weight_M))
