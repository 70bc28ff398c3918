"""Finds the samples and labels that the settings name: in a file, a folder, or split files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xmodal.errors import DataError, did_you_mean
from xmodal.text import shortlist
from xmodal_arrays.containers import (
    SUFFIXES,
    Array,
    Container,
    Rows,
    existing,
    open_container,
)
from xmodal_arrays.settings import DataSettings

Role = Literal["all", "train", "validation", "test"]
_WORDS: dict[str, Role] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
_X = ("x", "data", "inputs", "features", "samples")
_Y = ("y", "labels", "label", "targets", "target")


@dataclass(frozen=True)
class FilePart:
    """Samples and labels that belong together; with ``role`` ``all`` they are still to be split.

    Messages call the arrays ``x_name`` and ``y_name``.
    """

    role: Role
    x: Rows
    y: Rows
    x_name: str
    y_name: str
    files: tuple[Path, ...]
    group: Array | None = None


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
    if any(file.suffix == ".npy" for file in files):
        return [("all", path)]
    if len(files) == 1:
        return [("all", existing(files[0]))]
    names = shortlist(file.name for file in files) or "no data file"
    raise DataError(
        f"{path}: the folder has {names}; expected one file, x.npy and y.npy, or train and test "
        f"files ({', '.join(SUFFIXES)})"
    )


def _known(path: Path) -> Path:
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        hint = did_you_mean(path.suffix, SUFFIXES)
        raise DataError(
            f"{path}: cannot read '{path.suffix}'{hint}; expected {', '.join(SUFFIXES)}"
        )
    return path


def array_parts(settings: DataSettings) -> list[FilePart]:
    """The parts of a task whose data are arrays. Raises DataError."""
    parts = [part for role, path in sources(settings) for part in _parts_of(role, path, settings)]
    for part in parts:
        if part.x.shape[0] != part.y.shape[0]:
            raise DataError(
                f"{part.x_name} has {part.x.shape[0]} samples, but {part.y_name} has "
                f"{part.y.shape[0]} (shapes {part.x.shape} and {part.y.shape})"
            )
        if part.x.dtype.kind not in "fiub":
            raise DataError(f"{part.x_name} holds {part.x.dtype}, not real numbers")
        if part.x.shape[1:] != parts[0].x.shape[1:]:
            raise DataError(
                f"{part.x_name} has samples of shape {part.x.shape[1:]}, but {parts[0].x_name} of "
                f"{parts[0].x.shape[1:]}"
            )
    return parts


def _parts_of(role: Role, path: Path, settings: DataSettings) -> Iterator[FilePart]:
    x, y = _key(settings.x, "x"), _key(settings.y, "y")
    container = open_container(path if path.suffix != ".npy" else path.parent)
    if path.suffix == ".npy":
        x, y = path.stem, y or _partner(path)
    elif role == "all":
        found = dict(_split_keys(container, x, y))
        if "train" in found and ("test" in found or not settings.tests):
            for word, (x_key, y_key) in found.items():
                group = settings.group and _with_word(container, settings.group, word)
                yield _part(word, container, x_key, y_key, group)
            return
    x_key = x or _first(container, _X, "x")
    y_key = y or _first(container, _Y, "y")
    yield _part(role, container, x_key, y_key, settings.group)


def _key(value: str | tuple[str, ...] | None, setting: str) -> str | None:
    if isinstance(value, tuple):
        raise DataError(f"{setting}: a list of names is for tables; arrays have one key")
    # For a folder of .npy files, people write ``y: labels.npy``.
    return value.removesuffix(".npy") if value else None


def _partner(path: Path) -> str:
    stem = re.sub(r"(^|[_-])x(?=$|[_-])", r"\1y", path.stem)
    stem = re.sub(r"(^|[_-])X(?=$|[_-])", r"\1Y", stem)
    stem = stem if stem != path.stem else re.sub("data|features|samples", "labels", path.stem)
    if stem == path.stem:
        raise DataError(f"{path}: name the file of labels in the same folder (set y:)")
    return stem


def _first(container: Container, names: tuple[str, ...], setting: str) -> str:
    lower = {key.lower(): key for key in reversed(list(container.arrays))}
    for name in names:
        if name in lower:
            return lower[name]
    # Ask for the key anyway, to raise the usual message about a missing key.
    container.get(names[0], setting)
    raise AssertionError("unreachable")


def _split_keys(
    container: Container, x: str | None, y: str | None
) -> Iterator[tuple[Role, tuple[str, str]]]:
    """Pairs such as ``x_train``, ``y_train`` or ``train_x``, ``train_y``; none if ``x`` exists."""
    lower = {key.lower(): key for key in container.arrays}
    x_names = (x.lower(),) if x else _X
    y_names = (y.lower(),) if y else _Y
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
    return next((key for key in keys if key in container.arrays), keys[0])


def _part(role: Role, container: Container, x: str, y: str, group: str | None) -> FilePart:
    keys = [x, y, *([group] if group else [])]
    rows = [container.get(key, name) for key, name in zip(keys, ("x", "y", "group"), strict=False)]
    files = tuple(dict.fromkeys(container.files[key] for key in keys))
    names = [f"{container.files[key]}: '{key}'" for key in keys]
    group_N = rows[2].read(slice(None)) if group else None
    if group_N is not None and group_N.shape != rows[0].shape[:1]:
        raise DataError(f"{names[2]} has shape {group_N.shape}; expected ({rows[0].shape[0]},)")
    return FilePart(role, rows[0], rows[1], names[0], names[1], files, group_N)
