"""The Slurm job arrays that were queued from a folder: the jobs of each, and which have ended.

Each array has a folder named by its key. The list of its jobs is written before the array is
queued; each job that ends says so in a file of its own.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from xmodal.files import write_atomically

LIST = "jobs.json"
ENDED = ".ended"
LAST_LINES = 20


class ArrayFolder:
    """The arrays of a folder that other comparisons may share. Keys are unique."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lists: dict[str, list[str]] = {}
        self._ended: dict[str, set[int]] = {}

    def add(self, key: str, names: Sequence[str]) -> None:
        """List the jobs of an array that is about to be queued, so that it can be found then."""
        (self.folder / key).mkdir(parents=True)
        write_atomically(self.folder / key / LIST, json.dumps(list(names)))
        self._lists[key] = list(names)

    def drop(self, key: str) -> None:
        """Forget an array that was not queued."""
        self._lists.pop(key, None)
        shutil.rmtree(self.folder / key, ignore_errors=True)

    def names(self, key: str) -> list[str]:
        """The jobs of an array, by number; none if it belongs to another folder.

        Raises OSError or ValueError if its list is here but cannot be read.
        """
        if key not in self._lists:
            try:
                self._lists[key] = _read(self.folder / key / LIST)
            except FileNotFoundError:
                return []
        return self._lists[key]

    def file(self, key: str, index: int) -> Path:
        """The file in which a job says that it has ended."""
        return self.folder / key / f"{index}{ENDED}"

    def ended(self, key: str) -> set[int]:
        """The jobs of an array that say they have ended, as far as the file system answers."""
        with suppress(OSError):  # what was known still holds, also if the folder was cleared up
            found = os.listdir(self.folder / key)
            self._ended[key] = {int(Path(name).stem) for name in found if name.endswith(ENDED)}
        return self._ended.get(key, set())

    def clear_up(self, listed: Collection[str]) -> None:
        """Remove the files of arrays whose jobs have all reported their end.

        Arrays that Slurm has ``listed`` stay, and so do lists that cannot be read.
        """
        for file in self.folder.glob(f"*/{LIST}"):
            key = file.parent.name
            try:
                over = key not in listed and len(self.ended(key)) == len(_read(file))
            except (OSError, ValueError):
                continue
            if over:
                shutil.rmtree(file.parent, ignore_errors=True)

    def explain(self, log: Path, key: str, number: str) -> None:
        """Add to the log of a job that never reported its end what its node said."""
        file = self.folder / key / f"{number}_0_log.err"
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        said = "\n".join(text.splitlines()[-LAST_LINES:]) or (
            f"nothing; it was cancelled before it began, or the node does not see {file.parent}"
        )
        with suppress(OSError), log.open("a", encoding="utf-8") as stream:
            stream.write(f"job {number} of Slurm left the queue early; its node said:\n{said}\n")


def _read(file: Path) -> list[str]:
    names: list[str] = json.loads(file.read_text(encoding="utf-8"))
    return names
