"""The errors that a comparison works on: methods x tasks x seeds, lower is better.

A seed stands for one split, one order of the data and one initial head, the same for all methods;
so seed s of one method is paired with seed s of every other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from xmodal.errors import UsageError

Floats = NDArray[np.float64]
DIRECTIONS = ("lower", "higher")


@dataclass(frozen=True, eq=False)
class ErrorTable:
    """Errors of methods on tasks, one a seed.

    ``errors_MTS``: positive; NaN where there was no run, infinity where the run failed. Tasks and
    seeds are sorted, so that nothing computed from them depends on the order of the runs.
    ``floored`` tells, per task, how many errors were raised to half a step of the metric.
    ``families`` tells, per task, which kind of data it is; tasks of which nothing was stated are
    not in it, and count as one family.
    """

    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    errors_MTS: Floats
    floored: tuple[tuple[str, int], ...] = ()
    families: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        errors: Mapping[tuple[str, str], Mapping[int, float]],
        *,
        steps: Mapping[str, float] | None = None,
        better: Mapping[str, str] | None = None,
        families: Mapping[str, str] | None = None,
    ) -> ErrorTable:
        """Scores from ``errors[method, task][seed]``; cells and seeds may be missing.

        ``steps``: per task the smallest step of its metric (one sample of n wrong: 1 / n). Errors
        below half a step count as half a step, because a ratio needs something positive and a
        finer difference cannot be seen. ``better``: per task the direction of its metric, "lower"
        where nothing is said. ``families``: per task the kind of its data (image, series, table,
        ...); upper and lower case are the same. Raises UsageError for an error of 0 without a
        step, for an error that is negative or not a number, and for metrics of which higher is
        better.
        """
        tasks = tuple(sorted({task for _, task in errors}))
        _directions(tasks, better or {})
        methods = tuple(dict.fromkeys(method for method, _ in errors))
        seeds = tuple(sorted({seed for cell in errors.values() for seed in cell}))
        errors_MTS = np.full((len(methods), len(tasks), len(seeds)), np.nan)
        for (method, task), cell in errors.items():
            for seed, error in cell.items():
                _error(error, f"{method} on {task}, seed {seed}")
                at = methods.index(method), tasks.index(task), seeds.index(seed)
                errors_MTS[at] = error
        raised_MTS, floored = _raise_to_floor(errors_MTS, tasks, steps or {})
        return cls(methods, tasks, seeds, raised_MTS, floored, _families(tasks, families or {}))

    def only(self, methods: Sequence[str]) -> ErrorTable:
        """The scores of some of the methods, on all tasks."""
        errors_MTS = self.errors_MTS[[self.methods.index(method) for method in methods]]
        return replace(self, methods=tuple(methods), errors_MTS=errors_MTS)

    def of_method(self, method: str) -> Floats:
        """Errors [T, S] of one method."""
        return np.asarray(self.errors_MTS[self.methods.index(method)])


def _families(tasks: tuple[str, ...], families: Mapping[str, str]) -> dict[str, str]:
    named = {task: families.get(task, "").strip().casefold() for task in tasks}
    return {task: family for task, family in named.items() if family}


def _directions(tasks: tuple[str, ...], better: Mapping[str, str]) -> None:
    for task in tasks:
        direction = better.get(task, "lower")
        if direction not in DIRECTIONS:
            raise UsageError(f"task {task}: better is 'lower' or 'higher', not {direction!r}")
        if direction == "higher":
            raise UsageError(
                f"task {task}: higher is better for its metric, and a ratio of two such scores "
                "says little near their upper end; give errors, for example 1 - accuracy"
            )


def _error(error: float, where: str) -> None:
    if math.isnan(error):
        raise UsageError(f"{where}: the error is not a number; leave out a run that was not made")
    if error < 0:
        raise UsageError(f"{where}: the error is {error:g}; errors are positive, lower is better")


def _raise_to_floor(
    errors_MTS: Floats, tasks: tuple[str, ...], steps: Mapping[str, float]
) -> tuple[Floats, tuple[tuple[str, int], ...]]:
    """Raise errors below half a step to half a step; returns how many there were on which task."""
    floored = []
    for t, task in enumerate(tasks):
        step = steps.get(task, 0.0)
        if not (math.isfinite(step) and step >= 0):
            raise UsageError(f"task {task}: the step of its metric is {step:g}, not positive")
        low_MS = errors_MTS[:, t] < step / 2 if step else errors_MTS[:, t] == 0
        if low_MS.any() and not step:
            raise UsageError(
                f"task {task}: an error is 0, and no ratio to it exists; state the smallest step "
                "of the metric, for example 1 / (test samples) for the share of wrong answers"
            )
        errors_MTS[:, t][low_MS] = step / 2
        if low_MS.any():
            floored.append((task, int(low_MS.sum())))
    errors_MTS.setflags(write=False)
    return errors_MTS, tuple(floored)
