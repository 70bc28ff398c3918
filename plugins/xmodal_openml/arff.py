"""Reads ARFF files as OpenML has them: every column with its declared type, in the declared order.

SciPy's reader does not serve: it refuses the quoted names of categories in OpenML's files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xmodal.errors import DataError
from xmodal.text import shown

_VALUE = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_FIELD = re.compile(rf"""\s*({_VALUE}|[^,'"\s][^,]*?|)\s*(,|$)""")
_LEVEL = re.compile(rf"""\s*({_VALUE}|[^,}}'"\s][^,}}]*?|)\s*(,|\}})""")
_ATTRIBUTE = re.compile(rf"@attribute\s+({_VALUE}|[^\s{{]+)\s*(.+)", re.IGNORECASE)
_NUMBERS = {"numeric", "real", "integer"}


@dataclass(frozen=True)
class Attribute:
    """A column: ``levels`` are the declared categories; ``kind`` numeric, nominal or another."""

    name: str
    kind: str
    levels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arff:
    """A file: its columns, and for each column its cells as text (None: missing)."""

    where: str
    attributes: tuple[Attribute, ...]
    cells: tuple[tuple[str | None, ...], ...]
    lines: tuple[int, ...]

    def column(self, name: str) -> tuple[Attribute, tuple[str | None, ...]]:
        """A column that exists."""
        place = [attribute.name for attribute in self.attributes].index(name)
        return self.attributes[place], self.cells[place]


def read_arff(path: Path) -> Arff:
    """Read a file whole. Raises DataError with the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    attributes: list[Attribute] = []
    start = len(lines)
    for number, line in enumerate(map(str.strip, lines)):
        if line.lower() == "@data":
            start = number + 1
            break
        if line.lower().startswith("@attribute"):
            attributes.append(_attribute(path, number + 1, line))
    else:
        raise _unreadable(path, "it has no @data line")
    names = [attribute.name for attribute in attributes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise _unreadable(path, f"two attributes are named '{twice}'")
    rows, numbers = [], []
    for number, line in enumerate(map(str.strip, lines[start:]), start + 1):
        if not line or line.startswith("%"):
            continue
        if line.startswith("{"):
            raise _unreadable(path, "sparse rows ({index value, ...}) are not supported")
        row = _fields(line)
        if row is None or len(row) != len(attributes):
            found = "an unfinished quote" if row is None else f"{len(row)} fields"
            raise DataError(f"{path}: line {number} has {found}, expected {len(attributes)} fields")
        rows.append(row)
        numbers.append(number)
    if not rows:
        raise _unreadable(path, "it has no rows")
    columns = tuple(zip(*rows, strict=True))
    for attribute, cells in zip(attributes, columns, strict=True):
        _check(path, attribute, cells, numbers)
    return Arff(f"{path}", tuple(attributes), columns, tuple(numbers))


def _attribute(path: Path, number: int, line: str) -> Attribute:
    match = _ATTRIBUTE.match(line)
    if match is None:
        raise _unreadable(path, f"line {number}: '{shown(line)}' declares no name and type")
    name, kind = _text(match[1]) or "?", match[2].strip()
    if not kind.startswith("{"):
        word = kind.split()[0].lower()
        return Attribute(name, "numeric" if word in _NUMBERS else word)
    levels = _fields(kind[1:], _LEVEL)
    if levels is None:
        raise _unreadable(path, f"line {number}: the categories of '{name}' do not end in }}")
    # A '?' among the categories stands for missing values, as in the rows.
    return Attribute(name, "nominal", tuple(level for level in levels if level is not None))


def _fields(line: str, field: re.Pattern[str] = _FIELD) -> list[str | None] | None:
    """The fields of a line, or of a list of categories; None if it cannot be split."""
    found, at = [], 0
    while True:
        match = field.match(line, at)
        if match is None:
            return None
        found.append(_text(match[1]))
        at = match.end()
        if match[2] != ",":
            return found


def _text(written: str) -> str | None:
    """What a field says: an unquoted ``?`` or nothing is a missing value."""
    if written[:1] in ("'", '"'):
        return re.sub(r"\\(.)", r"\1", written[1:-1])
    return None if written in ("?", "") else written


def _check(
    path: Path, attribute: Attribute, cells: Sequence[str | None], numbers: Sequence[int]
) -> None:
    """Raise DataError unless every cell is of the declared type."""
    known = set(attribute.levels)
    for number, cell in zip(numbers, cells, strict=True):
        if cell is None:
            continue
        if attribute.kind == "nominal" and cell not in known:
            what = f"'{shown(cell)}', which is not among its declared categories"
        elif attribute.kind == "numeric" and not _finite(cell):
            what = f"'{shown(cell)}', which is no finite number"
        else:
            continue
        raise DataError(f"{path}: line {number}: '{attribute.name}' has {what}")


def _finite(cell: str) -> bool:
    try:
        return abs(float(cell)) < float("inf")
    except ValueError:
        return False


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: cannot be read as ARFF: {reason}")
