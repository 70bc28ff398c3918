"""The Slurm job arrays queued from a folder: the jobs of each array, and which have ended.

Each array has a folder named by its key. The list of its jobs is written before the array is
queued. Each job that ends writes a file of its own.
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
    """The arrays of a folder, which other comparisons may share. Keys are unique."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lists: dict[str, list[str]] = {}
        self._ended: dict[str, set[int]] = {}

    def add(self, key: str, names: Sequence[str]) -> None:
        """List the jobs of an array that is about to be queued, so that it can be found later."""
        (self.folder / key).mkdir(parents=True)
        write_atomically(self.folder / key / LIST, json.dumps(list(names)))
        self._lists[key] = list(names)

    def drop(self, key: str) -> None:
        """Forget an array that was not queued."""
        self._lists.pop(key, None)
        shutil.rmtree(self.folder / key, ignore_errors=True)

    def names(self, key: str) -> list[str]:
        """The jobs of an array, by number; empty if it belongs to another folder.

        Raises OSError or ValueError if the list exists but cannot be read.
        """
        if key not in self._lists:
            try:
                self._lists[key] = _read(self.folder / key / LIST)
            except FileNotFoundError:
                return []
        return self._lists[key]

    def file(self, key: str, index: int) -> Path:
        """The file in which a job reports its end."""
        return self.folder / key / f"{index}{ENDED}"

    def ended(self, key: str) -> set[int]:
        """The jobs of an array that have reported their end, if the file system answers."""
        with suppress(OSError):  # earlier reports still hold, even if the folder was removed
            found = os.listdir(self.folder / key)
            self._ended[key] = {int(Path(name).stem) for name in found if name.endswith(ENDED)}
        return self._ended.get(key, set())

    def clear_up(self, listed: Collection[str]) -> None:
        """Remove the files of arrays whose jobs have all reported their end.

        Keeps arrays that Slurm has ``listed``, and lists that cannot be read.
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
        """Copy the node's output into the log of a job that never reported its end."""
        file = self.folder / key / f"{number}_0_log.err"
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        said = "\n".join(text.splitlines()[-LAST_LINES:]) or (
            f"nothing; it was cancelled before it began, or the node does not see {file.parent}"
        )
        with suppress(OSError), log.open("a", encoding="utf-8") as stream:
            stream.write(f"Slurm job {number} left the queue early; output of its node:\n{said}\n")


def _read(file: Path) -> list[str]:
    names: list[str] = json.loads(file.read_text(encoding="utf-8"))
    return names
