"""Copies of a benchmark table: where they can be had, how they are read, checked and kept.

A copy is OpenML's ARFF file, or the pack of all 30 tables. Both give the same table: rows in
TabPFN's order, numbers rounded to float32 as in TabPFN's file, categories coded in the order in
which the ARFF file declares them. Only the pack does not know the names of categories.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from xmodal.data import Store
from xmodal.data import tables as any_table
from xmodal.data.datasets import DataCard, Preparation, RemoteFile
from xmodal.errors import DataError
from xmodal.files import read_json, write_json
from xmodal.text import shortlist, shown
from xmodal_openml.arff import Arff, read_arff
from xmodal_openml.catalogue import PublishedTable
from xmodal_openml.files import codes, read_pack
from xmodal_openml.splits import tabpfn_order
from xmodal_openml.tables import Labels, Numbers, Table, fingerprint

V = TypeVar("V")
PACK = "cc18_30.npz"
ARRAYS = ("x.npy", "y.npy", "table.json")
"""The files of a data set that is ready."""
_REDUNDANT, _THIRD = 1464, 2
_DOWNLOADS = "https://api.openml.org/data/v1/download/{file}"
_DESCRIPTIONS = "https://www.openml.org/api/v1/json/data/{did}"
_PACKED = "all 30 tables of TabPFN's file in one pack; no other file is needed with it"
_PAGES = "https://www.openml.org/d/{did}"


def card(table: PublishedTable) -> DataCard:
    """The table's files, as OpenML offers them.

    Where no pin of the ARFF file is known, OpenML's description says address and checksum, and
    ``prepare`` fetches the file.
    """
    page = _PAGES.format(did=table.did)
    known = table.file is not None
    urls = (_DOWNLOADS.format(file=table.file),) if known else ()
    about = (_DESCRIPTIONS.format(did=table.did),)
    by_hand = f"download the ARFF file at {page} and name it {table.name}.arff"
    return DataCard(
        name=table.name,
        benchmark="OpenML-CC18",
        source=f"OpenML data set {table.did}, {page}",
        licence="public on OpenML; most tables are UCI's, CC BY 4.0",
        size=7 * table.rows * table.columns,
        files=(
            RemoteFile(f"{table.name}.arff", urls, None, None, table.md5, by_hand, not known),
            RemoteFile(f"{table.name}.json", about, aside=known, lasting=False),
            RemoteFile(PACK, by_hand=_PACKED, aside=True, whole=True),
        ),
    )


def located(path: Path, table: PublishedTable) -> Path:
    """The copy at ``path``, or in it if it is a folder. Raises DataError."""
    if not path.is_dir():
        return path
    wanted = (ARRAYS[0], f"{table.name}.arff", PACK)
    found = next((path / name for name in wanted if (path / name).is_file()), None)
    if found is None:
        raise DataError(f"{path}: has none of {', '.join(wanted)}")
    return found


def read(path: Path, table: PublishedTable, about: Path | None = None) -> Table:
    """Read a copy, and check it. Raises DataError with what differs from the published table.

    ``about``: OpenML's description of an ARFF file; by default the one beside it, if there is one.
    """
    if path.name == ARRAYS[0]:
        found = opened(path.parent)
    elif path.suffix == ".npz":
        found = read_pack(path, table.did)
    elif path.suffix == ".arff":
        found = _from_arff(path, table, about or path.with_suffix(".json"))
    else:
        raise DataError(f"{path}: expected .npz, .arff or a folder, not '{path.suffix}'")
    return _checked(found, table, f"{path}")


def prepare(table: PublishedTable, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
    """Read a fetched copy, check it, and keep it in ``folder``. Raises DataError."""
    names = [f"{table.name}.arff", PACK]
    path = next((wanted.files[name] for name in names if name in wanted.files), None)
    if path is None:
        path = _fetched(table, wanted)
    found = read(path, table, wanted.files.get(f"{table.name}.json"))
    np.save(folder / ARRAYS[0], found.x_NF.astype(np.float32))
    np.save(folder / ARRAYS[1], found.y_N)
    about = {"columns": found.columns, "levels": found.level_names(), "classes": found.classes}
    write_json(folder / ARRAYS[2], {**about, "label": found.label, "notes": found.notes})
    return {"of": path.name, "rows": len(found.y_N), "fingerprint": fingerprint(found)}


def opened(folder: Path) -> Table:
    """The table of a data set that is ready. Raises DataError."""
    try:
        x_NF = np.load(folder / ARRAYS[0], mmap_mode="r", allow_pickle=False)
        y_N = np.load(folder / ARRAYS[1], mmap_mode="r", allow_pickle=False)
        about = read_json(folder / ARRAYS[2])
        names = tuple(tuple(levels) for levels in about["levels"])
        return Table(
            np.array(x_NF, dtype=np.float64),
            np.array(y_N, dtype=np.int64),
            tuple(map(len, names)),
            tuple(about["columns"]),
            tuple(about["classes"]),
            shuffled=True,
            names=names,
            label=str(about["label"]),
            notes=tuple(about["notes"]),
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = shown(error)
        raise DataError(f"{folder}: not a table that was prepared: {reason}") from error


def as_in_orca(table: Table, published: PublishedTable) -> Table:
    """The table as ORCA reads it: blood-transfusion-service-center without its third column.

    That column is 250 times the second.
    """
    if published.did != _REDUNDANT:
        return table
    return replace(
        table,
        x_NF=np.delete(table.x_NF, _THIRD, axis=1),
        levels=columns_in_orca(table.levels, published),
        columns=columns_in_orca(table.columns, published),
        names=columns_in_orca(table.names, published),
    )


def columns_in_orca(values: tuple[V, ...], published: PublishedTable) -> tuple[V, ...]:
    """Of one value a column, those that ORCA keeps."""
    return values[:_THIRD] + values[_THIRD + 1 :] if published.did == _REDUNDANT else values


# --- OpenML's file --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Description:
    """OpenML's description of a data set: its label, its ignored columns, its file."""

    target: str | None
    ignored: tuple[str, ...]
    url: str | None = None
    md5: str | None = None


