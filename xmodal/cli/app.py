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
from xmodal.cli import doctor, export, plugins, predict, recipes, run
from xmodal.cli.compare import Spread, compare, demo
from xmodal.errors import XModalError

app = typer.Typer(
    name="xmodal",
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
app.command("resume")(run.resume)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("compare", cls=Spread)(compare)
app.command("demo")(demo)
app.command("doctor")(doctor.doctor)
app.command("schema")(recipes.schema)
app.add_typer(recipes.app, name="recipes")
app.add_typer(plugins.app, name="plugins")


class _ToStderr(logging.Handler):
    """Prints log messages of the package on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(record.getMessage(), err=True)


def main() -> None:
    """Run the command line; the console script's entry point."""
    from xmodal.plugins import add_commands, log

    log.handlers = [_ToStderr()]
    log.setLevel(logging.INFO)
    try:
        for line in add_commands(app):
            typer.secho(f"warning: {line}", err=True)
        app()
    except XModalError as error:
        typer.secho(f"error: {error}", err=True, fg="red" if sys.stderr.isatty() else None)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of the output (head, less) closed it, which is not an error.
        sys.stderr.close()
        sys.exit(0)
