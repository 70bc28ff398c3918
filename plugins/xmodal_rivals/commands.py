"""``xmodal rivals setup``: the Pythons that some rivals need for themselves."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from xmodal.cli import output


def add_to(app: Any) -> None:
    """Add the commands to the application."""
    about = "Rivals: models from elsewhere that methods are compared with."
    rivals = typer.Typer(help=about, no_args_is_help=True)
    rivals.callback()(_rivals)
    rivals.command("setup")(setup)
    app.add_typer(rivals, name="rivals")


def _rivals() -> None:
    """Commands about rivals."""


def setup(
    name: Annotated[str, typer.Argument(help="aeon, autogluon, pytabkit or tabpfn.")],
    run: Annotated[bool, typer.Option("--run", help="Run the command instead.")] = False,
) -> None:
    """Print the command that sets up a rival's own Python in the cache, or run it.

    The rivals `minirocket`, `hydra` and `quant` need `aeon`, `realmlp` and `tabm` need `pytabkit`.
    """
    import subprocess

    from xmodal.data import Store
    from xmodal.errors import DataError
    from xmodal_rivals.interpreters import interpreter

    store = Store()
    one = interpreter(name)
    if not run:
        output.stdout().print(one.line(store), soft_wrap=True, markup=False, highlight=False)
        return
    for command in one.commands(store):
        code = subprocess.run(command).returncode
        if code:
            raise DataError(f"{' '.join(command)} ended with exit code {code}")
    output.stdout().print(f"ready: {one.python(store)}", soft_wrap=True)
