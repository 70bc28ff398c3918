"""Asks Slurm's controller which of our arrays' jobs are in its queue, and cancels jobs.

Only ``squeue`` and ``scancel`` are needed: many clusters have no accounting. What is not in the
queue any more has ended; how, its run directory says.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

PREFIX = "xmodal-"
"""Begins the names of our arrays; the key of the array follows."""
RUNNING = frozenset(
    ["RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"]
)
ANSWER_WITHIN = 60.0
LOST = ("unable to contact", "socket timed out", "connection", "zero bytes", "temporarily")


@dataclass(frozen=True)
class Found:
    """A job in the queue: the key of its array, its number there, Slurm's name for it."""

    key: str
    index: int
    id: str
    word: str


class Controller:
    """The queue of one user, asked at most every ``poll`` seconds."""

    def __init__(self, poll: float) -> None:
        self.trouble = ""
        self._poll = poll
        self._asked = float("-inf")

    def ask(self, now: bool = False) -> list[Found] | None:
        """Our jobs in the queue. None if it is too early to ask again, or without an answer."""
        if not now and time.monotonic() - self._asked < self._poll:
            return None
        self._asked = time.monotonic()
        text = self._run("squeue", "--me", "--noheader", "--array", "--format=%i|%j|%T")
        return None if text is None else read(text)

    def cancel(self, ids: Sequence[str], softly: bool) -> None:
        """Cancel jobs. Softly: those that run are only told to end, and may take their time."""
        if softly:
            self.withdraw(ids)
            self._run("scancel", "--quiet", "--signal=TERM", *ids)
        else:
            self._run("scancel", "--quiet", *ids)

    def withdraw(self, ids: Sequence[str]) -> None:
        """Cancel those of these jobs that have not begun."""
        self._run("scancel", "--quiet", "--state=PENDING", *ids)

    def cancel_array(self, key: str) -> None:
        """Cancel an array whose jobs' names at Slurm are not known."""
        self._run("scancel", "--quiet", f"--name={PREFIX}{key}")

    def _run(self, *command: str) -> str | None:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=ANSWER_WITHIN, check=False
            )
        except subprocess.TimeoutExpired:
            self.trouble = f"{command[0]} took more than {ANSWER_WITHIN:.0f} s"
            return None
        self.trouble = done.stderr.strip()
        return done.stdout if done.returncode == 0 else None


def is_transient(message: str) -> bool:
    """Whether an error of Slurm's commands speaks of the way to the controller."""
    return any(words in message.lower() for words in LOST)


def read(text: str) -> list[Found]:
    """Parse lines ``id|name|state``; lines about jobs of others are left out.

    The id of an array's job is ``array_index``; an array of one job is an ordinary job.
    """
    found = []
    for line in text.splitlines():
        number, name, state = (part.strip() for part in line.rsplit("|", 2))
        if not name.startswith(PREFIX):
            continue
        _, _, index = number.partition("_")
        word = "running" if state in RUNNING else "queued"
        found.append(Found(name.removeprefix(PREFIX), int(index or 0), number, word))
    return found
