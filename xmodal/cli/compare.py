"""``xmodal compare``: methods side by side, on the same tasks, splits and seeds.

``xmodal demo`` is the comparison of the suite ``demo``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from xmodal import text
from xmodal.cli import output, verdicts
from xmodal.cli.output import AsJson, Fetch, Plugins, VerifyData
from xmodal.data import fetching
from xmodal.files import check_free

if TYPE_CHECKING:
    from xmodal.comparison.queue import Queue, State
    from xmodal.comparison.run import Watch
    from xmodal.comparison.table import ComparisonTable

MANY = ("--task", "--set")
SHOWN = 24
DEMO = "demo"


class WithMerge(TyperGroup):
    """The commands; ``compare merge`` is one of its own, though ``compare`` takes any names."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command of these words."""
        if args[:2] == ["compare", "merge"]:
            args = ["compare merge", *args[2:]]
        return super().resolve_command(ctx, args)


class Spread(TyperCommand):
    """A command whose repeatable options also accept several values: ``--task a b``."""

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
    methods: Annotated[
        list[str] | None, typer.Argument(help="Names or files of methods.", show_default=False)
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Names or files of one or more tasks, or data files.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="A suite (a grid in a file), such as table4; options win.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Number of seeds per method and task; default 3.")
    ] = None,
    first_seed: Annotated[
        int | None,
        typer.Option(min=0, help="The first of them, to confirm with fresh ones; default 0."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value,value: every value makes a separate method."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Compare all other methods only with this method.")
    ] = None,
    trivial: Annotated[
        bool, typer.Option(help="Also run the cheap answers that every method must beat.")
    ] = True,
    scale: Annotated[str | None, typer.Option(help="Scale layer to apply last.")] = None,
    fraction: Annotated[
        float | None, typer.Option(help="Share of the training samples, above 0 and up to 1.")
    ] = None,
    launcher: Annotated[
        str,
        typer.Option(
            help="Where to run the cells: a name, a block {use: ...}, or a file with one.",
            show_default="this machine",
        ),
    ] = "",
    jobs: Annotated[int | None, typer.Option(min=1, help="Cells to run at a time.")] = None,
    budget: Annotated[
        float | None, typer.Option(min=0, help="Hours after which no more cells are started.")
    ] = None,
    root: Annotated[Path, typer.Option(help="Where the cells are kept.")] = Path("runs/cells"),
    out: Annotated[
        Path | None, typer.Option(help="Where to write the report; default: next to the cells.")
    ] = None,
    collect: Annotated[bool, typer.Option("--collect", help="Only read finished cells.")] = False,
    available: Annotated[
        bool, typer.Option("--available", help="Leave out tasks whose data are not here.")
    ] = False,
    verify_data: VerifyData = False,
    fetch: Fetch = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Compare methods on tasks. Reads finished cells and runs the others; Ctrl-C loses nothing.

    Example:  xmodal compare pare nft --task car wdbc --scale cpu

    xmodal compare merge FOLDER ... brings the cells of several machines together.
    """
    fetching.choose(fetch)
    if out is not None:
        check_free(out, verdicts.KIND, verdicts.JSON)
    table = _watched(
        methods=methods or (),
        tasks=task or (),
        suite=suite,
        seeds=seeds,
        first_seed=first_seed,
        settings=set_ or (),
        scale=scale,
        fraction=fraction,
        trivial=trivial,
        against=against,
        launcher=None if collect else launcher,
        jobs=jobs,
        budget=None if budget is None else 3600 * budget,
        available=available,
        root=root,
        plugin_files=tuple(plugin or ()),
        verify_data=verify_data,
    )
    files = _written(out or root.parent / "compare" / table.name, table)
    if as_json:
        output.print_json({**table.as_dict(), "files": [str(file) for file in files]})
    else:
        verdicts.show(table, files)
    _ended(table)


def merge(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of cells, such as runs/cells of each machine.")
    ],
    root: Annotated[Path, typer.Option(help="Where the cells are brought together.")] = Path(
        "runs/cells"
    ),
    as_json: AsJson = False,
) -> None:
    """Copy the finished cells of other machines into one folder; nothing here is replaced.

    Then repeat the comparison with --collect.
    """
    from xmodal.comparison.merge import merge as merged_into

    found = merged_into(folders, root)
    if as_json:
        output.print_json(vars(found))
        return
    for cell, reason in found.left.items():
        output.stderr().print(f"left: {cell}: {reason}")
    for cell, scores in found.differ.items():
        output.stderr().print(f"kept ours: {cell} has another score: {scores}")
    output.stdout().print(
        f"{text.plural(len(found.taken), 'cell')} taken into {root}, "
        f"{len(found.known)} were there already. "
        "Read them: repeat the comparison with --collect"
    )


def demo(
    root: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    force: Annotated[bool, typer.Option(help="Repeat runs that are already done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Adapt a pretrained vision transformer to a solved PDE, and compare it with its baselines.

    Takes minutes on a CPU.
    """
    from xmodal.comparison import run
    from xmodal.runs import Run

    begun = time.monotonic()
    check_free(root / DEMO, verdicts.KIND, verdicts.JSON)
    if force:
        for row in run.compare(suite=DEMO, root=root / "cells", launcher=None).rows:
            Run(Path(row.directory)).clear()
    table = _watched(suite=DEMO, root=root / "cells")
    files = _written(root / DEMO, table)
    elapsed = time.monotonic() - begun
    if as_json:
        cells = [cell for cell, state in table.standing if state.word == "done"]
        runs = {c.method: {**c.run.read("result.json"), "run": str(c.directory)} for c in cells}
        output.print_json({"seconds": elapsed, "report": str(files[0]), "runs": runs})
    else:
        verdicts.show(table, ())
        said = f"{text.duration(elapsed)} in all.  Report: {files[0]}"
        output.stdout().print(said)
    _ended(table)


