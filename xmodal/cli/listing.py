"""``xmodal runs``: every run below a folder as a table, the best of each task first."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from xmodal import text
from xmodal.cli import output
from xmodal.cli.output import AsJson
from xmodal.errors import UsageError, XModalError
from xmodal.files import TAG, owned

if TYPE_CHECKING:
    from xmodal.runs import Run

KIND = "run"
"""That of ``xmodal.runs``, which is imported only to read one."""
ROOTS = (Path("runs"), Path("fits"))
"""Where runs and searches are kept, unless somebody says otherwise."""
FINISHED, RUNNING, INTERRUPTED, FAILED = "finished", "running", "interrupted", "failed"
WORDS = {
    "done": FINISHED,
    "running": RUNNING,
    "interrupted": INTERRUPTED,
    "dead": INTERRUPTED,  # its process was killed
    "failed": FAILED,
    "stopped": FAILED,
}
NOT_BEGUN, DAMAGED = "not begun", "damaged"
COLUMNS = ("method", "scale", "seed", "validation", "test (95 % interval)", "state", "time")
UNKNOWN = "?"


@dataclass(frozen=True)
class ListedRun:
    """A run in the list. ``data``: what tells data sets of one name apart.

    ``test`` and ``interval`` are None for a trial of a search, which no test sample has reached.
    ``epochs``: those that are done, and all. ``retry``: the command for one that has no result.
    """

    directory: Path
    state: str
    task: str = UNKNOWN
    metric: str = UNKNOWN
    method: str = UNKNOWN
    better: str = ""
    data: str = ""
    samples: Mapping[str, int] = field(default_factory=dict)
    scale: str = ""
    seed: int | None = None
    validation: float | None = None
    test: float | None = None
    interval: tuple[float, float] | None = None
    seconds: float | None = None
    epochs: tuple[int, int | None] = (0, None)
    reason: str = ""
    retry: str = ""
    problem: Mapping[str, Any] = field(default_factory=dict)
    """Settings that change what is learned: those of the task, and the shares of samples."""


def runs(
    root: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER]...", help="Where to look; default: runs and fits."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List runs, cells of comparisons and trials of searches; the best on validation first.

    Examples:  xmodal runs   |   xmodal runs runs/cells/car   |   xmodal runs --json
    """
    if root:
        for folder in root:
            if not folder.is_dir():
                raise UsageError(f"no folder '{folder}'")
    places = root or [folder for folder in ROOTS if folder.is_dir()]
    found = ranked(listed(folder) for place in places for folder in run_folders(place))
    if as_json:
        output.print_json([_plain(one) for one in found])
        return
    if not found:
        where = text.listed([str(place) for place in places or ROOTS])
        output.stderr().print(f"no runs below {where}; make one: xmodal run --help")
        return
    begun = [one for one in found if one.state not in (NOT_BEGUN, DAMAGED)]
    groups = [list(group) for _, group in groupby(begun, key=_group)]
    for group in groups:
        _print_group(group, _differs(group[0], [other[0] for other in groups]))
    _print_ways_on(found)


def run_folders(root: Path) -> Iterator[Path]:
    """Every run directory at or below ``root``, sorted; nothing inside of one is looked at."""
    for folder, inside, files in os.walk(root):
        if TAG.format(KIND) in files or "manifest.json" in files:
            inside.clear()
            yield Path(folder)
        inside[:] = sorted(name for name in inside if not name.startswith("."))


def listed(folder: Path) -> ListedRun:
    """What the files of a run directory say; damaged ones are a state, not an error."""
    from xmodal.runs import Run

    run = Run(folder)
    try:
        return _read(run)
    except XModalError as error:
        way = run.to_continue() if (folder / "manifest.json").exists() else ""
        return ListedRun(folder, DAMAGED, *_by_folder(folder), reason=str(error), retry=way)


def _read(run: Run) -> ListedRun:
    manifest, status = run.read("manifest.json"), run.read("status.json")
    if not manifest:
        task, metric, method = _by_folder(run.path)
        return ListedRun(run.path, NOT_BEGUN, task, metric, method)
    task, recipe = manifest["facts"]["task"], manifest.get("ingredients", {}).get("recipe", {})
    cell = _by_folder(run.path)[2] if _is_cell(run.path) else None
    state = WORDS.get(run.state, NOT_BEGUN)
    known = ListedRun(
        run.path,
        state,
        task["name"],
        str(_within(recipe, "task", "metric", "use") or UNKNOWN),
        manifest.get("method") or cell or manifest.get("name") or UNKNOWN,
        data=str(_within(manifest, "data", "task") or ""),
        problem=_problem(recipe),
        samples=task["samples"],
        scale=manifest.get("scale") or "",
        seed=recipe.get("seed"),
    )
    if state == FINISHED:
        return _with_result(known, run.read("result.json"))
    metrics = run.metrics()
    best = [line["validation"]["metric"] for line in metrics if line["best"]]
    return replace(
        known,
        validation=best[-1] if best else None,
        seconds=sum(line["seconds"] for line in metrics) or None,
        epochs=(len(metrics), manifest.get("epochs")),
        reason=str(status.get("reason", "")),
        retry="" if state == RUNNING else _retry(run),
    )


