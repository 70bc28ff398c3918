"""Rebuilds runs in memory, with their schedule of replaced tokens replaced by a dial.

The run's own scheduler class is subclassed, so weights and settings fit, but its answer is whatever
the dial says. That works for every mixer that asks a scheduler, without knowing the mixer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from xmodal.batch import Progress, Tokens
from xmodal.interfaces import Scheduler
from xmodal.workbench import Opened, OpenedRun, Plan, Run, open_plan, open_run


class Dial:
    """Goes before a scheduler class: k is what was set, cut to what there is.

    ``most`` is the largest k the mixer has offered so far, -1 before its first question.
    """

    wanted: int = 0
    most: int = -1

    def __call__(self, progress: Progress, num_tokens: int) -> int:
        """The k that was set, at most ``num_tokens``."""
        self.most = max(self.most, num_tokens)
        return min(self.wanted, num_tokens)

    def observe(
        self, mix: Callable[[int], Tokens], target: Tokens, source: Tokens, progress: Progress
    ) -> None:
        """Look at nothing."""
        return


def dialled(scheduler: type[Scheduler]) -> type[Scheduler]:
    """The same scheduler, state and settings included, that answers what its dial says."""
    return cast("type[Scheduler]", type(f"Dialled{scheduler.__name__}", (Dial, scheduler), {}))


def dial(opened: Opened) -> Dial | None:
    """The dial of a run that was opened here; None where its mixer asks no scheduler."""
    return opened.parts.get("scheduler")


def restore(run: Run, plugin_files: tuple[str, ...] = ()) -> OpenedRun:
    """A finished run, in evaluation mode. Raises UsageError or DataError."""
    return open_run(run, plugin_files, {"scheduler": dialled})


def untrained(plan: Plan) -> Opened:
    """A plan as it is before training, in evaluation mode. Raises DataError."""
    opened = open_plan(plan, {"scheduler": dialled})
    opened.session.model.eval()
    return opened
