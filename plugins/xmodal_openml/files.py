"""Reads a user's copy of an OpenML table: an ``.npz`` pack of many tables, a CSV or an ARFF file.

A pack holds ``{did}_X`` (NaN = missing) and ``{did}_y`` for each table, with rows in TabPFN's
order, and one JSON string ``meta`` with each table's ``did``, ``name``, ``cat`` (categorical
columns) and ``attributes``.
"""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmodal.errors import DataError, did_you_mean
from xmodal.text import shortlist
from xmodal_openml.tables import Labels, Numbers, Table


def read_table(
    path: Path, did: int | None, target: str | None, categories: tuple[str, ...]
) -> Table:
    """Read one table. Raises DataError with the file and, where it applies, the row or column."""
    if not path.is_file():
        folder = path.parent
        names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        raise DataError(f"{path}: no such file{did_you_mean(path.name, names)}")
    if path.suffix == ".npz":
        return _from_pack(path, did)
    if path.suffix == ".csv":
        return _from_frame(path, _read_csv(path), target, set(categories))
    if path.suffix == ".arff":
        frame, nominal = _read_arff(path)
        return _from_frame(path, frame, target, set(categories) | nominal)
    raise DataError(f"{path}: expected .npz, .csv or .arff, not '{path.suffix}'")


def _from_pack(path: Path, did: int | None) -> Table:
    try:
        with np.load(path, allow_pickle=False) as pack:
            entries = {int(entry["did"]): entry for entry in json.loads(str(pack["meta"]))}
            if did not in entries:
                known = shortlist(f"{key} ({entries[key]['name']})" for key in sorted(entries))
                wanted = "set did:" if did is None else f"no table with did {did}"
                raise DataError(f"{path}: {wanted}; the pack has {known}")
            x_NF = pack[f"{did}_X"].astype(np.float64)
            raw_N = pack[f"{did}_y"]
    except (KeyError, ValueError, OSError) as error:
        raise DataError(f"{path}: not a pack of OpenML tables: {error}") from error
    if x_NF.ndim != 2 or raw_N.shape != x_NF.shape[:1]:
        raise DataError(f"{path}: {did}_X {x_NF.shape} and {did}_y {raw_N.shape} do not match")
    entry = entries[did]
    names: list[tuple[str, ...]] = [()] * x_NF.shape[1]
    for column in entry["cat"]:
        x_NF[:, column], found = _codes(x_NF[:, column])
        names[column] = tuple(found)
    levels = tuple(map(len, names))
    values, y_N = np.unique(raw_N, return_inverse=True)
    columns = tuple(str(name) for name in entry["attributes"])
    classes = tuple(str(value) for value in values)
    label = str(entry.get("target", "class"))
    return Table(x_NF, y_N.astype(np.int64), levels, columns, classes, True, tuple(names), label)


def _codes(values_N: NDArray[Any]) -> tuple[Numbers, list[str]]:
    """Code the sorted distinct values 0 .. m-1; missing values stay NaN."""
    import pandas as pd

    codes_N, found = pd.factorize(values_N, sort=True)
    coded_N = np.where(codes_N < 0, np.nan, codes_N.astype(np.float64))
    return coded_N, [str(value) for value in found]


def _read_csv(path: Path) -> Any:
    import pandas as pd

    try:
        return pd.read_csv(path, na_values=["?"], skipinitialspace=True)
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from error


_ATTRIBUTE = re.compile(
    r"@attribute\s+(?P<name>'[^']*'|\"[^\"]*\"|\S+)\s+(?P<type>.+)", re.IGNORECASE
)


def _read_arff(path: Path) -> tuple[Any, set[str]]:
    """Read an ARFF file: a frame and the names of its nominal columns.

    SciPy's reader does not serve: it refuses the quoted nominal values in OpenML's files.
    """
    import pandas as pd

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        start = next(i for i, line in enumerate(lines) if line.strip().lower() == "@data")
        found = [m for m in map(_ATTRIBUTE.match, map(str.strip, lines[:start])) if m]
        names = [match["name"].strip("'\"") for match in found]
        rows = [line for line in lines[start + 1 :] if line.strip() and line.lstrip()[0] != "%"]
        if any(row.lstrip().startswith("{") for row in rows):
            raise ValueError("sparse rows ({index value, ...}) are not supported")
        text = "\n".join(rows)
        quote = "'" if "'" in text else '"'
        frame = pd.read_csv(
            StringIO(text), header=None, names=names, na_values=["?"], quotechar=quote,
            escapechar="\\", skipinitialspace=True, index_col=False,
        )  # fmt: skip
    except (ValueError, StopIteration) as error:
        reason = str(error) or "it has no @data line"
        raise DataError(f"{path}: cannot be read as ARFF: {reason}") from error
    nominal = {name for name, m in zip(names, found, strict=True) if m["type"].startswith("{")}
    return frame, nominal


def _from_frame(path: Path, frame: Any, target: str | None, categories: set[str]) -> Table:
    """Encode a frame.

    Text columns and the columns in ``categories`` are categories; ``target`` (default: the last
    column) is the label.
    """
    names = [str(name) for name in frame.columns]
    if len(frame) == 0 or len(names) < 2:
        raise DataError(f"{path}: needs at least one row and two columns, but has {frame.shape}")
    for name in [*sorted(categories), *([target] if target else [])]:
        if name not in names:
            raise DataError(f"{path}: no column '{name}'{did_you_mean(name, names)}")
    target = target or names[-1]
    y_N, classes = _labels(path, frame[target], target)
    columns = tuple(name for name in names if name != target)
    x_NF = np.empty((len(frame), len(columns)))
    levels: list[tuple[str, ...]] = []
    for index, name in enumerate(columns):
        if name in categories or frame[name].dtype.kind not in "fiu":
            x_NF[:, index], found = _codes(frame[name].to_numpy(dtype=object, na_value=np.nan))
            levels.append(tuple(found))
        else:
            x_NF[:, index] = frame[name].to_numpy(dtype=np.float64)
            levels.append(())
    counts = tuple(map(len, levels))
    return Table(x_NF, y_N, counts, columns, classes, names=tuple(levels), label=target)


def _labels(path: Path, column: Any, target: str) -> tuple[Labels, tuple[str, ...]]:
    missing = np.flatnonzero(column.isna().to_numpy())
    if len(missing):
        raise DataError(
            f"{path}: column '{target}' (the label) is missing in {len(missing)} rows; first: row "
            f"{missing[0]}"
        )
    codes_N, classes = _codes(column.to_numpy(dtype=object))
    if len(classes) < 2 or len(classes) > len(column) // 2:
        raise DataError(
            f"{path}: column '{target}' (the label) has {len(classes)} distinct values in "
            f"{len(column)} rows; a classification table is needed (set target:)"
        )
    return codes_N.astype(np.int64), tuple(classes)
