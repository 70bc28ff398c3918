"""The few kinds of failure a user can meet, each with its exit code.

Every message tells what is wrong, where, and the nearest valid choice. The CLI shows these errors
without a traceback; any other exception is a bug (exit code 1). This module imports nothing heavy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from xmodal.text import visible

MOST_PROBLEMS = 20
MOST_CHARACTERS = 10_000


class XModalError(Exception):
    """Base of every error that is shown to the user as one message.

    What cannot be seen is escaped, so that a name in somebody's file does not steer the terminal.
    """

    exit_code = 1

    def __str__(self) -> str:
        message = super().__str__()
        more = len(message) - MOST_CHARACTERS
        text = visible(message[:MOST_CHARACTERS])
        return f"{text}... ({more} more characters)" if more > 0 else text


class UsageError(XModalError):
    """The command line or a recipe is wrong."""

    exit_code = 2


class PluginError(XModalError):
    """A required plugin cannot be loaded, or two plugins provide the same name."""

    exit_code = 3


class DataError(XModalError):
    """Data or weights are missing, damaged or of the wrong form."""

    exit_code = 4


class MachineError(XModalError, OSError):
    """A file cannot be read or written: the disk is full, there is no permission, a limit is met;
    or a device fails, or lacks memory.

    It is an OSError too, so that what may fail without harm is caught like any other.
    """

    exit_code = 4

    @classmethod
    def of(cls, error: OSError, path: object = "") -> MachineError:
        """The same failure in one line, with the ``path`` it is about, or else the error's own."""
        why = error.strerror or " ".join(str(error).split()) or type(error).__name__
        name = path or error.filename
        made = cls(f"{name}: {why}" if name else why)
        made.errno = error.errno
        return made


@contextmanager
def file_errors(path: object = "") -> Iterator[None]:
    """A block in which a failure of the machine becomes a MachineError that names ``path``."""
    try:
        yield
    except (XModalError, BrokenPipeError):
        raise
    except OSError as error:
        raise MachineError.of(error, path) from error


class TrainingError(XModalError):
    """Training stopped itself, for example because the loss was not finite."""

    exit_code = 5


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a recipe.

    ``where`` is ``file:line:column`` (or ``command line``), ``key`` is the dotted path, and
    ``hints`` are further lines such as the list of installed components. ``part``: a component is
    ``unknown``, or its plugin is ``broken``.
    """

    where: str
    key: str
    message: str
    hints: tuple[str, ...] = ()
    part: Literal["", "unknown", "broken"] = ""

    def __str__(self) -> str:
        lines = [f"{self.where}  {self.key}".rstrip(), f"    {self.message}"]
        return "\n".join(lines + [f"    {hint}" for hint in self.hints])


class RecipeError(UsageError):
    """A recipe has problems, all listed at once. ``unchecked`` names what was not checked yet.

    If plugins are all that is wrong, the exit code is that of a PluginError.
    """

    def __init__(self, problems: Sequence[Problem], unchecked: str = "") -> None:
        self.problems = tuple(problems)
        if all(problem.part == "broken" for problem in self.problems):
            self.exit_code = PluginError.exit_code
        count = len(self.problems)
        lines: list[str] = []
        hints: set[str] = set()
        for problem in self.problems[:MOST_PROBLEMS]:
            # What two problems have in common, such as all names of a kind, is said once.
            new = tuple(hint for hint in problem.hints if hint not in hints)
            lines.append(str(replace(problem, hints=new)))
            hints.update(new)
        if count > MOST_PROBLEMS:
            lines.append(f"... and {count - MOST_PROBLEMS} more")
        later = f"; not checked yet: {unchecked}" if unchecked else ""
        lines.append(f"{count} problem{'s' if count > 1 else ''} (exit {self.exit_code}){later}")
        super().__init__("\n".join(lines))


def nearest(word: str, options: Iterable[str]) -> str | None:
    """Return the option closest to ``word``, or None if no option is close."""
    options = list(options)
    matches = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    # The ratio does not work for short words: "rl" and "lr" share only half their letter order.
    swapped = [option for option in options if sorted(option) == sorted(word)]
    return next(iter(matches or swapped), None)


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` or an empty string."""
    match = nearest(word, options)
    return f"; did you mean '{match}'?" if match else ""
