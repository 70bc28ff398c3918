"""Asks Slurm's controller which of our jobs are in its queue, and cancels jobs.

Needs only ``squeue`` and ``scancel``, because many clusters have no accounting. A job that has left
the queue has ended; its run directory tells how.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

PREFIX = "xmodal-"
"""The start of our arrays' names; the key of the array follows."""
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
    """The queue of one user; asks Slurm at most every ``poll`` seconds."""

    def __init__(self, poll: float) -> None:
        self.trouble = ""
        self._poll = poll
        self._asked = float("-inf")

    def ask(self, now: bool = False) -> list[Found] | None:
        """Our jobs in the queue; None if it is too early to ask again or Slurm does not answer."""
        if not now and time.monotonic() - self._asked < self._poll:
            return None
        self._asked = time.monotonic()
        text = self._run("squeue", "--me", "--noheader", "--array", "--format=%i|%j|%T")
        return None if text is None else read(text)

    def cancel(self, ids: Sequence[str], softly: bool) -> None:
        """Cancel jobs. ``softly`` only tells running jobs to end, so that they can save first."""
        if softly:
            self.withdraw(ids)
            self._run("scancel", "--quiet", "--signal=TERM", *ids)
        else:
            self._run("scancel", "--quiet", *ids)

    def withdraw(self, ids: Sequence[str]) -> None:
        """Cancel those of the jobs that have not begun."""
        self._run("scancel", "--quiet", "--state=PENDING", *ids)

    def cancel_array(self, key: str) -> None:
        """Cancel an array whose Slurm job ids are unknown."""
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
    """Whether an error of Slurm's commands is about the connection to the controller."""
    return any(words in message.lower() for words in LOST)


def read(text: str) -> list[Found]:
    """Parse lines ``id|name|state``, leaving out other jobs than ours.

    The id of an array's job is ``array_index``; an array with a single job is an ordinary job.
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
