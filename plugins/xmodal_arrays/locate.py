"""Finds the samples and labels that the settings name: in a file, a folder, or split files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from xmodal.data import lengths
from xmodal.data.arrays import (
    LABEL_KEYS,
    SAMPLE_KEYS,
    Array,
    ArrayRows,
    Container,
    FolderRows,
    Indices,
    Rows,
    existing,
    first_key,
    open_container,
    row_labels,
)
from xmodal.data.arrays import SUFFIXES as ARRAYS
from xmodal.data.tables import SUFFIXES as TABLES
from xmodal.errors import DataError, did_you_mean
from xmodal.text import shortlist
from xmodal_arrays.layout import Channels, layout
from xmodal_arrays.settings import DataSettings

Role = Literal["all", "train", "validation", "test"]
JUDGING: tuple[Role, ...] = ("validation", "test")
"""Parts that no model is fitted to: their samples need no weights."""
SUFFIXES = (*ARRAYS, *TABLES)
_WORDS: dict[str, Role] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class FilePart:
    """Samples and labels that belong together; with ``role`` ``all`` they are still to be split.

    Messages call the arrays ``x_name`` and ``y_name``. ``group``: what must not straddle parts.
    ``record``: the number of the recording that each window was cut from. ``weight``: how much each
    sample counts, float64.
    """

    role: Role
    x: Rows
    y: Rows
    x_name: str
    y_name: str
    files: tuple[Path, ...]
    group: Array | None = None
    time: Array | None = None
    record: Array | None = None
    weight: Array | None = None


@dataclass(frozen=True)
class ArrayParts:
    """The parts of a task whose data are arrays, and how later files are read like them.

    ``x_keys``, ``y_keys``: the names of the arrays, where a file holds one part. ``time``: the axis
    of a sample along which lengths are unequal, None if all are equal; ``padded``: the same axis if
    samples are filled up along it. ``window``: how far apart windows of recordings begin.
    """

    parts: tuple[FilePart, ...]
    x_keys: tuple[str, ...] = ()
    y_keys: tuple[str, ...] = ()
    time: int | None = None
    padded: int | None = None
    notes: tuple[str, ...] = ()
    window: int | None = None


def sources(settings: DataSettings) -> list[tuple[Role, Path]]:
    """Every file or ``.npy`` folder to read, with its role. Raises DataError."""
    if settings.path is None and settings.train is None:
        raise DataError("neither path nor train is set")
    if settings.path is None:
        given: dict[Role, Path | None] = {
            "train": settings.train,
            "validation": settings.validation,
            "test": settings.test,
        }
        return [(role, _known(existing(path))) for role, path in given.items() if path is not None]
    path = existing(settings.path)
    if not path.is_dir():
        return [("all", _known(path))]
    files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES]
    roles = {_WORDS[file.stem.lower()]: file for file in files if file.stem.lower() in _WORDS}
    if "train" in roles and ("test" in roles or not settings.tests):
        order: tuple[Role, ...] = ("train", "validation", "test")
        return [(role, existing(roles[role])) for role in order if role in roles]
    if any(file.suffix == ".npy" for file in files) or any(path.glob("*/*.npy")):
        return [("all", path)]
    if len(files) == 1:
        return [("all", existing(files[0]))]
    names = shortlist(file.name for file in files) or "no data file"
    raise DataError(
        f"{path}: the folder has {names}; expected one file, x.npy and y.npy, or train and test "
        f"files ({', '.join(SUFFIXES)})"
    )


def data_files(settings: DataSettings) -> dict[str, Path]:
    """Every file that samples and labels draw on, by its role and order. Raises DataError."""
    found: dict[Path, str] = {}
    for role, path in sources(settings):
        files: tuple[Path, ...] = (path,)
        if path.suffix.lower() not in TABLES:
            parts = _parts_of(role, path, settings)
            files = tuple(file for part, _, _ in parts for file in part.files)
        for file in files:
            found.setdefault(file, f"{role} {len(found):06d}")
    return {name: file for file, name in found.items()}


def _known(path: Path) -> Path:
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        hint = did_you_mean(path.suffix, SUFFIXES)
        raise DataError(
            f"{path}: cannot read '{path.suffix}'{hint}; expected {', '.join(SUFFIXES)}"
        )
    return path


def array_parts(settings: DataSettings) -> ArrayParts:
    """The parts of a task whose data are arrays, with samples of one shape. Raises DataError."""
    found = [part for role, path in sources(settings) for part in _parts_of(role, path, settings)]
    orders = tuple(_order(part) for part, _, _ in found if isinstance(part.x, FolderRows))
    parts, time, notes = _one_length([part for part, _, _ in found], settings)
    for part in parts:
        if part.x.shape[0] != part.y.shape[0]:
            hint = ""
            if settings.samples == "first" and part.x.shape[-1] == part.y.shape[0]:
                hint = "; if the last axis counts samples, set samples: last"
            raise DataError(
                f"{part.x_name} has {part.x.shape[0]} samples, but {part.y_name} has "
                f"{part.y.shape[0]} (shapes {part.x.shape} and {part.y.shape}){hint}"
            )
        if part.x.dtype.kind not in "fiub":
            raise DataError(f"{part.x_name} holds {_kind(part.x)}, not real numbers")
        if 0 in part.x.shape:
            raise DataError(f"{part.x_name} has shape {part.x.shape}: its samples are empty")
        if part.x.shape[1:] != parts[0].x.shape[1:]:
            raise DataError(
                f"{part.x_name} has samples of shape {part.x.shape[1:]}, but {parts[0].x_name} of "
                f"{parts[0].x.shape[1:]}"
            )
    keys = {(x, y) for _, x, y in found}
    x_keys, y_keys = keys.pop() if len(keys) == 1 else ((), ())
    padded = time if settings.lengths == "pad" else None
    window = settings.stride or settings.length if settings.lengths == "window" else None
    return ArrayParts(tuple(parts), x_keys, y_keys, time, padded, (*orders, *notes), window)


def channels_of(settings: DataSettings, arrays: ArrayParts, sample: tuple[int, ...]) -> Channels:
    """Where channels are: in front if every one has a key; never on the axis of the lengths."""
    if settings.channels != "auto":
        return settings.channels
    if isinstance(settings.x, tuple) and len(settings.x) > 1 and len(sample) > 1:
        return "first"
    if arrays.time is not None and len(sample) == 2 and settings.form != "grid":
        return "last" if arrays.time == 0 else "first"
    return "auto"


def _order(part: FilePart) -> str:
    """A note on which sample is which: labels are given in this order."""
    assert isinstance(part.x, FolderRows)
    names = [file.name for file in part.x.files]
    shown = names if len(names) < 5 else [*names[:3], "...", names[-1]]
    return f"arrays: {part.x_name} has a file for each sample, in the order {shortlist(shown)}"


def _kind(rows: Rows) -> str:
    return "text" if rows.dtype.kind == "U" else str(rows.dtype)


def _one_length(
    parts: list[FilePart], settings: DataSettings
) -> tuple[list[FilePart], int | None, tuple[str, ...]]:
    """The parts with samples of one length, the axis along which they were not, and a note."""
    unequal = any(lengths.is_unequal(part.x) for part in parts)
    if not unequal and settings.lengths is None:
        return parts, None, ()
    found = lengths.measure([(part.x, part.x_name) for part in parts], _time(parts, settings))
    if settings.lengths is None:
        raise DataError(
            f"{parts[0].x_name} has samples of {found.shortest} to {found.longest} values; say how "
            "to make them equal: lengths: pad (filled up to the longest), lengths: crop (cut to "
            "the shortest), or lengths: window with length: N (cut into windows, which are scored "
            "together); on the command line task.lengths=pad"
        )
    if settings.lengths == "window":
        return _windows(parts, settings, found)
    for part in parts:
        if lengths.is_unequal(part.y) and settings.lengths != "crop":
            raise DataError(
                f"{part.y_name} has labels of unequal lengths; set lengths: crop to keep the "
                "beginning of each"
            )
    rule = settings.lengths
    length = settings.length or (found.longest if rule == "pad" else found.shortest)
    if rule == "crop" and length > found.shortest:
        raise DataError(
            f"{parts[0].x_name}: the shortest sample has {found.shortest} values, fewer than "
            f"length: {length}; set lengths: pad"
        )
    even = []
    for part in parts:
        y = part.y
        if lengths.is_unequal(y):
            own = lengths.measure([(y, part.y_name)])
            y = lengths.even(y, part.y_name, own.of(length), own.axis)
        x = lengths.even(part.x, part.x_name, found.of(length), found.axis)
        even.append(replace(part, x=x, y=y))
    done = "filled up at the end" if rule == "pad" else "cut at the end"
    note = (
        f"arrays: {parts[0].x_name} has samples of {found.shortest} to {found.longest} values, "
        f"{done} to {length} (lengths: {rule}; set lengths: or length: to change)"
    )
    return even, found.axis, (note,)


def _time(parts: list[FilePart], settings: DataSettings) -> int | None:
    """The axis of time of samples of one length, if the settings say that it is not the last."""
    if any(lengths.is_unequal(part.x) for part in parts):
        return None
    sample = parts[0].x.shape[1:]
    if len(sample) != 2:
        return 0 if settings.channels == "last" else None
    return 0 if layout(sample, "sequence", settings.channels).channel == 1 else None


def _windows(
    parts: list[FilePart], settings: DataSettings, found: lengths.Lengths
) -> tuple[list[FilePart], int | None, tuple[str, ...]]:
    """The parts with the windows of their recordings as samples."""
    size = settings.length
    if size is None:  # the settings say so, too, but defaults are looked for before
        raise DataError("lengths: window needs length, how many values a window has")
    stride, cut, before, counts = settings.stride or size, [], 0, [0, 0]
    for part in parts:
        if part.x.shape[0] != part.y.shape[0]:
            return parts, found.axis, ()  # which the caller reports
        length_R = lengths.lengths_of(part.x, found.axis)
        short_R = np.flatnonzero(length_R < size)
        if len(short_R):
            raise DataError(
                f"{part.x_name}: {len(short_R)} recordings are shorter than a window (length: "
                f"{size}); row {short_R[0]} has {length_R[short_R[0]]} values. Choose a shorter "
                "window, or lengths: pad"
            )
        record_W, start_W = lengths.windows_of(length_R, size, stride)
        x = lengths.WindowRows(part.x, found.of(size), found.axis, record_W, start_W)
        y = _labels_of_windows(part, length_R, size, record_W, start_W)
        group = None if part.group is None else part.group[record_W]
        number_W = record_W + before
        cut.append(
            replace(
                part,
                x=x,
                y=y,
                group=number_W if group is None else group,
                time=None if part.time is None else part.time[record_W],
                record=number_W,
                weight=None if part.weight is None else part.weight[record_W],
            )
        )
        before += len(length_R)
        counts = [counts[0] + len(length_R), counts[1] + len(record_W)]
    note = (
        f"arrays: {parts[0].x_name}: {counts[0]:,} recordings of {found.shortest} to "
        f"{found.longest} values, cut into {counts[1]:,} windows of {size}, every {stride} "
        "(lengths: window; set length: or stride: to change); a recording stays in one part"
    )
    return cut, found.axis, (note,)


def _labels_of_windows(
    part: FilePart, length_R: Indices, size: int, record_W: Indices, start_W: Indices
) -> Rows:
    """The label of its recording for each window; of labels for each place those of the window."""
    if not lengths.is_unequal(part.y):
        return ArrayRows(part.y.read(slice(None))[record_W])
    own = lengths.measure([(part.y, part.y_name)])
    wrong_R = np.flatnonzero(lengths.lengths_of(part.y, own.axis) != length_R)
    if len(wrong_R):
        raise DataError(
            f"{part.y_name} row {wrong_R[0]} has another length than the samples, so its labels "
            "cannot be cut into the same windows"
        )
    return lengths.WindowRows(part.y, own.of(size), own.axis, record_W, start_W)


_Found = tuple[FilePart, tuple[str, ...], tuple[str, ...]]
"""A part, and the keys of its samples and labels; no keys if a file holds several parts."""


def _parts_of(role: Role, path: Path, settings: DataSettings) -> Iterator[_Found]:
    x, y = _keys(settings.x), _keys(settings.y)
    single = path.suffix == ".npy" and path.is_file()
    container = open_container(path.parent if single else path, settings.samples)
    if single:
        x, y = (path.stem,), y or (_partner(path),)
    elif role == "all":
        found = dict(_split_keys(container, x, y))
        if "train" in found and ("test" in found or not settings.tests):
            for word, (x_key, y_key) in found.items():
                own = [
                    key and _with_word(container, key, word)
                    for key in (settings.group, settings.time, settings.weight)
                ]
                yield _part(word, container, (x_key,), (y_key,), *own), x, y
            return
    x = x or (first_key(container, SAMPLE_KEYS) or SAMPLE_KEYS[0],)
    y = y or (first_key(container, LABEL_KEYS) or LABEL_KEYS[0],)
    yield _part(role, container, x, y, settings.group, settings.time, settings.weight), x, y


def _keys(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The keys that a setting names."""
    names = (value,) if isinstance(value, str) else value or ()
    # For a folder of .npy files, people write ``y: labels.npy``.
    return tuple(name.removesuffix(".npy") for name in names)