def described(path: Path) -> Description:
    """Read a description (the answer of OpenML's ``api/v1/json/data``). Raises DataError."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))["data_set_description"]
        lists = [about.get(key) for key in ("row_id_attribute", "ignore_attribute")]
        # One name, several after commas, or a list of them.
        ignored = [
            name.strip(" '\"")
            for value in lists
            for part in (value if isinstance(value, list) else [value])
            for name in (part or "").split(",")
        ]
        target, url, md5 = (
            about.get(key) for key in ("default_target_attribute", "url", "md5_checksum")
        )
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        reason = shown(error)
        raise DataError(f"{path}: not OpenML's description of a data set: {reason}") from error
    return Description(target, tuple(name for name in ignored if name), url, md5)


def _fetched(table: PublishedTable, wanted: Preparation) -> Path:
    """Fetch the ARFF file that OpenML's description names. Raises DataError."""
    name = f"{table.name}.json"
    if name not in wanted.files:
        raise DataError(f"{table.name}: needs {table.name}.arff, {name} or {PACK}")
    about = described(wanted.files[name])
    if not about.url:
        raise DataError(f"{wanted.files[name]}: names no file (url)")
    name, md5 = f"{table.name}.arff", table.md5 or about.md5
    return Store(wanted.scratch).download([about.url], name, md5=md5)


def _from_arff(path: Path, table: PublishedTable, about: Path) -> Table:
    """Read OpenML's file as OpenML's own client does, and bring it to TabPFN's order."""
    file = read_arff(path)
    known = [attribute.name for attribute in file.attributes]
    description = described(about) if about.is_file() else Description(None, table.ignored)
    target = description.target or known[-1]
    any_table.require(known, [target, *description.ignored], f"{path}")
    y_N, classes = _classes(file, target)
    columns = [name for name in known if name not in {target, *description.ignored}]
    x_NF = np.empty((len(y_N), len(columns)))
    names: list[tuple[str, ...]] = []
    for place, name in enumerate(columns):
        x_NF[:, place], levels = _column(file, name)
        names.append(levels)
    order = tabpfn_order(len(y_N))
    return Table(
        x_NF[order],
        y_N[order],
        tuple(map(len, names)),
        tuple(columns),
        classes,
        shuffled=True,
        names=tuple(names),
        label=target,
    )


def _classes(file: Arff, target: str) -> tuple[Labels, tuple[str, ...]]:
    """The labels, coded in the declared order of the classes that occur."""
    attribute, cells = file.column(target)
    if attribute.kind != "nominal":
        raise DataError(f"{file.where}: '{target}' (the label) is {attribute.kind}, not nominal")
    y_N, classes = _coded(attribute.levels, cells)
    if (gap := np.flatnonzero(np.isnan(y_N))).size:
        raise DataError(f"{file.where}: line {file.lines[gap[0]]} has no label ('{target}')")
    return y_N.astype(np.int64), classes


def _column(file: Arff, name: str) -> tuple[Numbers, tuple[str, ...]]:
    """A column as numbers, and the names of its categories if it has any."""
    attribute, cells = file.column(name)
    if attribute.kind == "nominal":
        return _coded(attribute.levels, cells)
    if attribute.kind != "numeric":
        raise DataError(
            f"{file.where}: '{name}' is {attribute.kind}; a column is numeric or nominal, or "
            "ignored in OpenML's description (.json beside the file)"
        )
    numbers = [np.nan if cell is None else float(cell) for cell in cells]
    return np.array(numbers, dtype=np.float32).astype(np.float64), ()


def _coded(
    levels: tuple[str, ...], cells: tuple[str | None, ...]
) -> tuple[Numbers, tuple[str, ...]]:
    """Cells as codes 0 .. m-1 of those categories that occur, and their names."""
    place = {level: float(index) for index, level in enumerate(levels)}
    declared_N = np.array([np.nan if cell is None else place[cell] for cell in cells])
    coded_N, used = codes(declared_N)
    return coded_N, tuple(levels[int(index)] for index in used)


# --- what is published ----------------------------------------------------------------------------


def _checked(found: Table, table: PublishedTable, where: str) -> Table:
    """The table, noted if it is not TabPFN's to the last bit. Raises DataError if it is another."""
    counts = tuple(np.bincount(found.y_N).tolist())
    missing = int(np.isnan(found.x_NF).sum())
    pairs = {
        "columns": (found.x_NF.shape[1], table.columns),
        "rows of each class": (counts, table.counts),
        "missing cells": (missing, table.missing),
        "categories of each column": (found.levels, table.level_counts()),
    }
    wrong = [f"{what}: {a}, expected {b}" for what, (a, b) in pairs.items() if a != b]
    if wrong:
        raise DataError(f"{where}: not OpenML {table.did} ({table.name}): {shortlist(wrong)}")
    if fingerprint(found) == table.digest:
        return found
    note = f"{table.name}: a few values differ from TabPFN's file; counts and categories agree"
    return replace(found, notes=tuple(dict.fromkeys((*found.notes, note))))
