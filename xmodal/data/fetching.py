"""Whether anything may be fetched now: weights, wheels, Debian packages and data alike.

The environment variable ``XMODAL_FETCH`` says what the user wants:

- ``fit``, the default: commands that train, or choose what to train with, may fetch;
- ``always``: commands that look at finished runs may, too;
- ``never``: nothing is fetched, from anywhere.

A finished run is used (predicted with, exported) without fetching anything, whatever it says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

from xmodal.errors import DataError, UsageError, did_you_mean
from xmodal.text import shown

FETCH = "XMODAL_FETCH"
"""The environment variable that holds the policy."""
Policy = Literal["always", "fit", "never"]
Purpose = Literal["fit", "look", "use"]
"""What is being done: training or preparing it, looking at finished runs, or using one."""
_purpose: ContextVar[Purpose] = ContextVar("purpose", default="fit")


def suggest(lines: Sequence[str]) -> str:
    """The end of an error message: what the user can do, one way a line."""
    return "\n".join(["ways out:"] + [f"  - {line}" for line in lines])


def policy() -> Policy:
    """What the user wants. Raises UsageError for a word that is none of the three."""
    return _known(os.environ.get(FETCH) or "fit", FETCH)


def _known(word: str, where: str) -> Policy:
    for known in get_args(Policy):
        if word == known:
            return known  # type: ignore[no-any-return]
    hint = did_you_mean(word, get_args(Policy))
    raise UsageError(
        f"{where} is '{shown(word)}'; it must be one of {', '.join(get_args(Policy))}{hint}"
    )


def choose(word: str | None) -> None:
    """Make ``word`` the policy of this process, and of those that it starts; None changes nothing.

    Raises UsageError.
    """
    if word is not None:
        _known(word, "--fetch")
        os.environ[FETCH] = word


@contextmanager
def doing(purpose: Purpose) -> Iterator[None]:
    """A block of work. Within "use" all is "use", whatever an inner block says."""
    strictest = "use" if _purpose.get() == "use" else purpose
    token = _purpose.set(strictest)
    try:
        yield
    finally:
        _purpose.reset(token)


def why_not() -> str:
    """Why nothing may be fetched now; empty if it may."""
    if _purpose.get() == "use":
        return "a finished run is used as it is, without fetching anything"
    wanted = policy()
    if wanted == "never":
        return f"{FETCH} is 'never'"
    if wanted == "fit" and _purpose.get() == "look":
        return f"this command only looks at what is there; {FETCH}=always lets it fetch"
    return ""


def check(what: str, ways_out: Sequence[str] = ()) -> None:
    """Raise DataError if nothing may be fetched now; ``ways_out`` say where to put ``what``."""
    reason = why_not()
    if reason:
        advice = f"\n{suggest(ways_out)}" if ways_out else ""
        raise DataError(f"{what} is not here and is not fetched: {reason}{advice}")
