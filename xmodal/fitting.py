"""Around the fit of an estimator: its folder, its search, its errors and its progress."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal.errors import DataError, Problem, RecipeError, UsageError
from xmodal.recipe.compose import COMMAND_LINE

if TYPE_CHECKING:
    from xmodal.engine.observe import Observer
    from xmodal.search.fit import Fitted

AUTO = "auto"
"""The method of a search for the best one."""
USUAL_TIME = "10m"


def search(
    data: Path,
    task: Mapping[str, Any],
    tuning: Sequence[str],
    common: Sequence[str],
    time: float | str | None,
    trials: int | None,
    seed: int,
    root: Path,
    verbose: int,
) -> Fitted:
    """The search of ``xmodal fit`` on arrays that were written to the folder ``data``.

    ``task``: settings of the task; ``tuning``: settings of what trains, and ``common`` of all that
    is tried. Raises UsageError and DataError.
    """
    from xmodal.search.clock import seconds
    from xmodal.search.fit import fit

    if time is None and trials is None:
        time = USUAL_TIME
    limit = None if time is None else seconds(str(time), "time")
    return fit(
        data,
        settings=task,
        overrides=tuning,
        common=common,
        seconds=limit,
        trials=trials,
        seed=seed,
        root=root,
        say=lambda line: print(line, file=sys.stderr) if verbose else None,  # noqa: T201
    )


@contextmanager
def run_root(directory: str | Path | None) -> Iterator[Path]:
    """Where data and runs go: ``directory``, or a folder that is removed afterwards."""
    if directory is not None:
        from xmodal.engine import directory as place

        root = Path(directory).expanduser().resolve()
        try:
            for name in ("data", "runs"):
                place.check(name, root)
        except UsageError as error:
            raise ValueError(f"directory={str(directory)!r}: {error}") from error
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="xmodal-", ignore_cleanup_errors=True) as made:
        yield Path(made)


@contextmanager
def as_value_errors(data: Path, kept: bool) -> Iterator[None]:
    """Turn errors about data and settings into ValueErrors that speak of X, y and parameters.

    ``kept``: the run outlives the fit, so that an interrupted one can be continued.
    """
    from xmodal.engine.run import Interrupted

    try:
        yield
    except RecipeError as error:
        raise ValueError("\n".join(map(_without_place, error.problems))) from error
    except UsageError as error:
        raise ValueError(str(error)) from error
    except DataError as error:
        if str(data) not in str(error):
            raise
        raise ValueError(_in_arguments(str(error), data)) from error
    except Interrupted as error:
        if not kept:
            error.args = ("interrupted; nothing is kept. With directory= the fit would go on.",)
        if error.exit_code == 130:
            raise KeyboardInterrupt from error
        raise


def _without_place(problem: Problem) -> str:
    """A problem; without its place if that is the command line, which the caller has not used."""
    own = problem.where.startswith(COMMAND_LINE)
    return str(problem).removeprefix(problem.where).strip() if own else str(problem)


def _in_arguments(text: str, data: Path) -> str:
    """A message about files of ``data`` as one about X and y."""
    for name in ("x", "y"):
        text = text.replace(f"{data}/{name}_train.npy: '{name}_train'", {"x": "X"}.get(name, name))
    text = text.replace(f"{data}/train.parquet", "X")
    return text.replace(f"{data}/", "")


@contextmanager
def watching(verbose: int) -> Iterator[Observer | None]:
    """Progress on stderr as on the command line, if it is wanted."""
    if not verbose:
        yield None
        return
    from xmodal.cli import output
    from xmodal.cli.live import Watcher

    with Watcher(output.stderr()) as watcher:
        yield watcher
