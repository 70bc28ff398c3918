"""``xmodal compare``: methods side by side, on the same tasks, splits and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from xmodal.cli import output
from xmodal.cli.run import AsJson, Plugins

if TYPE_CHECKING:
    from xmodal.compare.cells import Cell
    from xmodal.compare.collect import Row
    from xmodal.compare.queue import Queue, State
    from xmodal.interfaces import Launcher
    from xmodal.plugins import Registry

MANY = ("--task", "--set")
SHOWN = 24


class Spread(TyperCommand):
    """A command whose repeatable options also take several values: ``--task a b``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Turn ``--task a b`` into ``--task a --task b``."""
        spread: list[str] = []
        option = ""
        for word in args:
            if word.startswith("-"):
                option = word if word in MANY else ""
                spread.append(word)
            elif option and spread[-1] != option:
                spread += [option, word]
            else:
                spread.append(word)
        return super().parse_args(ctx, spread)


def compare(
    methods: Annotated[list[str], typer.Argument(help="Names or files of methods.")],
    task: Annotated[list[str], typer.Option(help="Names or files of tasks; several may follow.")],
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of every cell, from 0.")] = 3,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value,value: every value is a method of its own."),
    ] = None,
    scale: Annotated[str | None, typer.Option(help="Put a scale layer last.")] = None,
    fraction: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the training samples.")
    ] = None,
    launcher: Annotated[str, typer.Option(help="Where the cells run.")] = "local",
    jobs: Annotated[int | None, typer.Option(min=1, help="Cells at a time.")] = None,
    budget: Annotated[
        float | None, typer.Option(min=0, help="Hours after which no further cell is started.")
    ] = None,
    root: Annotated[Path, typer.Option(help="Where the cells are kept.")] = Path("runs/cells"),
    collect: Annotated[bool, typer.Option("--collect", help="Run nothing, only read.")] = False,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Compare methods on tasks. Cells that are done are read, others run; Ctrl-C loses nothing.

    Example:  xmodal compare pare nft --task openml/car openml/wdbc --scale cpu
    """
    from xmodal import plugins
    from xmodal.compare.cells import Request, grid
    from xmodal.compare.collect import rows
    from xmodal.compare.queue import FAILED, Queue
    from xmodal.data.store import Store

    registry = plugins.registry(tuple(plugin or ()))
    request = Request(
        methods=tuple(dict.fromkeys(methods)),
        tasks=tuple(dict.fromkeys(task)),
        settings=tuple(set_ or ()),
        seeds=seeds,
        scale=scale,
        fraction=fraction,
    )
    cells = grid(request, registry, Store(), root)
    runner = None if collect else _launcher(launcher, jobs, registry)
    seconds = None if budget is None else 3600 * budget
    queue = Queue(cells, runner, seconds, tuple(plugin or ()))
    if runner is not None:
        _watch(queue)
    states, found = queue.states(), rows(cells)
    if as_json:
        output.print_json({"cells": _listed(cells, states), "rows": [r.as_dict() for r in found]})
    else:
        _show(cells, states, found)
    if any(state.word == FAILED for state in states):
        raise typer.Exit(6)


def _launcher(name: str, jobs: int | None, registry: Registry) -> Launcher:
    from xmodal.errors import UsageError
    from xmodal.interfaces import Launcher

    component = registry.load("launcher", name)
    if jobs is not None and "jobs" not in component.Config.model_fields:
        raise UsageError(f"launcher '{name}' has no setting 'jobs'")
    settings = component.Config.model_validate({} if jobs is None else {"jobs": jobs})
    assert issubclass(component, Launcher)
    return component(settings)


def _watch(queue: Queue) -> None:
    """Run the queue under a live table, or with one line a change where nobody looks."""
    from rich.live import Live

    console = output.stderr()
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2, transient=True) as live:
            queue.work(lambda states: live.update(_table(queue, states)))
        return
    before: dict[int, str] = {}

    def tell(states: list[State]) -> None:
        for number, state in enumerate(states):
            if before.get(number) != state.word and state.word not in ("queued", "skipped"):
                console.print(f"{state.word}: {queue.cells[number].name}", markup=False)
            before[number] = state.word

    queue.work(tell)


def _table(queue: Queue, states: list[State]) -> Any:
    """The cells that change, and how many there are of each kind."""
    from rich.table import Table

    counts: dict[str, int] = {}
    for state in states:
        counts[state.word] = counts.get(state.word, 0) + 1
    title = ", ".join(f"{number} {word}" for word, number in counts.items())
    table = Table("method", "task", "seed", "state", "epoch", "left", title=title, box=None)
    order = {"running": 0, "failed": 1, "queued": 2}
    pairs = [pair for pair in zip(queue.cells, states, strict=True) if pair[1].word in order]
    pairs.sort(key=lambda pair: order[pair[1].word])
    for cell, state in pairs[:SHOWN]:
        epoch = f"{state.epoch}/{state.epochs}" if state.epoch else ""
        left = "" if state.remaining is None else output.seconds(state.remaining)
        table.add_row(cell.method, cell.task, str(cell.seed), state.word, epoch, left)
    if len(pairs) > SHOWN:
        table.add_row(f"... {len(pairs) - SHOWN} more", "", "", "", "", "")
    return table


def _listed(cells: list[Cell], states: list[State]) -> list[dict[str, Any]]:
    return [
        {
            "method": cell.method,
            "task": cell.task,
            "seed": cell.seed,
            "state": state.word,
            "detail": state.detail,
            "directory": None if cell.directory is None else str(cell.directory),
        }
        for cell, state in zip(cells, states, strict=True)
    ]


def _show(cells: list[Cell], states: list[State], found: list[Row]) -> None:
    """Mean and deviation of every method on every task, and what did not work."""
    from statistics import mean, stdev

    console = output.stderr()
    said: set[str] = set()
    for cell, state in zip(cells, states, strict=True):
        if state.detail and (text := f"{state.word}: {cell.method} on {cell.task}") not in said:
            said.add(text)
            console.print(f"{text}\n    " + state.detail.replace("\n", "\n    "), markup=False)
    for name in dict.fromkeys(row.task for row in found):
        lines = []
        for method in dict.fromkeys(row.method for row in found if row.task == name):
            mine = [row for row in found if (row.task, row.method) == (name, method)]
            spread = f"± {stdev(r.test for r in mine):.2g}" if len(mine) > 1 else ""
            lines.append(
                (
                    method,
                    f"{output.number(mean(r.test for r in mine))} {spread}".rstrip(),
                    len(mine),
                    f"{mean(r.encoded_samples for r in mine):,.0f}",
                    output.seconds(mean(r.seconds for r in mine)),
                )
            )
        first = next(row for row in found if row.task == name)
        columns = ("method", f"test {first.metric}", "seeds", "encoded samples", "training")
        title = f"{name}: {first.better} is better; protocol {first.protocol}"
        output.print_table(columns, lines, title=f"{title}, selected on {first.selected_on}")
        output.stdout().print()
