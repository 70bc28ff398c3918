"""Shows a comparison: first the verdicts, then the numbers behind them, then the doubts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from xmodal import text
from xmodal.cli import output
from xmodal.files import as_json, claim, write_atomically

if TYPE_CHECKING:
    from xmodal.comparison.fairness import Flag
    from xmodal.comparison.grid import Cell
    from xmodal.comparison.queue import State
    from xmodal.comparison.table import ComparisonTable
    from xmodal.comparison.verdicts import PairResult, TaskResult

SHOWN = 3
WORDS = {"queued": "not run"}
JSON, REPORT, FIGURES = "comparison.json", "report.html", "figures"
KIND = "comparison"
"""The kind of folder that a report is written into; see ``xmodal.files.claim``."""


def write(folder: Path, table: ComparisonTable) -> list[Path]:
    """Write the page, tables and figures of a comparison; return the page, then the tables.

    The folder ``figures`` gets every figure as SVG and PDF. Raises UsageError if the folder holds
    anything else than the report of a comparison.
    """
    from xmodal.comparison.spreadsheets import write_tables
    from xmodal.report import write_compare_report

    claim(folder, KIND, JSON)
    page = write_compare_report(folder / REPORT, table, figures_folder=folder / FIGURES)
    write_atomically(folder / JSON, as_json(table.as_dict(), indent=1, default=str) + "\n")
    return [page, *write_tables(folder, table), folder / JSON]


def show(table: ComparisonTable, files: Sequence[Path]) -> None:
    """Print a comparison: results on stdout, everything else on stderr."""
    from xmodal.comparison.outlook import banners

    problems(table.standing)
    for line in banners(table.cells):
        output.stdout().print(f"{line}\n", soft_wrap=True, style="bold")
    _means(table)
    if table.comparison is not None:
        _verdicts(table)
        _doubts(table.comparison.flags)
    for task, reason in table.left_out.items():
        output.stderr().print(f"left out of the verdict: {task}: {reason}")
    for line in table.notes:
        output.stderr().print(f"note: {line}")
    if files:
        output.stderr().print(f"report: {files[0]}")


def _doubts(flags: Sequence[Flag]) -> None:
    """Print the first doubts of every kind; the page has all."""
    kinds: dict[str, list[Flag]] = {}
    for flag in flags:
        kinds.setdefault(flag.kind, []).append(flag)
    for alike in kinds.values():
        for flag in alike[:SHOWN]:
            output.stderr().print(f"doubt: {flag.text}")
        if len(alike) > SHOWN:
            more = len(alike) - SHOWN
            output.stderr().print(f"doubt: {more} more of this kind are in the report")


def problems(standing: Iterable[tuple[Cell, State]]) -> None:
    """Print why cells are not done: each reason once, with all methods and tasks it concerns.

    Of tasks whose data nobody has here, only what to type: ``xmodal data info`` has the rest.
    """
    standing = list(standing)
    able = {cell.task for cell, _ in standing if not cell.skipped}
    commands: dict[str, tuple[str, ...]] = {}
    reasons: dict[tuple[str, str, str], dict[str, None]] = {}
    for cell, state in standing:
        needed = tuple(map(_command, cell.absent)) if cell.task not in able else ()
        if needed and all(needed):
            commands.setdefault(cell.task, needed)
        elif state.word != "done":
            reasons.setdefault((state.word, state.detail, cell.task), {})[cell.method] = None
    _without_data(commands)
    tasks: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for (word, detail, task), concerned in reasons.items():
        tasks.setdefault((word, detail, tuple(concerned)), []).append(task)
    for (word, detail, methods), names in tasks.items():
        line = f"{WORDS.get(word, word)}: {', '.join(methods)} on {', '.join(names)}"
        line += "\n    " + detail.replace("\n", "\n    ") if detail else ""
        output.stderr().print(line)


def _command(text: str) -> str:
    """The command that gets the data that a text says are missing; empty if it is no such text."""
    if not text.startswith("no data for "):
        return ""
    found = re.findall(r"xmodal data (?:fetch|generate) .+", text)
    plain = [command for command in found if " --" not in command]
    return next(iter([*plain, *found]), "")


def _without_data(commands: Mapping[str, Sequence[str]]) -> None:
    """Print the tasks that have no data here, and the commands: one for all, where that works."""
    if not commands:
        return
    together: dict[str, list[str]] = {}
    single = []
    for command in dict.fromkeys(command for each in commands.values() for command in each):
        if " --" in command:
            single.append(command)
        else:
            begin, _, name = command.rpartition(" ")
            together.setdefault(begin, []).append(name)
    lines = [f"skipped: {', '.join(commands)}: no data here"]
    lines += [f"    {' '.join([begin, *names])}" for begin, names in together.items()]
    lines += [f"    {command}" for command in single]
    lines += ["    sizes, sources and stand-ins: xmodal data info TASK"]
    for line in lines:
        output.stderr().print(line, soft_wrap=True)


def _means(table: ComparisonTable) -> None:
    """Print mean, deviation and cost of every method on every task."""
    from xmodal.comparison.table import encoded

    for task in table.tasks:
        mine = [row for row in table.rows if row.task == task]
        if not mine:
            continue
        lines = []
        # Of the cheap answers that nobody named, one is to be beaten; the report has the others.
        strongest = table.strongest(task)
        left_out = {cell.method for cell in table.cells if cell.added} - {strongest}
        for method in table.methods:
            rows = [row for row in mine if row.method == method]
            if not rows or (strongest and method in left_out):
                continue
            counted = table.summary(method, task)
            value = "failed" if counted.mean is None else text.mean_sd(counted.mean, counted.sd)
            role = table.roles[method]
            lines.append(
                (
                    method if role == "method" else f"{method} ({role})",
                    value,
                    f"{counted.n}{f', {counted.failed} failed' if counted.failed else ''}",
                    text.number(encoded(rows)),
                    text.duration(fmean(row.seconds for row in rows)),
                )
            )
        first = mine[0]
        columns = ("method", f"test {first.metric}", "seeds", "encoded samples", "training")
        title = f"{task}: {first.better} is better; protocol {first.protocol}"
        selected = text.listed(sorted({row.selected_on for row in mine}))
        output.print_table(columns, lines, title=f"{title}, selected on {selected}")
        _published(table, task)
        output.stdout().print()


def _published(table: ComparisonTable, task: str) -> None:
    """Print what others report of the methods compared: one line per metric and protocol."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for number in table.published:
        if number.task == task and number.label in table.methods:
            where = (number.metric, number.protocol, number.work)
            alike.setdefault(where, []).append(f"{number.label} {number.printed}")
    for where, numbers in alike.items():
        said = "; ".join(filter(None, where))
        output.stdout().print(
            f"published, not measured here: {', '.join(numbers)} ({said})", soft_wrap=True
        )


