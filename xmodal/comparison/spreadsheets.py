"""A comparison as CSV for a spreadsheet and as LaTeX (booktabs) for a paper."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from xmodal.comparison.statistics import CellSummary
from xmodal.comparison.table import ComparisonTable
from xmodal.comparison.verdicts import PairResult
from xmodal.files import write_atomically
from xmodal.text import spreadsheet, visible

CELLS, PAIRS, LATEX = "cells.csv", "pairs.csv", "table.tex"


def write_tables(folder: Path, table: ComparisonTable) -> list[Path]:
    """Write every cell, every pair and the table of a paper; returns the files."""
    contents = {CELLS: cells_csv(table), PAIRS: pairs_csv(table), LATEX: latex(table)}
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]


def cells_csv(table: ComparisonTable) -> str:
    """One line a cell, including those that are not done; numbers in full."""
    done = {(row.method, row.task, row.seed): asdict(row) for row in table.rows}
    lines = []
    for cell, state in table.standing:
        key = {"method": cell.method, "task": cell.task, "seed": cell.seed}
        found = done.get((cell.method, cell.task, cell.seed), {})
        lines.append({**key, "state": state.word, **found, "detail": state.detail})
    return _csv(pd.DataFrame(lines))


def pairs_csv(table: ComparisonTable) -> str:
    """One line a pair: the word, the numbers it rests on, the reasons.

    ``effect`` (with ``beyond``) is the mean relative difference, stated as a log-ratio;
    ``geometric`` and ``median`` are the mean and the median log-ratio.
    """
    pairs = table.comparison.pairs if table.comparison is not None else ()
    columns = list(_pair(pairs[0])) if pairs else ["a", "b", "verdict"]
    return _csv(pd.DataFrame([_pair(pair) for pair in pairs], columns=columns))


def _csv(frame: pd.DataFrame) -> str:
    cells = frame.map(lambda cell: spreadsheet(cell) if isinstance(cell, str) else cell)
    return str(cells.to_csv(index=False))


def _pair(pair: PairResult) -> dict[str, object]:
    numbers = pair.numbers
    further = None if numbers is None else numbers.beyond
    return {
        "a": pair.a,
        "b": pair.b,
        "verdict": pair.verdict.word,
        "tasks": len(pair.counted),
        "families": len(set(pair.families)),
        "wins": pair.wins,
        "ties": pair.ties,
        "losses": pair.losses,
        "effect": None if numbers is None else numbers.effect.value,
        "effect_low": None if numbers is None else numbers.effect.low,
        "effect_high": None if numbers is None else numbers.effect.high,
        "geometric": None if numbers is None else numbers.geometric,
        "median": None if numbers is None else numbers.median,
        "beyond_low": None if further is None else further.low,
        "beyond_high": None if further is None else further.high,
        "probability": None if numbers is None else numbers.probability.value,
        "p": None if numbers is None else numbers.p,
        "p_holm": None if numbers is None else numbers.p_holm,
        "p_equivalent_holm": None if numbers is None else numbers.p_equivalent_holm,
        "reasons": "; ".join(pair.verdict.reasons),
    }


def latex(table: ComparisonTable) -> str:
    """Mean and standard deviation of every method on every task; the best mean is bold.

    Needs the package booktabs. Rivals, controls and trivial answers stand below a rule each.
    """
    tasks = [task for task in table.tasks if any(row.task == task for row in table.rows)]
    if not tasks:
        return "% nothing is done yet\n"
    order = table.methods
    found = {(m, task): table.summary(m, task) for m in order for task in tasks}
    best = {task: table.best(task) for task in tasks}
    most = max(one.n for one in found.values())
    frame = pd.DataFrame(
        [[_entry(found[m, task], m in best[task], most) for task in tasks] for m in order],
        index=order,
        columns=[f"{task} ({_metric(table, task)})" for task in tasks],
    )
    styled = frame.style.format_index(escape="latex").format_index(escape="latex", axis=1)
    text = str(
        styled.to_latex(
            hrules=True,
            column_format="l" + "r" * len(tasks),
            caption=_caption(table, most),
            label="tab:comparison",
            position_float="centering",
        )
    )
    lines = text.split("\n")
    first = lines.index("\\midrule") + 1
    for row in range(len(order) - 1, 0, -1):
        if table.roles[order[row]] != table.roles[order[row - 1]]:
            lines.insert(first + row, "\\midrule")
    text = "\n".join(lines)
    return f"% {visible(table.command, line_breaks=False)}\n{text}"


def _entry(found: CellSummary, best: bool, most: int) -> str:
    """Mean and deviation; the number of runs, if below the ``most`` that the caption gives."""
    failed = f"{found.failed} failed" if found.failed else ""
    if found.mean is None:
        return failed or "--"
    spread = "" if found.sd is None else f" \\pm {_digits(found.sd)}"
    value = _digits(found.mean)
    if best:
        value = f"\\mathbf{{{value}}}"
    few = f"$n = {found.n}$" if found.n < most else ""
    remarks = ", ".join(remark for remark in (few, failed) if remark)
    return f"${value}{spread}$ ({remarks})" if remarks else f"${value}{spread}$"


def _metric(table: ComparisonTable, task: str) -> str:
    return next(row.metric for row in table.rows if row.task == task)


def _caption(table: ComparisonTable, seeds: int) -> str:
    """What the numbers are and how they were made, in full, because tables get copied."""
    score = "error" if {row.better for row in table.rows} == {"lower"} else "score"
    protocols = sorted({row.protocol for row in table.rows})
    selected = sorted({row.selected_on for row in table.rows})
    scales = sorted({row.scale for row in table.rows if row.scale})
    fractions = sorted({row.fraction for row in table.rows})
    parts = [
        f"Test {score}, mean $\\pm$ standard deviation over {seeds} seed{'s' * (seeds != 1)}",
        f"{' and '.join(protocols)} protocol, epoch selected on {' and '.join(selected)}",
    ]
    if scales:
        parts.append(f"scale {', '.join(scales)}".replace("_", "\\_"))
    if fractions != [1.0]:
        parts.append(f"{', '.join(f'{100 * f:g}' for f in fractions)} \\% of the training data")
    return "; ".join(parts) + "."


def _digits(value: float) -> str:
    """Three significant digits with trailing zeros; an exponent only where it cannot be avoided."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    text = f"{value:#.3g}".rstrip(".")
    if "e" in text:
        mantissa, exponent = text.split("e")
        return f"{mantissa} \\cdot 10^{{{int(exponent)}}}"
    return text
