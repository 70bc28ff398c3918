"""Tables and JSON on stdout, notes on stderr, and the options that commands share.

Public, for plugins that add commands. Imports nothing heavy.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xmodal.files import as_json
from xmodal.text import visible

Plugins = Annotated[
    list[str] | None, typer.Option("--plugin", help="Load a single-file plugin; can be repeated.")
]
"""The option ``--plugin FILE``."""
VerifyData = Annotated[
    bool,
    typer.Option(
        "--verify-data",
        help="Read all data again, even where sizes and times say that nothing changed.",
    ),
]
"""The option ``--verify-data``."""
Fetch = Annotated[
    str | None,
    typer.Option(
        "--fetch",
        metavar="always|fit|never",
        help="What may be fetched: never anything, not even weights; fit: what training needs. "
        "Default: $XMODAL_FETCH, or fit.",
    ),
]
"""The option ``--fetch``; hand it to ``xmodal.data.fetching.choose``."""
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
"""The option ``--json``."""


def stdout() -> Console:
    """The console for results; wraps lines only on a terminal."""
    return _console(200)


def stderr() -> Console:
    """The console everything else goes to; square brackets are text, and only terminals wrap."""
    return _console(500, stderr=True)


class _Console(Console):
    """A console that shows control characters in text instead of sending them."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


def _console(width: int, **where: Any) -> Console:
    console = _Console(highlight=False, markup=False, emoji=False, **where)
    if not console.is_terminal:
        console.width = width
    return console


TALKING = ("xmodal.plugins", "xmodal.data")
"""The loggers whose messages are for users."""


def hush() -> None:
    """Suppress what is said of loading torch, of downloads and of waiting."""
    for name in TALKING:
        logging.getLogger(name).setLevel(logging.WARNING)


def loading(quiet: bool = False) -> None:
    """Say, unless ``quiet``, that torch is about to be loaded: the first word of a slow command."""
    if quiet:
        hush()
    from xmodal.plugins import announce_loading

    announce_loading()


def print_json(content: Any) -> None:
    """Print a value as JSON."""
    typer.echo(as_json(content, indent=1, default=str))


_DASHES = str.maketrans("−–", "--")


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    title: str = "",
    whole: Container[str] = (),
    cut: Container[str] = (),
) -> None:
    """Print a table; the caller formats numbers so that they align to the right.

    The columns in ``whole`` are never cut or wrapped: what a person has to type stands in them.
    Those in ``cut`` are cut, not wrapped, where a terminal is narrow, so that a row is one line.
    """
    console = stdout()
    table = Table(box=None, pad_edge=False)
    for column in columns:
        if column in cut and console.is_terminal:
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        else:
            table.add_column(column, no_wrap=column in whole, overflow="fold")
    for row in rows:
        # Square brackets in a name are not markup, and programs that read a table know one dash.
        table.add_row(*(Text(visible(str(cell), False).translate(_DASHES)) for cell in row))
    if title:  # not the table's own, which would be as narrow as the table
        console.print(Text(visible(title), style="italic"))
    console.print(table)
