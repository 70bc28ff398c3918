"""``xmodal cells``: several cells of a comparison in one process. Launchers call it, not people."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xmodal.cli import output, run, streams
from xmodal.cli.output import Plugins, VerifyData
from xmodal.errors import XModalError

if TYPE_CHECKING:
    from xmodal.data.store import Store
    from xmodal.engine.together import Result, Work
    from xmodal.plugins import Registry


def cells(
    folders: Annotated[list[Path], typer.Argument(metavar="DIRECTORY", help="Folders of cells.")],
    verify_data: VerifyData = False,
    plugin: Plugins = None,
) -> None:
    """Run cells of a comparison in turns, in this process.

    Each does what ``xmodal run DIRECTORY/cell.yaml --directory DIRECTORY`` does, and its output
    goes to a file in its own folder. The exit code is that of the first one that did not succeed.
    """
    from xmodal.data.store import Store
    from xmodal.engine.together import execute_together
    from xmodal.files import hashed_again
    from xmodal.plugins import registry

    known, store = registry(tuple(plugin or ())), Store()
    with ExitStack() as stack:
        mine = [_Cell(folder, stack) for folder in folders]
        works = [work for cell in mine if (work := cell.work(known, store)) is not None]
        with hashed_again(verify_data):
            execute_together(works, known, store)
    raise typer.Exit(next((cell.code for cell in mine if cell.code), 0))


class _Cell:
    """The folder of a cell, its output, and the exit code that it would have had alone."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        from xmodal.cli.live import Watcher
        from xmodal.comparison.queue import LOG

        self.folder, self.code = folder, 0
        self._observer = stack.enter_context(Watcher(output.stderr()))
        self._log = stack.enter_context((folder / LOG).open("ab"))
        self._before = [os.dup(descriptor) for descriptor in (1, 2)]
        for copy in self._before:
            stack.callback(os.close, copy)

    def work(self, registry: Registry, store: Store) -> Work | None:
        """What is to be carried out; None, and a message, if the recipe is wrong."""
        from xmodal.api import run_name, run_order
        from xmodal.engine.plan import compose_plan
        from xmodal.engine.together import Work

        recipes = [str(self.folder / "cell.yaml")]
        with self.turn():
            try:
                plan = compose_plan(recipes, registry, store)
                order = run_order(recipes, registry, run_name(recipes), self.folder)
            except XModalError as error:
                self.ended(error)
                return None
        return Work(plan, order, self._observer, self.turn, self.ended)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A block whose output goes to the file of the cell, also that of libraries."""
        for descriptor in (1, 2):
            os.dup2(self._log.fileno(), descriptor)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):  # a full disk must not end the other cells
                    stream.flush()
            for descriptor, copy in zip((1, 2), self._before, strict=True):
                os.dup2(copy, descriptor)

    def ended(self, result: Result) -> None:
        """Say what came out, as the command ``run`` does."""
        if isinstance(result, XModalError):
            self.code = streams.failed(result)
        elif isinstance(result, BaseException):
            self.code = 1
            traceback.print_exception(result)
        else:
            run.show(result.run.path, result.result, result.fresh, as_json=False)
