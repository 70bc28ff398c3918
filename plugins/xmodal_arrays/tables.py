"""Reads tables (CSV, Parquet): keeps numbers, turns text into categories, takes NaN as missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xmodal.data.arrays import Array, ArrayRows
from xmodal.errors import DataError, did_you_mean
from xmodal.text import shortlist
from xmodal_arrays.locate import FilePart, Role
from xmodal_arrays.settings import DataSettings


@dataclass(frozen=True)
class Encoded:
    """The parts of a table: x float64 ``[n, F]``; ``levels``: 0 for a number, m for a category.

    ``columns`` holds the column names of x, ``names`` the categories of each column, and ``labels``
    the column names of y.
    """

    parts: list[FilePart]
    levels: tuple[int, ...]
    notes: tuple[str, ...]
    columns: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]


def read_tables(files: list[tuple[Role, Path]], settings: DataSettings) -> Encoded:
    """Read and encode. A category has the levels found in any file. Raises DataError."""
    import pandas as pd

    frames = [_read(path) for _, path in files]
    y_names = _labels(files[0][1], frames[0], settings)
    x_names = _columns(files[0][1], frames[0], settings, y_names)
    for (_, path), frame in zip(files, frames, strict=True):
        _require(path, frame, [*x_names, *y_names])
    bounds = np.cumsum([len(frame) for frame in frames])[:-1]
    whole = pd.concat(frames, ignore_index=True)
    where = _Where([path for _, path in files], [0, *bounds])
    notes = [_doubt(path, frame) for (_, path), frame in zip(files, frames, strict=True)]
    notes = [note for note in notes if note]
    columns, levels = [], []
    for name in x_names:
        values_N, found = _column(whole[name], name, name in settings.categories, where, notes)
        columns.append(values_N)
        levels.append(found)
    plain = [name for name, found in zip(x_names, levels, strict=True) if not found]
    if plain:
        notes.append(
            f"arrays: read as numbers: {shortlist(plain)} (list codes in task.categories to change)"
        )
    x_parts = np.split(np.stack(columns, axis=1), bounds)
    parts = []
    for (role, path), frame, x_NF in zip(files, frames, x_parts, strict=True):
        y_N = _label_values(path, frame, y_names)
        group_N = _plain(frame[settings.group]) if settings.group else None
        y_name = f"{path}: column '{shortlist(y_names)}'"
        parts.append(
            FilePart(role, ArrayRows(x_NF), ArrayRows(y_N), f"{path}", y_name, (path,), group_N)
        )
    counts = tuple(map(len, levels))
    return Encoded(parts, counts, tuple(notes), tuple(x_names), tuple(levels), tuple(y_names))


@dataclass(frozen=True)
class _Where:
    """Translates a row number over all files into a file and its row."""

    paths: list[Path]
    starts: list[int]

    def __call__(self, row: int) -> tuple[Path, int]:
        index = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.paths[index], row - int(self.starts[index])


def _read(path: Path) -> Any:
    import pandas as pd

    try:
        frame = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError) as error:
        kind = path.suffix.lower().removeprefix(".")
        raise DataError(f"{path}: cannot be read as {kind}: {error}") from error
    frame.columns = [str(name) for name in frame.columns]
    if len(frame) == 0 or len(frame.columns) < 2:
        raise DataError(f"{path}: needs a row and two columns, has {frame.shape} (rows, columns)")
    if path.suffix.lower() == ".csv" and not any(map(_is_name, frame.columns)):
        raise DataError(f"{path}: the first line holds only numbers; put column names above it")
    return frame


def _is_name(text: str) -> bool:
    return not (_is_number(text) or text.startswith("Unnamed: "))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _doubt(path: Path, frame: Any) -> str:
    """A note on a CSV file whose first line may be data instead of column names; else empty.

    Consecutive whole numbers, such as 0, 1, 2 or years, are accepted: programs write such names.
    """
    if path.suffix.lower() != ".csv":
        return ""
    numbers = [name for name in frame.columns if _is_number(name)]
    whole = [int(name) for name in numbers if name.isdecimal()]
    counts = len(whole) == len(numbers) and bool((np.diff(whole) == 1).all())
    counted = set(numbers) if counts else set()
    own = [name for name in frame.columns if name not in counted and _holds(frame[name], name)]
    names, are = (own, "are also values in them") if own else (numbers, "look like numbers")
    if not own and (counted or len(numbers) < 2):
        return ""
    listed = shortlist(map(repr, names), 6)
    return (
        f"arrays: {path}: the names of columns {listed} {are}: does the file lack a line of names?"
    )


def _holds(series: Any, name: str) -> bool:
    """Whether a column holds its own name as a value, as text or as a number."""
    if series.dtype.kind in "iuf":
        return _is_number(name) and bool((series == float(name)).any())
    return bool((series.astype(str) == name).any())


def _labels(path: Path, frame: Any, settings: DataSettings) -> list[str]:
    chosen = settings.y or (frame.columns[-1],)
    names = [chosen] if isinstance(chosen, str) else list(chosen)
    _require(path, frame, names)
    return names


def _columns(path: Path, frame: Any, settings: DataSettings, y_names: list[str]) -> list[str]:
    wanted = settings.x or tuple(frame.columns)
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    others = [*settings.drop, *([settings.group] if settings.group else [])]
    _require(path, frame, [*names, *others, *settings.categories])
    names = [name for name in names if name not in {*y_names, *others}]
    if not names:
        raise DataError(f"{path}: no column is left for x (columns {shortlist(frame.columns)})")
    return names


def _require(path: Path, frame: Any, names: list[str]) -> None:
    for name in names:
        if name not in frame.columns:
            raise DataError(
                f"{path}: no column '{name}'{did_you_mean(name, frame.columns)}; it has "
                f"{shortlist(frame.columns)}"
            )


def _column(
    series: Any, name: str, coded: bool, where: _Where, notes: list[str]
) -> tuple[Array, tuple[str, ...]]:
    """A column over all files as float64, and its categories (none for a number)."""
    from pandas.api import types

    number = types.is_numeric_dtype(series.dtype) and not types.is_bool_dtype(series.dtype)
    if number and not coded:
        values_N = series.to_numpy(dtype=np.float64, na_value=np.nan)
        wrong = np.flatnonzero(np.isinf(values_N))
        if len(wrong):
            path, row = where(int(wrong[0]))
            raise DataError(
                f"{path}: column '{name}' has {len(wrong)} infinite values; first: row {row}"
            )
        return values_N, ()
    if types.is_datetime64_any_dtype(series.dtype):
        path, _ = where(0)
        raise DataError(f"{path}: column '{name}' holds dates; convert them to numbers or drop it")
    return _category(series, name, where, notes)


def _category(
    series: Any, name: str, where: _Where, notes: list[str]
) -> tuple[Array, tuple[str, ...]]:
    import pandas as pd

    codes_N, found = pd.factorize(series, sort=True)
    path, _ = where(0)
    note = f"{path}: column '{name}' read as a category of {len(found)} levels"
    text = series[series.notna()]
    numbers = pd.to_numeric(text, errors="coerce")
    if pd.api.types.is_string_dtype(series.dtype) and 0 < numbers.isna().sum() < len(text) / 2:
        path, row = where(int(numbers.index[numbers.isna()][0]))
        value = text[numbers.isna()].iloc[0]
        note = (
            f"{path}: column '{name}' has text among its numbers (row {row}: '{value}'); read as a "
            f"category of {len(found)} levels"
        )
    if len(found) > max(20, len(series) // 2):
        note += "; if it is an identifier, leave out the column (set drop:)"
    notes.append(note)
    return np.where(codes_N < 0, np.nan, codes_N.astype(np.float64)), tuple(map(str, found))


def _label_values(path: Path, frame: Any, names: list[str]) -> Array:
    columns = []
    for name in names:
        missing = np.flatnonzero(frame[name].isna().to_numpy())
        if len(missing):
            raise DataError(
                f"{path}: column '{name}' (y) is missing in {len(missing)} rows; first: row "
                f"{missing[0]}"
            )
        columns.append(_plain(frame[name]))
    return columns[0] if len(names) == 1 else np.stack(columns, axis=1)


def _plain(series: Any) -> Array:
    """A column's values; text arrives as Python objects and becomes NumPy text."""
    values_N: Array = series.to_numpy()
    return values_N if values_N.dtype.kind in "fiub" else values_N.astype(str)