def _partner(path: Path) -> str:
    stem = re.sub(r"(^|[_-])x(?=$|[_-])", r"\1y", path.stem)
    stem = re.sub(r"(^|[_-])X(?=$|[_-])", r"\1Y", stem)
    stem = stem if stem != path.stem else re.sub("data|features|samples", "labels", path.stem)
    if stem == path.stem:
        raise DataError(f"{path}: name the file of labels in the same folder (set y:)")
    return stem


def _split_keys(
    container: Container, x: tuple[str, ...], y: tuple[str, ...]
) -> Iterator[tuple[Role, tuple[str, str]]]:
    """Pairs such as ``x_train``, ``y_train`` or ``train_x``, ``train_y``; none if ``x`` exists."""
    lower = {key.lower(): key for key in container.entries}
    x_names = tuple(name.lower() for name in x) or SAMPLE_KEYS
    y_names = tuple(name.lower() for name in y) or LABEL_KEYS
    if any(name in lower for name in x_names):
        return
    for word, role in _WORDS.items():
        x_keys = [lower[k] for n in x_names for k in (f"{n}_{word}", f"{word}_{n}") if k in lower]
        y_keys = [lower[k] for n in y_names for k in (f"{n}_{word}", f"{word}_{n}") if k in lower]
        if x_keys and y_keys:
            yield role, (x_keys[0], y_keys[0])


