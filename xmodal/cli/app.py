"""The command line. Imports nothing heavy at the top, so that ``xmodal --help`` is instant.

Results go to stdout, everything else to stderr. Every error that a user can cause ends in one
message and the exit code of its kind.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from xmodal._version import __version__
from xmodal.cli import (
    data,
    doctor,
    export,
    fit,
    listing,
    output,
    plugins,
    predict,
    recipes,
    run,
    streams,
)
from xmodal.cli.cells import cells
from xmodal.cli.compare import Spread, WithMerge, compare, demo, merge
from xmodal.errors import MachineError, XModalError
from xmodal.text import visible

app = typer.Typer(
    name="xmodal",
    cls=WithMerge,
    help="Cross-modal fine-tuning: adapt a pretrained transformer to data it never saw.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"xmodal {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Define the options of the main command."""


app.command("run")(run.run)
app.command("fit")(fit.fit)
app.command("resume")(run.resume)
app.command("runs")(listing.runs)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("cells", hidden=True)(cells)
app.command("compare", cls=Spread)(compare)
app.command("compare merge", hidden=True)(merge)
app.command("demo")(demo)
app.command("doctor")(doctor.doctor)
app.command("schema")(recipes.schema)
app.add_typer(data.app, name="data")
app.add_typer(recipes.app, name="recipes")
app.add_typer(plugins.app, name="plugins")


class _ToStderr(logging.Handler):
    """Prints log messages of the package on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(visible(record.getMessage()), err=True)


def main() -> None:
    """Run the command line; the console script's entry point."""
    try:
        with streams.guarded():
            code = _ended()
    except streams.ReaderGoneError:
        code = 0
    except MachineError as error:  # the last results could not be written
        code = streams.failed(error)
    sys.exit(code)


def _ended() -> int | str | None:
    """Run the command, and say what went wrong; returns the exit code."""
    from xmodal.plugins import add_commands

    for name in output.TALKING:
        log = logging.getLogger(name)
        log.handlers = [_ToStderr()]
        log.setLevel(logging.INFO)
    try:
        for line in add_commands(app):
            typer.echo(visible(f"warning: {line}"), err=True)
        app()
    except SystemExit as end:
        return end.code
    except XModalError as error:
        return streams.failed(error)
    except OSError as error:
        return streams.failed(MachineError.of(error))
    except MemoryError as error:
        return streams.failed(MachineError(f"not enough memory: {error}".removesuffix(": ")))
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command begins again, or goes on", err=True)
        return 130
    return 0