def _verdicts(table: ComparisonTable) -> None:
    """Print one line per pair; without a verdict over tasks, print the single tasks."""
    from xmodal.comparison.criteria import EFFECT, Rule

    assert table.comparison is not None
    pairs = table.comparison.pairs
    if not pairs:
        return
    reasons = {pair.verdict.reasons for pair in pairs}
    if all(pair.verdict.word == "refused" for pair in pairs) and len(reasons) == 1:
        output.stdout().print(f"no verdict: {'; '.join(reasons.pop())}")
        _single_tasks(pairs)
        return
    lines = [
        (
            pair.a,
            pair.verdict.word,
            pair.b,
            *_numbers(pair),
            f"{pair.wins}/{pair.ties}/{pair.losses}",
        )
        for pair in pairs
    ]
    columns = ("", "verdict", "than", "error", "geometric", "median", "P(better)", "p Holm")
    title = f"verdicts: change of the error ({EFFECT}) with 95 % interval"
    output.print_table(
        (*columns, f"wins/ties (±{100 * Rule().rope:g} %)/losses"), lines, title=title
    )
    output.stdout().print()
    _remarks(pairs)
    if any(pair.verdict.word == "refused" for pair in pairs):
        _single_tasks([pair for pair in pairs if pair.verdict.word == "refused"])


def _remarks(pairs: Sequence[PairResult]) -> None:
    """Print what settled pairs are about and what would settle the others: each remark once."""
    reasons: dict[str, list[str]] = {}
    for pair in pairs:
        reasons.setdefault("; ".join(pair.remedies), []).append(f"{pair.a} - {pair.b}")
    for reason, names in reasons.items():
        who = f"all {len(pairs)} pairs" if len(names) == len(pairs) > 1 else ", ".join(names)
        output.stderr().print(f"{who}: {reason}")


def _numbers(pair: PairResult) -> tuple[str, ...]:
    if pair.numbers is None:
        return ("",) * 5
    effect, numbers = pair.numbers.effect, pair.numbers
    return (
        f"{text.percent(effect.value)} ({text.percents(effect.low, effect.high)})",
        text.percent(numbers.geometric),
        text.percent(numbers.median),
        f"{numbers.probability.value:.2f}",
        text.probability(numbers.p_holm),
    )


def _single_tasks(pairs: Sequence[PairResult]) -> None:
    """Print the paired differences task by task, with their intervals over seeds."""
    lines = []
    for pair in pairs:
        for task in pair.tasks:
            change = "" if task.mean is None else text.percent(task.mean)
            ends = task.interval and text.percents(task.interval.low, task.interval.high)
            lines.append((pair.a, pair.b, task.task, change, ends or "", task.n, _note(task)))
    if lines:
        columns = ("", "against", "task", "error", "interval over seeds", "seeds", "")
        output.print_table(columns, lines, title="paired, task by task")
        output.stdout().print()


def _note(task: TaskResult) -> str:
    if any(task.failed):
        return f"failed runs: {task.failed[0]}, {task.failed[1]}"
    return "within the spread over seeds" if task.within_spread else ""
