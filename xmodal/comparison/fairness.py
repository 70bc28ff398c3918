"""Finds what may make a comparison unfair.

A flag names its kind, the methods and tasks it is about, and its numbers; reports draw them. Two
kinds mean that the runs cannot be compared at all, and refuse every verdict of the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

from xmodal.comparison.error_table import ErrorTable
from xmodal.comparison.statistics import log_ratios, task_means

Kind = Literal[
    "mixed-conditions",
    "mixed-metrics",
    "worse-than-trivial",
    "uneven-compute",
    "edge-of-grid",
    "within-spread",
    "selected-on-test",
    "missing-runs",
    "failed-runs",
    "floored-errors",
]
REFUSING: tuple[Kind, ...] = ("mixed-conditions", "mixed-metrics")
COMPUTE_TOLERANCE = 1.1
"""Largest ratio of encoder passes that still counts as the same compute."""


@dataclass(frozen=True)
class Conditions:
    """How the runs of one method on one task were made; one record a run or one a cell.

    ``encoded_samples``: samples through the encoder; ``searched``: learning rates that were tried.
    None means unknown.
    """

    method: str
    task: str
    protocol: str = ""
    scale: str = ""
    fraction: float = 1.0
    labelled: float = 1.0
    metric: str = ""
    selected_on_test: bool = False
    selected_by: str = "metric"
    encoded_samples: float | None = None
    learning_rate: float | None = None
    searched: tuple[float, ...] = ()


@dataclass(frozen=True)
class Flag:
    """One doubt about the comparison. ``numbers`` has one entry a task or value it rests on."""

    kind: Kind
    text: str
    methods: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def refuses(self) -> bool:
        """Whether no verdict may be given."""
        return self.kind in REFUSING


def flags(
    scores: ErrorTable,
    conditions: Iterable[Conditions] = (),
    *,
    trivial: Collection[str] = (),
    strongest: Mapping[str, str] | None = None,
    controls: Collection[str] = (),
    rivals: Collection[str] = (),
    log_rope: float = 0.0,
) -> list[Flag]:
    """Every doubt about these scores.

    ``trivial``: the cheap answers, which need not be there on every task. ``strongest`` names, by
    task, the one that every other method has to beat; where there is one alone, it is that.
    ``controls``: the methods that were trained longer only to have as many encoder passes as a
    dearer one. ``rivals``: the methods whose cost is not counted in passes of the encoder.
    ``log_rope``: differences of log-errors that are ties.
    """
    known = [c for c in conditions if c.method in scores.methods and c.task in scores.tasks]
    found = [*_mixed(known), *_selected_on_test(known)]
    found += _worse_than_trivial(scores, trivial, strongest or {}, log_rope)
    apart = {*trivial, *rivals}
    found += [*_uneven_compute(scores, known, controls, apart), *_edge_of_grid(known)]
    return [*found, *_incomplete(scores, trivial), *_floored(scores)]


def refusal(found: Iterable[Flag]) -> str | None:
    """Why no verdict may be given, or None."""
    texts = [flag.text for flag in found if flag.refuses]
    return "; ".join(texts) or None


def within_spread(a: str, b: str, tasks: Sequence[str]) -> Flag | None:
    """The flag for tasks on which two methods differ by less than one of them varies over seeds."""
    if not tasks:
        return None
    text = f"{a} and {b} differ by less than the spread over seeds on {', '.join(tasks)}"
    return Flag("within-spread", text, (a, b), tuple(tasks))


# --- conditions --------------------------------------------------------------------------------

Property = Callable[[Conditions], str]
SAME_EVERYWHERE: dict[str, Property] = {
    "protocols": lambda c: c.protocol,
    "scales": lambda c: c.scale,
}
SAME_ON_A_TASK: dict[str, Property] = {
    "fractions of the training data": lambda c: f"{c.fraction:g}",
    "fractions of labels": lambda c: f"{c.labelled:g}",
    "choices of the epoch": lambda c: f"by {c.selected_by}",
}
"""These may differ between tasks (a task may use a share of its data), not between methods."""


def _mixed(known: list[Conditions]) -> list[Flag]:
    found = []
    for what, value in SAME_EVERYWHERE.items():
        if len(values := _values(known, value)) > 1:
            text = f"different {what} in one table: {', '.join(values)}"
            found.append(Flag("mixed-conditions", text))
    for task in sorted({c.task for c in known}):
        mine = [c for c in known if c.task == task]
        for what, value in SAME_ON_A_TASK.items():
            if len(values := _values(mine, value)) > 1:
                text = f"different {what} on task {task}: {', '.join(values)}"
                found.append(Flag("mixed-conditions", text, tasks=(task,)))
        if len(metrics := _values(mine, lambda c: c.metric)) > 1:
            text = f"different metrics on task {task}: {', '.join(metrics)}"
            found.append(Flag("mixed-metrics", text, tasks=(task,)))
    return found


def _values(known: list[Conditions], value: Property) -> list[str]:
    return sorted({value(c) or "not known" for c in known})


def _selected_on_test(known: list[Conditions]) -> list[Flag]:
    chosen = [c for c in known if c.selected_on_test]
    if not chosen:
        return []
    methods = tuple(dict.fromkeys(c.method for c in chosen))
    tasks = tuple(sorted({c.task for c in chosen}))
    text = f"the epoch was chosen on the test data: errors of {', '.join(methods)} are too low"
    return [Flag("selected-on-test", text, methods, tasks)]


def _edge_of_grid(known: list[Conditions]) -> list[Flag]:
    found: dict[tuple[str, str], Flag] = {}
    for c in known:
        if c.learning_rate is None or len(set(c.searched)) < 2:
            continue
        lowest, highest = min(c.searched), max(c.searched)
        for end, name in ((lowest, "smallest"), (highest, "largest")):
            if math.isclose(c.learning_rate, end, rel_tol=1e-9):
                text = (
                    f"{c.method} on {c.task}: the best learning rate {end:g} is the {name} of "
                    f"{len(set(c.searched))} that were tried; a better one may lie beyond"
                )
                numbers = {"learning_rate": end, "smallest": lowest, "largest": highest}
                key = (c.method, c.task)
                found[key] = Flag("edge-of-grid", text, (c.method,), (c.task,), numbers)
    return list(found.values())


def _uneven_compute(
    scores: ErrorTable,
    known: list[Conditions],
    controls: Collection[str],
    apart: Collection[str],
) -> list[Flag]:
    """Pairs of contenders alone: controls differ in cost on purpose, those ``apart`` in kind."""
    passes: dict[tuple[str, str], list[float]] = {}
    for c in known:
        if c.encoded_samples:
            passes.setdefault((c.method, c.task), []).append(c.encoded_samples)
    mean = {key: sum(values) / len(values) for key, values in passes.items()}
    found = []
    contenders = [m for m in scores.methods if m not in apart and m not in controls]
    for a, b in combinations(contenders, 2):
        ratios = {
            task: mean[a, task] / mean[b, task]
            for task in scores.tasks
            if (a, task) in mean and (b, task) in mean
        }
        uneven = {
            task: ratio
            for task, ratio in ratios.items()
            if not _same(ratio)
            and not any(
                _same(mean[control, task] / max(mean[a, task], mean[b, task]))
                for control in controls
                if (control, task) in mean
            )
        }
        if uneven:
            text = (
                f"{a} and {b} differ in encoder passes by {_percent(uneven.values())} on "
                f"{', '.join(uneven)}, and no control with equal compute is in the table"
            )
            found.append(Flag("uneven-compute", text, (a, b), tuple(uneven), uneven))
    return found


def _same(ratio: float) -> bool:
    return max(ratio, 1 / ratio) <= COMPUTE_TOLERANCE * (1 + 1e-9)


def _percent(ratios: Iterable[float]) -> str:
    largest = max(max(ratio, 1 / ratio) for ratio in ratios)
    return f"up to {100 * (largest - 1):.0f} %"


# --- errors ------------------------------------------------------------------------------------


def _worse_than_trivial(
    scores: ErrorTable, trivial: Collection[str], strongest: Mapping[str, str], log_rope: float
) -> list[Flag]:
    """Of every method that is no cheap answer itself: where it loses to the strongest of them."""
    alone = next(iter(trivial)) if len(trivial) == 1 else None
    to_beat = {task: strongest.get(task, alone) for task in scores.tasks}
    found = []
    for method in (m for m in scores.methods if m not in trivial):
        worse: dict[str, dict[str, float]] = {}
        for t, (task, answer) in enumerate(to_beat.items()):
            if answer not in scores.methods:
                continue
            d_TS = log_ratios(scores.of_method(method), scores.of_method(answer))[t : t + 1]
            if all(map(math.isnan, d_TS[0])):
                continue
            (mean,) = task_means(d_TS)
            if log_rope < mean < math.inf:  # failed runs have a flag of their own
                worse.setdefault(answer, {})[task] = float(math.exp(mean))
        if worse:
            where = [f"than {answer} on {', '.join(tasks)}" for answer, tasks in worse.items()]
            text = f"{method} is worse {' and '.join(where)}"
            numbers = {task: n for tasks in worse.values() for task, n in tasks.items()}
            about = (method, *worse)
            found.append(Flag("worse-than-trivial", text, about, tuple(numbers), numbers))
    return found


def _incomplete(scores: ErrorTable, trivial: Collection[str]) -> list[Flag]:
    """Cells without all seeds of the table, and cells with failed runs.

    A cheap answer that is not there at all was not meant for that kind of data.
    """
    found = []
    for method in scores.methods:
        missing, failed = {}, {}
        for task, errors_S in zip(scores.tasks, scores.of_method(method), strict=True):
            if method in trivial and all(map(math.isnan, errors_S)):
                continue
            missing[task] = float(sum(map(math.isnan, errors_S)))
            failed[task] = float(sum(map(math.isinf, errors_S)))
        kinds: tuple[tuple[Kind, dict[str, float], str], ...] = (
            ("missing-runs", missing, "was not run with every seed"),
            ("failed-runs", failed, "failed"),
        )
        for kind, count, what in kinds:
            where = {task: number for task, number in count.items() if number}
            if where:
                text = f"{method} {what} on {', '.join(where)}"
                found.append(Flag(kind, text, (method,), tuple(where), where))
    return found


def _floored(scores: ErrorTable) -> list[Flag]:
    if not scores.floored:
        return []
    counts = {task: float(count) for task, count in scores.floored}
    text = f"errors below half a step of the metric count as half a step on {', '.join(counts)}"
    return [Flag("floored-errors", text, tasks=tuple(counts), numbers=counts)]