def _watched(**asked: Any) -> ComparisonTable:
    """Run a comparison with the arguments of ``xmodal.compare``, and show its progress."""
    from xmodal.comparison import run

    with _live() as watch, _warnings_as_notes():
        return run.compare(**asked, watch=watch)


def _written(folder: Path, table: ComparisonTable) -> list[Path]:
    """Write the files of a comparison; on a terminal, say that this takes a moment."""
    with output.stderr().status("writing the report"):
        return verdicts.write(folder, table)


def _ended(table: ComparisonTable) -> None:
    """Exit with the code for failed runs, if there are any."""
    from xmodal.comparison.queue import FAILED

    if any(state.word == FAILED for state in table.states):
        raise typer.Exit(6)


@contextmanager
def _live() -> Iterator[Watch]:
    """A live table on a terminal, otherwise one line per change; reports an interruption."""
    words: dict[int, str] = {}
    with _shown(words) as show:

        def tell(queue: Queue, states: list[State]) -> None:
            if not words:  # say what cannot run now, not after hours
                standing = zip(queue.cells, states, strict=True)
                verdicts.problems(pair for pair in standing if pair[1].word == "skipped")
            show(queue, states)
            words.update(enumerate(state.word for state in states))

        try:
            yield tell
        except KeyboardInterrupt:
            done = sum(word == "done" for word in words.values())
            said = f"{done} of {len(words)} cells are done; repeat the command to continue"
            output.stderr().print(said)
            raise


@contextmanager
def _shown(words: Mapping[int, str]) -> Iterator[Watch]:
    """A function that shows the states; ``words`` holds the states that were last shown."""
    from rich.live import Live

    console = output.stderr()
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2, transient=True) as live:
            yield lambda queue, states: live.update(_table(queue, states))
        return

    def lines(queue: Queue, states: list[State]) -> None:
        for number, state in enumerate(states):
            if words.get(number) != state.word and state.word not in ("queued", "skipped"):
                console.print(f"{state.word}: {queue.cells[number].name}")

    yield lines


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Show warnings of launchers as notes, without their line of code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: output.stderr().print(f"note: {message}")
        yield


def _table(queue: Queue, states: list[State]) -> Any:
    """A table of running, failed and waiting cells; its title counts all states."""
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
        left = "" if state.remaining is None else text.duration(state.remaining)
        table.add_row(cell.method, cell.task, str(cell.seed), state.word, epoch, left)
    if len(pairs) > SHOWN:
        table.add_row(f"... {len(pairs) - SHOWN} more", "", "", "", "", "")
    return table
