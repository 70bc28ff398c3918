"""A whole comparison from Python: the same cells, table and files that the command line makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal import plugins
from xmodal.comparison.grid import Cell, grid, requested
from xmodal.comparison.queue import Queue, State
from xmodal.data.store import Store
from xmodal.errors import DataError, PluginError, UsageError, file_errors
from xmodal.files import hashed_again
from xmodal.recipe.cheap import TRIVIAL
from xmodal.recipe.choice import choose
from xmodal.recipe.lookup import looks_like_path

if TYPE_CHECKING:
    from xmodal.comparison.table import ComparisonTable

CELLS = Path("runs/cells")
DEFAULT_LAUNCHER = ""
SHOWN = 8
Watch = Callable[[Queue, list[State]], None]


@file_errors()
def compare(
    methods: Sequence[str] = (),
    tasks: Sequence[str] = (),
    *,
    suite: str | None = None,
    seeds: int | None = None,
    first_seed: int | None = None,
    settings: Sequence[str] = (),
    scale: str | None = None,
    fraction: float | None = None,
    trivial: bool = True,
    against: str | None = None,
    launcher: str | None = DEFAULT_LAUNCHER,
    jobs: int | None = None,
    budget: float | None = None,
    root: str | Path = CELLS,
    plugin_files: Sequence[str] = (),
    watch: Watch | None = None,
    verify_data: bool = False,
    available: bool = False,
) -> ComparisonTable:
    """Run what is not done yet of methods x tasks x settings x seeds, and weigh the results.

    ``settings`` holds ``key=value,value`` texts. ``launcher`` is a name, a block ``{use: ...}`` or
    its file; the empty text stands for the default one, and None runs nothing and reads what is
    there. ``budget``: seconds after which no further cell is started. ``watch`` is shown the queue
    and all states about twice a second. ``available`` leaves out tasks whose data are not here;
    otherwise they are a DataError. ``verify_data`` reads all data to tell whether they have
    changed, here and in every cell. Raises UsageError, RecipeError and DataError before anything
    runs; what goes wrong in a cell is in the table.
    """
    registry = plugins.registry(tuple(plugin_files))
    if launcher and not launcher.startswith("{") and not looks_like_path(launcher):
        registry.entry("launcher", launcher)  # a wrong name is not worth planning a grid
    request = requested(
        registry,
        methods,
        tasks,
        suite=suite,
        seeds=seeds,
        first_seed=first_seed,
        settings=settings,
        scale=scale,
        fraction=fraction,
        trivial=trivial,
        against=against,
        root="" if Path(root) == CELLS else str(root),
        plugin_files=plugin_files,
    )
    with hashed_again(verify_data):
        fetch = launcher is not None and not available
        cells = grid(request, registry, Store(), Path(root), fetch)
    request.check_against(cells)
    if launcher is not None and not available:
        _check_data(cells)
    _check_any_runs(cells)
    runner = None
    if launcher is not None:
        extra = {} if jobs is None else {"jobs": jobs}
        named = launcher or default_launcher(registry)
        from xmodal.interfaces import Context  # imports torch, for which names do not wait

        use = choose("launcher", named, registry, "--launcher", extra)
        runner = use.build(Context.outside(Store(), "launcher"))
        from xmodal.comparison.outlook import banners, outlook  # statistics are slow to import

        plans = (f"{cell.task}: {note}" for cell in cells for note in cell.notes)
        for line in (*dict.fromkeys(plans), *banners(cells), outlook(cells, request.against)):
            if line:
                plugins.log.info("%s", line)
    queue = Queue(cells, runner, budget, tuple(plugin_files), verify_data)
    if runner is not None:
        queue.work(lambda states: None if watch is None else watch(queue, states))
    from xmodal.comparison.table import assemble  # statistics are slow to import

    return assemble(request, cells, queue.states())


def _check_data(cells: Sequence[Cell]) -> None:
    """Raise DataError, before anything runs, for tasks of which no method has the data."""
    absent = {cell.task: cell.skipped for cell in cells if cell.absent}
    able = {cell.task for cell in cells if not cell.absent}
    absent = {task: text for task, text in absent.items() if task not in able}
    if absent and able:
        told = "\n".join(f"{task}: {text}" for task, text in absent.items())
        raise DataError(
            f"the data of {len(absent)} of {len(absent) + len(able)} tasks are not here\n{told}\n"
            "to compare on the others now: add --available"
        )


def _check_any_runs(cells: Sequence[Cell]) -> None:
    """Raise UsageError, before anything runs, if only trivial answers could.

    DataError where nothing but files is missing.
    """
    methods: dict[tuple[str, str], dict[str, None]] = {}
    for cell in cells:
        if cell.skipped:
            methods.setdefault((cell.task, cell.skipped), {})[cell.method] = None
    reasons = [f"{', '.join(mine)} on {task}: {why}" for (task, why), mine in methods.items()]
    able = [cell for cell in cells if cell.directory is not None]
    if reasons and all(cell.resolved["role"] == TRIVIAL for cell in able):
        shown = "\n".join(reasons[:SHOWN])
        more = f"\nand {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
        only_data = all(cell.absent for cell in cells if cell.skipped)
        kind = DataError if only_data else UsageError
        raise kind(f"no cell can run\n{shown}{more}")


def default_launcher(registry: plugins.Registry) -> str:
    """The launcher that says it is the default one. Raises UsageError if none does."""
    names = registry.names("launcher")
    for name in names:
        try:
            launcher: Any = registry.load("launcher", name)
        except PluginError:
            continue  # whoever names it is told what is wrong with it
        if launcher.default:
            return name
    raise UsageError(f"no launcher is the default one; name one: {', '.join(names) or 'none'}")