def _with_word(container: Container, name: str, role: Role) -> str:
    words = [word for word, meant in _WORDS.items() if meant == role]
    keys = [key for word in words for key in (f"{name}_{word}", f"{word}_{name}")]
    return next((key for key in keys if key in container.entries), keys[0])


def _part(
    role: Role,
    container: Container,
    x: tuple[str, ...],
    y: tuple[str, ...],
    group: str | None,
    time: str | None,
    weight: str | None,
) -> FilePart:
    samples = container.stacked(x, "x:")
    labels = row_labels(container.stacked(y, "y:"), samples.shape[0])
    group_N = None if group is None else _each(container, group, "group:", samples.shape[0])
    time_N = None if time is None else _each(container, time, "time:", samples.shape[0])
    if time_N is not None and time_N.dtype.kind not in "fiubM":
        raise DataError(f"{container.name(str(time))} (time) holds text; save numbers")
    if role in JUDGING and weight not in container.entries:
        weight = None
    weight_N = None
    if weight is not None:
        own_N = _each(container, weight, "weight:", samples.shape[0])
        weight_N = as_weights(own_N, container.name(weight))
    files = container.files(*x, *y, *filter(None, (group, time, weight)))
    names = container.name(*x), container.name(*y)
    return FilePart(role, samples, labels, *names, files, group_N, time_N, weight=weight_N)


def as_weights(value_N: Array, where: str) -> Array:
    """Weights of samples, float64. Raises DataError for what is no number from 0 on."""
    if value_N.dtype.kind not in "fiub":
        raise DataError(f"{where} (weight) holds text; weights are numbers")
    weight_N = value_N.astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(weight_N) & (weight_N >= 0)))
    if len(wrong):
        raise DataError(
            f"{where} (weight): row {wrong[0]} has {weight_N[wrong[0]]:g}, not 0 or more"
        )
    return weight_N


def _each(container: Container, key: str, setting: str, count: int) -> Array:
    """A value for each sample ``[n]``. Raises DataError for a gap."""
    rows = row_labels(container.get(key, setting), count)
    if rows.shape != (count,):
        raise DataError(f"{container.name(key)} has shape {rows.shape}; expected ({count},)")
    value_N = rows.read(slice(None))
    missing = np.flatnonzero((value_N != value_N) | (value_N.astype(str) == ""))
    if len(missing):
        raise DataError(f"{container.name(key)} is missing in row {missing[0]}")
    return value_N
