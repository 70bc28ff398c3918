"""Interprets the labels as classes, numbers, several 0/1 labels or a field; checks and codes them.

``auto``: text, and whole numbers that look like class numbers, are classes. Rows of 0/1 are one-hot
classes if every row has a single 1, otherwise several labels. Labels with the axes of the samples
are fields. Everything else is a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import NoReturn

import numpy as np

from xmodal.data import class_names, infer_kind, name_of, positions, whole_numbers
from xmodal.data.arrays import Array, ArrayRows, Rows
from xmodal.errors import DataError, did_you_mean
from xmodal.interfaces import Target
from xmodal.text import shortlist, shown
from xmodal_arrays.layout import Layout
from xmodal_arrays.locate import FilePart
from xmodal_arrays.settings import DataSettings, Kind

_CHUNK = 1 << 26


@dataclass(frozen=True)
class FileLabels:
    """The labels of every part. ``layout`` brings dense labels to ``[n, size, *shape]``.

    ``binary``: dense labels are all 0 or 1. ``read_as`` is the text for a note about them.
    """

    target: Target
    rows: tuple[Rows, ...]
    read_as: str
    classes: tuple[str, ...] = ()
    layout: Layout | None = None
    binary: bool = False
    notes: tuple[str, ...] = ()


def chunks(rows: Rows) -> Iterator[tuple[slice, Array]]:
    """Consecutive rows, about 64 MB at a time (as float64, so that no type changes a sum)."""
    step = max(1, _CHUNK // (8 * max(1, prod(rows.shape[1:]))))
    for start in range(0, rows.shape[0], step):
        at = slice(start, min(start + step, rows.shape[0]))
        yield at, rows.read(at)


def read_labels(parts: Sequence[FilePart], settings: DataSettings, x: Layout) -> FileLabels:
    """Read, check and code the labels of all parts. Raises DataError with file and row."""
    kind: Kind = settings.kind
    shape = parts[0].y.shape[1:]
    for part in parts:
        if part.y.shape[1:] != shape:
            _fail(part, f"has labels of shape {part.y.shape[1:]}; {parts[0].y_name} of {shape}")
    if len(shape) >= 2 or kind == "dense":
        if kind not in ("auto", "dense"):
            _fail(parts[0], f"has labels of shape {shape}, which are not {kind} labels")
        return _dense(parts, x)
    raw = [_checked(part) for part in parts]
    if kind == "auto":
        kind = infer_kind(np.concatenate(raw), x.shape[-1] if x.form == "sequence" else None)
    if kind == "classification":
        return _classes(parts, raw, settings)
    if kind == "dense":
        return _dense(parts, x)
    return _numbers(parts, raw, kind)


def _fail(part: FilePart, message: str) -> NoReturn:
    raise DataError(f"{part.y_name} {message}")


def _checked(part: FilePart) -> Array:
    """Labels ``[n]`` or ``[n, K]`` as they are in the file, without missing values."""
    y_N = part.y.read(slice(None))
    if y_N.ndim == 2 and y_N.shape[1] == 1:
        y_N = y_N[:, 0]
    if y_N.dtype.kind == "O":
        y_N = y_N.astype(str)
    if y_N.dtype.kind not in "fiubU":
        _fail(part, f"holds {y_N.dtype}, which cannot be labels")
    if y_N.dtype.kind == "U":
        if y_N.ndim == 2:
            _fail(part, f"holds {y_N.shape[1]} texts a sample; several labels must be numbers")
        empty = np.flatnonzero(np.char.strip(y_N) == "")
        if len(empty):
            _fail(part, f"is empty in {len(empty)} rows; first: row {empty[0]}")
    if y_N.dtype.kind == "f":
        wrong = np.flatnonzero(~np.isfinite(y_N.reshape(len(y_N), -1)).all(axis=1))
        if len(wrong):
            _fail(part, f"has NaN or infinite labels in {len(wrong)} rows; first: row {wrong[0]}")
    return y_N


def _classes(parts: Sequence[FilePart], raw: list[Array], settings: DataSettings) -> FileLabels:
    if raw[0].ndim == 2:
        for part, y_NK in zip(parts, raw, strict=True):
            wrong = np.flatnonzero(~np.isin(y_NK, (0, 1)).all(axis=1) | (y_NK.sum(axis=1) != 1))
            if len(wrong):
                _fail(part, f"is not one-hot: row {wrong[0]} is {y_NK[wrong[0]]}")
        raw = [y_NK.argmax(axis=1) for y_NK in raw]
        if len(settings.classes) == parts[0].y.shape[1]:
            raw = [np.array(settings.classes)[y_N] for y_N in raw]
    if not any(y_N.dtype.kind == "U" for y_N in raw):
        _require_whole(parts, raw)
    names, read_as, note = class_names(raw, settings.classes)
    coded = [_coded(part, y_N, read_as) for part, y_N in zip(parts, raw, strict=True)]
    if len(names) < 2:
        _fail(parts[0], f"is constant: every label is '{names[0]}'")
    _require_trained(parts, coded, list(names), settings.tests)
    target = Target("classification", len(names))
    rows = tuple(ArrayRows(y_N) for y_N in coded)
    dtype = "text" if parts[0].y.dtype.kind == "U" else parts[0].y.dtype
    said = f"{dtype} with {len(names)} values read as classification"
    notes = (f"{parts[0].y_name}: {note}",) if note else ()
    return FileLabels(target, rows, said, names, notes=notes)


def _require_whole(parts: Sequence[FilePart], raw: list[Array]) -> None:
    for part, y_N in zip(parts, raw, strict=True):
        wrong = np.flatnonzero(~whole_numbers(y_N))
        if len(wrong):
            _fail(
                part,
                f"row {wrong[0]}: label {y_N[wrong[0]]} is not a whole number ({len(wrong)} such "
                "rows); set kind: regression if these are quantities",
            )


def _coded(part: FilePart, y_N: Array, names: Sequence[str]) -> Array:
    """The place of each label in ``names``."""
    values, back_N = np.unique(y_N, return_inverse=True)
    place_V = positions([name_of(value) for value in values], names)
    wrong = np.flatnonzero(np.isnan(place_V)[back_N])
    if len(wrong):
        value = name_of(y_N[wrong[0]])
        if y_N.dtype.kind != "U" and list(names) == [str(place) for place in range(len(names))]:
            _fail(
                part,
                f"row {wrong[0]}: label {value} is out of range; there are {len(names)} classes",
            )
        hint = did_you_mean(value, names)
        _fail(
            part,
            f"row {wrong[0]}: label '{shown(value)}' is not in classes{hint}; they are "
            f"{shortlist(names)}",
        )
    return np.asarray(place_V.astype(np.int64)[back_N])


def _require_trained(
    parts: Sequence[FilePart], coded: list[Array], values: list[str], tests: bool
) -> None:
    """Check that every class has a sample to train on, and a second if a split must test it."""
    roles = {part.role for part in parts}
    needed = 2 if tests and "validation" not in roles else 1
    counts = np.bincount(coded[0], minlength=len(values))
    for label in np.flatnonzero(counts < needed):
        for part, y_N in zip(parts, coded, strict=True):
            rows = np.flatnonzero(y_N == label)
            if len(rows) and (part.role in ("all", "train") or counts[label] == 0):
                found = "a single sample" if counts[label] else "no training sample"
                _fail(
                    part,
                    f"row {rows[0]}: class '{values[label]}' has {found}; add samples of it or "
                    "leave it out",
                )


def _numbers(parts: Sequence[FilePart], raw: list[Array], kind: Kind) -> FileLabels:
    coded = []
    for part, y_N in zip(parts, raw, strict=True):
        if y_N.dtype.kind == "U":
            _fail(part, f"row 0: label '{y_N.flat[0]}' is text, which is not a {kind} label")
        y_NK = y_N.astype(np.float64).reshape(len(y_N), -1)
        wrong = np.flatnonzero(~np.isin(y_NK, (0, 1)).all(axis=1))
        if kind == "multi-label" and len(wrong):
            row = wrong[0]
            _fail(part, f"row {row}: multi-label needs 0 and 1, but the row is {y_NK[row]}")
        coded.append(y_NK)
    constant = np.flatnonzero((coded[0] == coded[0][:1]).all(axis=0))
    if len(constant) and (kind == "regression" or len(constant) == coded[0].shape[1]):
        column = constant[0]
        value = coded[0][0, column]
        if len(np.unique(raw[0].reshape(len(raw[0]), -1)[:, column])) > 1:
            _fail(parts[0], f"output {column} is {value} in every row, as far as float64 can tell")
        _fail(parts[0], f"is constant: output {column} is {value} in every row")
    size = coded[0].shape[1]
    shown = (
        f"of {size} labels" if kind == "multi-label" else f"of {size} numbers" if size > 1 else ""
    )
    read_as = " ".join(f"{parts[0].y.dtype} {shown} read as {kind}".split())
    notes = [f"{parts[0].y_name}: label {k} never varies" for k in constant]
    rows = tuple(ArrayRows(y_NK) for y_NK in coded)
    return FileLabels(Target(kind, size), rows, read_as, notes=tuple(notes))  # type: ignore[arg-type]


def _dense(parts: Sequence[FilePart], x: Layout) -> FileLabels:
    shape = parts[0].y.shape[1:]
    if x.form == "row" or not 1 <= len(shape) <= 3 or parts[0].y.dtype.kind not in "fiub":
        _fail(parts[0], f"has {parts[0].y.dtype} labels of shape {shape}, which are not a field")
    layout = _field(shape, x)
    values: set[float] = set()
    for part in parts:
        for _, y_N in chunks(part.y):
            values |= set(np.unique(y_N).tolist()[:3])
            if len(values) > 2:
                break
    if len(values) < 2:
        _fail(parts[0], f"is constant: every value is {values.pop()}")
    binary = values == {0, 1}
    read_as = f"{parts[0].y.dtype} of shape {shape} read as {'0/1 ' if binary else ''}dense labels"
    target = Target("dense", layout.shape[0], layout.shape[1:])
    rows = tuple(part.y for part in parts)
    return FileLabels(target, rows, read_as, layout=layout, binary=binary)


def _field(shape: tuple[int, ...], x: Layout) -> Layout:
    """The layout of dense labels: the axis that the sample lacks holds the channels."""
    space = x.shape[1:]
    if len(shape) == 1:
        return Layout("sequence", (1, *shape))
    if len(shape) == 2 and x.form == "grid":
        return Layout("grid", (1, *shape))
    axis = 0
    if shape[1:] != space and (shape[:-1] == space or (x.channel or 0) > 0):
        axis = len(shape) - 1
    form = "grid" if len(shape) == 3 else "sequence"
    return Layout(form, (shape[axis], *shape[:axis], *shape[axis + 1 :]), axis)  # type: ignore[arg-type]