def _with_result(known: ListedRun, result: Mapping[str, Any]) -> ListedRun:
    test, apart = result["test"], _is_trial(known.directory)
    ends = test.get("interval")
    return replace(
        known,
        metric=result["metric"],
        better=result["better"],
        seed=result["seed"],
        validation=result["validation"]["metric"],
        test=None if apart else test["metric"],
        interval=None if apart or not ends else (ends["low"], ends["high"]),
        seconds=result["seconds"]["training"],
    )


def _retry(run: Run) -> str:
    """What to type; runs of an earlier version, and copies, are only read."""
    if run.older or not owned(run.path, KIND):
        return ""
    return run.to_continue()


def _within(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _is_cell(folder: Path) -> bool:
    """Whether a folder is called as cells of comparisons are: TASK/METHOD/seedS-HASH."""
    return folder.name.startswith("seed") and "-" in folder.name


def _is_trial(folder: Path) -> bool:
    """Whether a run is a trial of a search."""
    return folder.parent.name == "trials" and owned(folder.parent.parent, "fit")


def _by_folder(folder: Path) -> tuple[str, str, str]:
    """Task, metric and method of a run that cannot say it, by the names of its folders."""
    place = folder.absolute()
    if _is_cell(folder):
        return place.parts[-3], UNKNOWN, place.parts[-2]
    return UNKNOWN, UNKNOWN, place.parent.name


def ranked(found: Iterable[ListedRun]) -> list[ListedRun]:
    """Runs by task, metric and data; within one, the best validation score first."""
    runs = list(found)
    better = {_group(one): one.better for one in runs if one.better}

    def place(one: ListedRun) -> tuple[Any, ...]:
        sign = -1 if better.get(_group(one)) == "higher" else 1
        score = float("inf") if one.validation is None else sign * one.validation
        return (*_group(one), one.state != FINISHED, score, str(one.directory))

    return sorted(runs, key=place)


def _group(one: ListedRun) -> tuple[str, str, str, str]:
    return one.task, one.metric, one.data, json.dumps(one.problem, sort_keys=True, default=str)


def _problem(recipe: Mapping[str, Any]) -> dict[str, Any]:
    task = {k: v for k, v in (_within(recipe, "task") or {}).items() if k not in ("use", "metric")}
    return {**task, **{key: recipe.get(key) for key in ("fraction", "labelled", "protocol")}}


def _differs(one: ListedRun, others: Sequence[ListedRun]) -> list[str]:
    """By what a group differs from others of the same task and metric: ``y=price``."""
    alike = [other.problem for other in others if (other.task, other.metric) == _group(one)[:2]]
    keys = [key for key in one.problem if any(p.get(key) != one.problem[key] for p in alike)]
    return [f"{key}={text.shown(one.problem[key])}" for key in keys]


def _print_group(group: Sequence[ListedRun], differs: Sequence[str]) -> None:
    better = next((one.better for one in group if one.better), "")
    head = [f"{group[0].task}: {group[0].metric}" + (f", {better} is better" if better else "")]
    head += differs
    samples = next((one.samples for one in group if one.samples), {})
    head += [", ".join(f"{count:,} {split}" for split, count in samples.items())] if samples else []
    output.stdout().print(Text("; ".join(head), style="bold"), soft_wrap=True)
    output.print_table((*COLUMNS, "folder"), [_row(one) for one in group], whole=("folder",))
    output.stdout().print()


def _row(one: ListedRun) -> tuple[Any, ...]:
    done, most = one.epochs
    state = one.state
    if state in (RUNNING, INTERRUPTED, FAILED) and most:
        state += f" ({done} of {text.plural(most, 'epoch')})"
    return (
        one.method,
        one.scale or text.MISSING,
        text.MISSING if one.seed is None else one.seed,
        text.number(one.validation),
        _scored(one),
        state,
        text.duration(one.seconds),
        one.directory,
    )


def _scored(one: ListedRun) -> str:
    if one.interval is None:
        return text.number(one.test)
    low, high = (text.number(end, 3) for end in one.interval)
    return f"{text.number(one.test)} ({low} to {high})"


def _print_ways_on(found: Sequence[ListedRun]) -> None:
    """Below the tables: why runs have no result, and what to type."""
    console = output.stdout()
    for one in found:
        if one.state in (FINISHED, RUNNING, NOT_BEGUN):
            continue
        why = f": {one.reason}" if one.reason else ""
        console.print(f"{one.state}: {one.directory}{why}", soft_wrap=True)
        if one.retry:
            console.print(f"  to go on: {one.retry}", soft_wrap=True)
    waiting = [one.directory for one in found if one.state == NOT_BEGUN]
    if waiting:
        console.print(
            f"{text.plural(len(waiting), 'run')} not begun, such as {waiting[0]}; "
            "the command of the comparison or the search begins them",
            soft_wrap=True,
        )
    if any(_is_trial(one.directory) for one in found):
        console.print(
            "Trials of a search have no test score: only the chosen model is tested.",
            soft_wrap=True,
        )


def _plain(one: ListedRun) -> dict[str, Any]:
    content = asdict(one)
    content["directory"] = str(one.directory)
    with suppress(OSError):
        content["directory"] = str(one.directory.absolute())
    content["interval"] = one.interval and dict(zip(("low", "high"), one.interval, strict=True))
    content["epochs"] = dict(zip(("done", "planned"), one.epochs, strict=True))
    return content
