"""Numbers that others have published: data in ``published/*.csv`` beside the recipes.

They stand beside measured numbers and are never mixed with them. A file has the columns ``task``,
``method``, ``setting``, ``printed`` (the text in print), ``error`` (the same as an error that is
better if lower, shares instead of percent; empty where print has none), ``metric``, ``protocol``
and ``source``. Tasks and methods are called as recipes are, where there is one.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

from pydantic import Field

from xmodal.errors import DataError, UsageError, did_you_mean, file_errors
from xmodal.plugins import Registry
from xmodal.settings import Settings
from xmodal.text import MOST_KNOWN, listed, shortlist

FOLDER = "published"
COLUMNS = ("task", "method", "setting", "printed", "error", "metric", "protocol", "source")
_TABLE = ", Table "


@dataclass(frozen=True)
class PublishedNumber:
    """One number in print; ``error`` is None where print has a dash or no error."""

    task: str
    method: str
    setting: str
    printed: str
    error: float | None
    metric: str
    protocol: str
    source: str

    @property
    def label(self) -> str:
        """The method, with the setting that makes it one of several."""
        return f"{self.method} [{self.setting}]" if self.setting else self.method

    @property
    def work(self) -> str:
        """The source without the number of the table."""
        return re.split(r", Tables? ", self.source)[0]


class Published(Settings):
    """Numbers that somebody else reports for a task, as a suite states them."""

    source: str = Field(description="Where they stand.")
    metric: str = Field(description="What they are.")
    errors: dict[str, float] = Field(description="The error of each method, as printed.")

    def numbers(self, task: str) -> Iterator[PublishedNumber]:
        """The same, one by one."""
        for method, error in self.errors.items():
            yield PublishedNumber(
                task, method, "", f"{error:g}", error, self.metric, "", self.source
            )


def published_numbers(
    registry: Registry, tasks: Collection[str], tables: Collection[str] | None = None
) -> tuple[PublishedNumber, ...]:
    """What is published for these tasks, in the tables named or in all; each number once.

    Raises UsageError for a table that does not exist, DataError for a file that is damaged.
    """
    files = _files(registry)
    for name in tables or ():
        if name not in files:
            hint = did_you_mean(name, files)
            raise UsageError(
                f"no published table '{name}'{hint}\ntables: {shortlist(files, MOST_KNOWN)}"
            )
    wanted = files if tables is None else {name: files[name] for name in tables}
    found = (number for path in wanted.values() for number in _read(path))
    merged = _once_each(number for number in found if number.task in tasks)
    place = {task: index for index, task in enumerate(tasks)}
    return tuple(sorted(merged, key=lambda number: place[number.task]))


def _files(registry: Registry) -> Mapping[str, Path]:
    """Every table by its name; one in the working directory goes before an installed one."""
    folders = [Path("recipes"), *(Path(str(folder)) for _, folder in registry.recipe_folders())]
    paths = [path for one in reversed(folders) for path in (one / FOLDER).glob("*.csv")]
    found = {path.stem: path for path in paths}
    return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))


def _read(path: Path) -> Iterator[PublishedNumber]:
    # Spreadsheets put a mark in front of UTF-8.
    with file_errors(), path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.reader(stream, strict=True)
        try:
            for row in rows:
                if rows.line_num == 1:
                    if tuple(row) != COLUMNS:
                        raise DataError(f"{path}: expected the columns {', '.join(COLUMNS)}")
                    continue
                if not any(row):
                    continue
                if len(row) != len(COLUMNS):
                    raise ValueError(f"{len(row)} values, not {len(COLUMNS)}")
                named = dict(zip(COLUMNS, row, strict=True))
                printed = named.pop("error")
                error = float(printed) if printed else None
                if error is not None and not isfinite(error):
                    raise ValueError(f"the error is {printed}, no number; leave it empty")
                yield PublishedNumber(error=error, **named)
        except (ValueError, csv.Error) as wrong:
            raise DataError(f"{path}:{rows.line_num}: {wrong}") from wrong


def _once_each(numbers: Iterable[PublishedNumber]) -> list[PublishedNumber]:
    """Equal numbers of several tables of one work as one, which names all tables."""
    tables: dict[PublishedNumber, list[str]] = {}
    for number in numbers:
        work, _, table = number.source.partition(_TABLE)
        same = tables.setdefault(replace(number, source=work), [])
        same += [table] if table and table not in same else []
    return [
        replace(number, source=f"{number.source}{_named(found)}")
        for number, found in tables.items()
    ]


def _named(tables: list[str]) -> str:
    if not tables:
        return ""
    return _TABLE + tables[0] if len(tables) == 1 else f"{_TABLE.rstrip()}s {listed(tables)}"
