"""``xmodal data``: which data sets there are, and how to make them ready."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from xmodal import plugins, text
from xmodal.cli import output
from xmodal.cli.output import AsJson, Plugins
from xmodal.errors import DataError, RecipeError, UsageError, XModalError, did_you_mean

if TYPE_CHECKING:
    from xmodal.data.datasets import DataCard
    from xmodal.data.store import Store
    from xmodal.facts import Target
    from xmodal.recipe.datasets import NamedData

app = typer.Typer(
    help="List the data sets of tasks and sources, and make them ready.", no_args_is_help=True
)
Again = Annotated[bool, typer.Option("--again", help="Make it anew even if it is ready.")]
Benchmark = Annotated[
    str | None, typer.Option("--benchmark", help="All tasks of one, such as PDEBench.")
]
COLUMNS = ("name", "form", "size", "state", "family", "metric", "licence")
SHARED = ("family", "metric", "licence")  # often the same in a whole benchmark
Names = Annotated[
    list[str],
    typer.Argument(metavar="TASK... [KEY=VALUE]", help="Tasks or sources, and overrides."),
]


@app.command("list")
def list_(
    benchmark: Benchmark = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """List every task and published source: its form, size, licence, and whether it is ready."""
    from xmodal.data.store import Store

    output.loading()
    store = Store()
    rows = sorted(_rows(store, plugin), key=lambda row: (row["benchmark"] or "~", row["name"]))
    if benchmark is not None:
        rows = _of_benchmark(rows, benchmark)
    if as_json:
        output.print_json(rows)
        return
    for name, group in groupby(rows, key=lambda row: row["benchmark"]):
        _print_benchmark(name or "other", list(group))
    output.stdout().print(
        "make one ready: xmodal data fetch NAME, or: xmodal data generate NAME; "
        "what it is, and its whole licence: xmodal data info NAME",
        soft_wrap=True,
    )


def _print_benchmark(name: str, rows: list[dict[str, Any]]) -> None:
    """A table of one benchmark; what is the same in all its rows stands above it, once."""
    cells = [{column: _cell(column, row[column]) for column in COLUMNS} for row in rows]
    same = [c for c in SHARED if len(rows) > 1 and len({row[c] for row in cells}) == 1]
    shared = [
        f"{column}: {cells[0][column]}" for column in same if cells[0][column] != text.MISSING
    ]
    columns = [column for column in COLUMNS if column not in (*same, "licence")]
    console = output.stdout()
    console.print(Text("; ".join([f"{name} ({len(rows)})", *shared]), style="bold"), soft_wrap=True)
    output.print_table(
        columns,
        [[row[column] for column in columns] for row in cells],
        whole=[column for column in columns if column not in SHARED],
    )
    if "licence" not in same:  # too long for a column
        owners: dict[str, list[str]] = {}
        for row in cells:
            owners.setdefault(row["licence"], []).append(row["name"])
        for licence, names in owners.items():
            console.print(Text(f"licence of {', '.join(names)}: {licence}"), soft_wrap=True)
    console.print()


def _cell(column: str, value: Any) -> str:
    if column == "size":
        return text.size(value)
    if column == "licence" and value:  # the remarks in brackets are for ``data info``
        return re.sub(r" \([^()]*\)", "", value)
    return str(value or text.MISSING)


def _of_benchmark(rows: Iterable[dict[str, Any]], benchmark: str) -> list[dict[str, Any]]:
    """The rows of one benchmark. Raises UsageError with the nearest name if there is none."""
    rows = list(rows)
    found = [row for row in rows if str(row["benchmark"]).lower() == benchmark.lower()]
    if not found:
        known = sorted({row["benchmark"] for row in rows if row["benchmark"]})
        hint = did_you_mean(benchmark, known)
        raise UsageError(
            f"no benchmark '{text.shown(benchmark)}'{hint}\nbenchmarks: {', '.join(known)}"
        )
    return found


def _rows(store: Store, plugin: list[str] | None) -> Iterator[dict[str, Any]]:
    from xmodal.recipe.datasets import all_named

    for found in all_named(plugins.registry(tuple(plugin or ()))):
        if isinstance(found, RecipeError):
            output.stderr().print(f"note: {found.problems[0]}", soft_wrap=True)
        elif found.recipe or found.card is not None:
            try:
                yield _row(found, store)
            except DataError as error:
                output.stderr().print(f"note: {found.name}: {error}", soft_wrap=True)


def _row(named: NamedData, store: Store) -> dict[str, Any]:
    component, config, card = named.use.component, named.use.config, named.card
    row: dict[str, Any] = {"name": named.name}
    if named.recipe:
        facts = component.describe(config, store)
        row["form"] = f"{_shape(facts.shape)} to {_label(facts.target)}"
        row["family"], row["metric"] = facts.family, config.metric.name
        row["samples"] = dict(facts.samples)
    else:
        described = component.describe(config)
        row["form"] = f"{described.modality} to {_label(described.target)}"
        row["family"], row["metric"] = described.modality, None
        row["samples"] = None
    return row | {
        "part": named.use.name,
        "size": card.size if card else None,
        "licence": card.licence if card else None,
        "state": component.state(config, store),
        "benchmark": card.benchmark if card else None,
        "stand_in": (card.stand_in or None) if card else None,
    }


def _label(target: Target) -> str:
    """What a model says of one sample, such as "10 classes" or "1x85x85"."""
    if target.shape:
        return _shape((target.size, *target.shape))
    units = {"classification": "classes", "multi-label": "labels", "regression": "numbers"}
    units["dense"] = "value per pixel" if target.size == 1 else "values per pixel"
    return f"{target.size} {units[target.kind]}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in shape)


@app.command()
def info(task: Names, plugin: Plugins = None, as_json: AsJson = False) -> None:
    """Show what is known of a data set, where its files come from, and what to type next."""
    from xmodal.data.store import Store

    if as_json:
        output.hush()
    store = Store()
    (named,) = _named(task, plugin, most=1)
    card, row = named.card, _row(named, store)
    if as_json:
        output.print_json(row | {"card": _plain(card), "folder": _folder(store, card)})
        return
    if row["samples"]:
        row["samples"] = ", ".join(f"{count} {split}" for split, count in row["samples"].items())
    row["size"] = text.size(row["size"])
    rows = [(key, value) for key, value in row.items() if value not in (None, "")]
    if card is not None:
        rows += [("source", card.source), ("folder", _folder(store, card) or text.MISSING)]
        rows += [("note", card.note)] if card.note else []
        rows += [(f"file {file.name}", _told(file)) for file in card.files]
    output.print_table(("", ""), rows)
    for line in named.use.component.missing(named.use.config, store):
        output.stdout().print(f"\n{line}", soft_wrap=True)


def _told(file: Any) -> str:
    known = ["taken if you have it (--from)"] if file.aside else []
    known += [text.size(file.size) if file.size else "", *file.urls, file.by_hand]
    known += [f"{name} {getattr(file, name)}" for name in ("sha256", "md5") if getattr(file, name)]
    return "; ".join(filter(None, known))


def _plain(card: DataCard | None) -> dict[str, Any] | None:
    from dataclasses import asdict

    return None if card is None else asdict(card)


def _folder(store: Store, card: DataCard | None) -> str | None:
    try:
        found = None if card is None else store.dataset(card)
    except DataError:
        return None
    return None if found is None else str(found)


@app.command()
def fetch(
    task: Annotated[
        list[str] | None,
        typer.Argument(metavar="TASK... [KEY=VALUE]", help="Tasks or sources, and overrides."),
    ] = None,
    benchmark: Benchmark = None,
    folder: Annotated[
        Path | None,
        typer.Option("--from", metavar="PATH", help="Take files from here; they are only read."),
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(min=0, metavar="MINUTES", help="Most time for all downloads.")
    ] = None,
    again: Again = False,
    plugin: Plugins = None,
) -> None:
    """Download the files of tasks or sources, check them, and convert them once.

    Examples:  xmodal data fetch psicov   |   xmodal data fetch cosmic --from ~/Downloads   |
    xmodal data fetch --benchmark OpenML-CC18
    """
    from xmodal.data.obtain import DataOrder
    from xmodal.data.store import Store

    order = DataOrder(folder=folder and folder.expanduser(), minutes=deadline, again=again)
    names = list(task or [])
    if benchmark is not None:
        names += [row["name"] for row in _of_benchmark(_rows(Store(), plugin), benchmark)]
    _make_ready(_named(names, plugin), order)


@app.command()
def generate(
    task: Names,
    samples: Annotated[
        int | None, typer.Option(min=1, help="How many samples; default: as published.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Points per side; default: as published.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Cores to use; default: all.")] = None,
    material: Annotated[
        Path | None,
        typer.Option("--from", metavar="PATH", help="Other data to make them of, for some tasks."),
    ] = None,
    again: Again = False,
    plugin: Plugins = None,
) -> None:
    """Generate the data of tasks by their solvers. Interrupt it at will: it continues.

    Example:  xmodal data generate advection --samples 1000 --resolution 256
    """
    from xmodal.data.obtain import DataOrder

    order = DataOrder(
        folder=material and material.expanduser().absolute(),
        again=again,
        generate=True,
        samples=samples,
        resolution=resolution,
        jobs=jobs,
    )
    _make_ready(_named(task, plugin), order)


def _named(
    arguments: list[str], plugin: list[str] | None, most: int | None = None
) -> list[NamedData]:
    """What the arguments name, with their overrides; all names are checked before any work."""
    from xmodal.recipe.datasets import find_named

    overrides = [argument for argument in arguments if "=" in argument]
    names = [argument for argument in arguments if "=" not in argument]
    if not names or (most is not None and len(names) > most):
        raise UsageError("name one task; list them: xmodal data list")
    registry = plugins.registry(tuple(plugin or ()))
    return [find_named(name, registry, overrides) for name in dict.fromkeys(names)]


def _make_ready(found: list[NamedData], order: Any) -> None:
    """Make each ready; what fails does not keep the others from it."""
    from xmodal.data.store import Store

    store, failed = Store(), []
    for named in found:
        try:
            _make_one_ready(named, order, store)
        except KeyboardInterrupt:
            output.stderr().print("interrupted; what is finished is kept: the same command goes on")
            raise typer.Exit(130) from None
        except XModalError as error:
            if len(found) == 1:
                raise
            failed.append(named.name)
            output.stderr().print(f"{named.name}: {error}", soft_wrap=True)
    if failed:
        raise DataError(f"not ready: {', '.join(failed)}")


def _make_one_ready(named: NamedData, order: Any, store: Store) -> None:
    from xmodal.data.obtain import origin

    card, console = named.card, output.stdout()
    train = f"xmodal run pare_{named.name}" if named.recipe else f"source={named.name}"
    part, config = named.use.component, named.use.config
    if not getattr(config, "prepared", True):  # its runs generate samples unless asked for these
        train += " task.prepared=true"
    built = not order.generate and part.state(config, store) == "ready"
    built = built and not _folder(store, card)
    if card is None or built:
        console.print(f"{named.name} needs no data set of its own.  Next: {train}", soft_wrap=True)
        return
    folder, made = named.use.component.obtain(named.use.config, store, order)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    how = origin(folder)
    state = "is ready" if made else f"was ready already{how and f' ({how})'}"
    console.print(
        f"{named.name} {state}: {folder} ({text.size(size)}).  Next: {train}", soft_wrap=True
    )
