"""Tables (CSV, Parquet) as parts of a task: which columns are samples, labels and groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from xmodal.data import tables
from xmodal.data.arrays import Array, ArrayRows
from xmodal.data.tables import Part, TableForm
from xmodal.errors import DataError
from xmodal.text import shortlist, shown
from xmodal_arrays.locate import JUDGING, FilePart, Role, as_weights
from xmodal_arrays.settings import DataSettings

_MANY = 4096
"""Above so many columns attention takes longer than anything else."""


@dataclass(frozen=True)
class Encoded:
    """The parts of a table: x float64 ``[n, F]``; ``form`` says how the columns were read.

    ``labels`` holds the column names of y.
    """

    parts: list[FilePart]
    form: TableForm
    notes: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def levels(self) -> tuple[int, ...]:
        """0 for a number, m for a category, F of them."""
        return tuple(map(len, self.form.levels))


def read_tables(files: list[tuple[Role, Path]], settings: DataSettings) -> Encoded:
    """Read and encode, once. A category has the levels found in any file. Raises DataError."""
    wanted = [getattr(settings, name) for name in DataSettings.model_fields]
    return tables.remembered(
        [path for _, path in files], (files, wanted), lambda: _read(files, settings)
    )


def _read(files: list[tuple[Role, Path]], settings: DataSettings) -> Encoded:
    opened = [tables.open_table(path, settings) for _, path in files]
    parts = [one.whole() for one in opened]
    notes = [note for one in opened for note in one.notes]
    for part in parts:
        _require_names(part)
        notes += _doubt(part)
    y_names = _labels(parts[0], settings)
    x_names = _columns(parts[0], settings, y_names)
    needed = [*x_names, *y_names, *filter(None, (settings.group, settings.time))]
    for part in parts[1:]:
        tables.require(part.table.column_names, needed, part.where)
    form, said = tables.learn(parts, x_names, settings.categories, settings)
    time = None if settings.time is None else _time_form(parts, settings.time, settings)
    encoded = []
    for (role, path), part in zip(files, parts, strict=True):
        x_NF = form.encode(part)
        y_N = _label_values(part, y_names, settings)
        group_N = tables.complete_labels(part, settings.group, "group") if settings.group else None
        y_name = f"{path}: column '{shortlist(y_names)}'"
        rows = ArrayRows(x_NF), ArrayRows(y_N)
        time_N = None if time is None else _times(part, time)
        weight_N = None if settings.weight is None else _weights(role, part, settings)
        names = part.where, y_name
        encoded.append(FilePart(role, *rows, *names, (path,), group_N, time_N, weight=weight_N))
    if len(form.features) > _MANY:
        said.append(
            f"arrays: {len(form.features):,} columns: a transformer reads each as a token, and the "
            "cost of attention grows with their square (set x: or drop: for fewer)"
        )
    return Encoded(encoded, form, (*notes, *said), tuple(y_names))


def _require_names(part: Part) -> None:
    if part.dialect is not None and not any(map(_is_name, part.table.column_names)):
        raise DataError(
            f"{part.where}: the first line holds only numbers; put column names above it"
        )


def _is_name(text: str) -> bool:
    return not (_is_number(text) or text.startswith("Unnamed: "))


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True


def _doubt(part: Part) -> list[str]:
    """A note on a text whose first line may be data instead of column names.

    Consecutive whole numbers, such as 0, 1, 2 or years, are accepted: programs write such names.
    """
    if part.dialect is None:
        return []
    names = part.table.column_names
    numbers = [name for name in names if _is_number(name)]
    whole = [int(name) for name in numbers if name.isdecimal()]
    counts = len(whole) == len(numbers) and bool((np.diff(whole) == 1).all())
    counted = set(numbers) if counts else set()
    own = [name for name in names if name not in counted and _holds(part.table[name], name)]
    found, are = (own, "are also values in them") if own else (numbers, "look like numbers")
    if not own and (counted or len(numbers) < 2):
        return []
    listed = shortlist(map(repr, found), 6)
    return [
        f"arrays: {part.where}: the names of columns {listed} {are}: does the file lack a line of "
        "names?"
    ]


def _holds(column: Any, name: str) -> bool:
    """Whether a column of text holds its own name as a value."""
    import pyarrow.compute as pc

    return bool(pc.any(pc.equal(pc.utf8_trim_whitespace(column), name)).as_py())


def _labels(part: Part, settings: DataSettings) -> list[str]:
    chosen = settings.y or (part.table.column_names[-1],)
    names = [chosen] if isinstance(chosen, str) else list(chosen)
    tables.require(part.table.column_names, names, part.where)
    for name in names:
        if name in settings.drop:
            way = "name the label with y:" if not settings.y else "name it under y: or drop:"
            raise DataError(
                f"{part.where}: column '{name}' is the label, so drop: has no use; {way}"
            )
    return names


def _columns(part: Part, settings: DataSettings, y_names: list[str]) -> list[str]:
    known = part.table.column_names
    wanted = settings.x or tuple(known)
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    others = [*settings.drop, *filter(None, (settings.group, settings.time, settings.weight))]
    tables.require(known, [*names, *others, *settings.categories], part.where)
    left_out = {*y_names, *others}
    names = [name for name in names if name not in left_out]
    if not names:
        raise DataError(f"{part.where}: no column is left for x (columns {shortlist(known)})")
    return names


def _time_form(parts: list[Part], name: str, settings: DataSettings) -> TableForm:
    """How the column of times is read. Raises DataError if it holds neither numbers nor dates."""
    form, _ = tables.learn(parts, [name], (), settings)
    if form.levels[0]:
        raise DataError(
            f"{parts[0].where}: column '{name}' (time) holds text that is no date and no number"
        )
    return form


def _times(part: Part, form: TableForm) -> Array:
    """When each row was taken ``[n]``: a number, or days. Raises DataError for a gap."""
    time_N: Array = form.encode(part)[:, 0]
    missing = np.flatnonzero(np.isnan(time_N))
    if len(missing):
        name = form.names[0]
        raise DataError(f"{part.where}: column '{name}' (time) is missing in row {missing[0]}")
    return time_N


def _weights(role: Role, part: Part, settings: DataSettings) -> Array | None:
    """How much each row counts ``[n]``; samples that only judge need none. Raises DataError."""
    name = cast(str, settings.weight)
    if role in JUDGING and name not in part.table.column_names:
        return None
    form, _ = tables.learn([part], [name], (), settings)
    where = f"{part.where}: column '{name}'"
    if form.levels != ((),):
        raise DataError(f"{where} (weight) holds no numbers")
    return as_weights(form.encode(part)[:, 0], where)


def _label_values(part: Part, names: list[str], settings: DataSettings) -> Array:
    columns = [tables.complete_labels(part, name) for name in names]
    for name, y_N in zip(names, columns, strict=True):
        if y_N.dtype.kind == "U" and settings.kind != "classification":
            _require_no_gap(y_N, name, part, settings)
    if len(columns) == 1:
        return columns[0]
    numbers = [_as_numbers(y_N, name, part) for name, y_N in zip(names, columns, strict=True)]
    return np.stack(numbers, axis=1)


def _as_numbers(y_N: Array, name: str, part: Part) -> Array:
    """One of several labels; truth values as 0 and 1. Raises DataError for other text."""
    if y_N.dtype.kind != "U":
        return y_N
    wrong = np.flatnonzero(~np.isin(y_N, ("False", "True")))
    if len(wrong):
        raise DataError(
            f"{part.where}: column '{name}' (y) row {wrong[0]} is the text "
            f"'{shown(y_N[wrong[0]])}'; several labels must be numbers or truth values"
        )
    return np.asarray(y_N == "True", dtype=np.float64)


def _require_no_gap(y_N: Array, name: str, part: Part, settings: DataSettings) -> None:
    """Raise DataError for a word that means missing among numbers."""
    gaps_N = np.isin(y_N, settings.missing)
    if gaps_N.any() and not gaps_N.all() and all(map(_is_number, y_N[~gaps_N])):
        row = int(gaps_N.argmax())
        raise DataError(
            f"{part.where}: column '{name}' (y) has '{y_N[row]}' among its numbers in "
            f"{int(gaps_N.sum())} rows (first: row {row}); leave out these rows, or set kind: "
            "classification if it is a class"
        )
