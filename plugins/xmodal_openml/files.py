"""Reads a user's copy of an OpenML table: an ``.npz`` pack of many tables, a CSV or an ARFF file.

A pack holds ``{did}_X`` (NaN = missing) and ``{did}_y`` for each table, with rows in TabPFN's
order, and one JSON string ``meta`` with each table's ``did``, ``name``, ``cat`` (categorical
columns) and ``attributes``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xmodal.data import class_names, name_of, tables
from xmodal.data.arrays import described, open_container
from xmodal.data.tables import Dialect, Part, TableFormat
from xmodal.errors import DataError
from xmodal.text import shortlist, shown
from xmodal_openml.arff import read_arff
from xmodal_openml.tables import Labels, Numbers, Table


def read_table(
    path: Path,
    did: int | None,
    target: str | None,
    categories: tuple[str, ...],
    settings: TableFormat | None = None,
) -> Table:
    """Read one table. Raises DataError with the file and, where it applies, the row or column."""
    settings = settings or TableFormat()
    tables.existing(path)
    if path.suffix == ".npz":
        return read_pack(path, did)
    if path.suffix == ".csv":
        opened = tables.open_table(path, settings)
        chosen = {"target": target, "categories": {*categories}, "notes": opened.notes}
        return _from_rows(path, opened.whole(), settings, **chosen)
    if path.suffix == ".arff":
        part, nominal = _of_arff(path)
        nominal = (nominal | {*categories}) - {target or part.table.column_names[-1]}
        # In ARFF files only this means missing.
        settings = settings.model_copy(update={"missing": ("?",)})
        return _from_rows(path, part, settings, target=target, categories=nominal, notes=[])
    raise DataError(f"{path}: expected .npz, .csv or .arff, not '{path.suffix}'")


def read_pack(path: Path, did: int | None) -> Table:
    """Read one table of a pack. Raises DataError."""
    pack = open_container(path)
    try:
        entries = {int(one["did"]): one for one in json.loads(str(pack.scalar("meta")))}
        titles = [f"{key} ({entries[key]['name']})" for key in sorted(entries)]
        entry = {} if did is None else entries.get(did, {})
        columns = tuple(map(str, entry.get("attributes", ())))
        coded = [int(column) for column in entry.get("cat", ())]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not a pack of OpenML tables: {shown(error)}") from error
    if did not in entries:
        wanted = "set did:" if did is None else f"no table with did {did}"
        raise DataError(f"{path}: {wanted}; the pack has {shortlist(titles)}")
    x, y = (pack.get(f"{did}_{part}", "did:") for part in "Xy")
    if x.shape[1:] != (len(columns),) or y.shape != x.shape[:1] or x.dtype.kind not in "fiub":
        raise DataError(
            f"{path}: {did}_X {described(x.shape, x.dtype)}, {did}_y {y.shape} and "
            f"{len(columns)} attributes do not match"
        )
    if not {*coded} <= {*range(len(columns))}:
        raise DataError(f"{path}: table {did} has no columns {shortlist(coded)} (cat in meta)")
    x_NF, raw_N = x.read(slice(None)).astype(np.float64), y.read(slice(None))
    wrong = np.flatnonzero(np.isinf(x_NF).any(axis=1) | (raw_N != raw_N))
    if len(wrong):
        raise DataError(f"{path}: table {did} row {wrong[0]} has an infinite value or no label")
    names: list[tuple[str, ...]] = [()] * len(columns)
    for column in coded:
        x_NF[:, column], found = codes(x_NF[:, column])
        names[column] = tuple(map(name_of, found))
    levels = tuple(map(len, names))
    values, y_N = np.unique(raw_N, return_inverse=True)
    classes = tuple(str(value) for value in values)
    label = str(entry.get("target", "class"))
    return Table(x_NF, y_N.astype(np.int64), levels, columns, classes, True, tuple(names), label)


def codes(values_N: NDArray[Any]) -> tuple[Numbers, Numbers]:
    """Code the sorted distinct numbers 0 .. m-1, missing values stay NaN; also those numbers."""
    known = ~np.isnan(values_N)
    found, back_N = np.unique(values_N[known], return_inverse=True)
    coded_N = np.full(len(values_N), np.nan)
    coded_N[known] = back_N
    return coded_N, found


def _of_arff(path: Path) -> tuple[Part, set[str]]:
    """The rows of an ARFF file, and the names of its nominal columns."""
    file = read_arff(path)
    names = [attribute.name for attribute in file.attributes]
    cells = [pa.array(["?" if c is None else c for c in column]) for column in file.cells]
    nominal = {attribute.name for attribute in file.attributes if attribute.kind == "nominal"}
    dialect = Dialect(quote="'", escape="\\", skip=file.lines[0] - 1)
    return Part(f"{path}", pa.Table.from_arrays(cells, names), dialect), nominal


def _from_rows(path: Path, part: Part, settings: TableFormat, **wanted: Any) -> Table:
    """Encode the rows of a file.

    Text columns and ``categories`` are categories; ``target`` (default: the last) is the label.
    ``notes`` are those on the file.
    """
    names = part.table.column_names
    target, categories = wanted["target"] or names[-1], wanted["categories"]
    tables.require(names, [*sorted(categories), target], str(path))
    y_N, classes = _labels(path, part, target)
    columns = [name for name in names if name != target]
    form, said = tables.learn([part], columns, tuple(categories), settings)
    x_NF = form.encode(part)
    levels = tuple(map(len, form.levels))
    return Table(
        x_NF, y_N, levels, form.features, classes, names=form.levels, label=target, form=form,
        notes=(*wanted["notes"], *said),
    )  # fmt: skip


def _labels(path: Path, part: Part, target: str) -> tuple[Labels, tuple[str, ...]]:
    gaps = ("?",) if path.suffix == ".arff" else ()
    values_N = tables.complete_labels(part, target, "the label", gaps)
    classes, _, _ = class_names([values_N])
    if len(classes) < 2 or len(classes) > len(values_N) // 2:
        raise DataError(
            f"{path}: column '{target}' (the label) has {len(classes)} distinct values in "
            f"{len(values_N)} rows; a classification table is needed (set target:)"
        )
    found, back_N = np.unique(values_N, return_inverse=True)
    place = {name: index for index, name in enumerate(classes)}
    codes = [place[name_of(value)] for value in found.tolist()]
    return np.array(codes, dtype=np.int64)[back_N], classes
