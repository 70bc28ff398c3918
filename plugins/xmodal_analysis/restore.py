"""Rebuilds runs in memory, with a dial that sets the number of replaced tokens.

The rebuilt run uses a subclass of its own scheduler class, so weights and settings fit, but the
dial decides its answer. This works for every mixer that asks a scheduler, without knowing the
mixer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from xmodal.batch import Progress, Tokens
from xmodal.interfaces import Scheduler
from xmodal.workbench import Opened, OpenedRun, Plan, Run, open_plan, open_run


class Dial:
    """A mixin before a scheduler class: answers with the k that was set, cut to the tokens at hand.

    ``most`` is the largest number of tokens that the mixer has offered so far; -1 before it asks.
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
        """Ignore the observation."""
        return


def dialled(scheduler: type[Scheduler]) -> type[Scheduler]:
    """The same scheduler, with its state and settings, but with answers set by a dial."""
    return cast("type[Scheduler]", type(f"Dialled{scheduler.__name__}", (Dial, scheduler), {}))


def dial(opened: Opened) -> Dial | None:
    """The dial of a run opened by this module; None if its mixer asks no scheduler."""
    return opened.parts.get("scheduler")


def restore(run: Run, plugin_files: tuple[str, ...] = ()) -> OpenedRun:
    """A finished run, in evaluation mode. Raises UsageError or DataError."""
    return open_run(run, plugin_files, {"scheduler": dialled})


def untrained(plan: Plan) -> Opened:
    """The model of a plan before training, in evaluation mode. Raises DataError."""
    opened = open_plan(plan, {"scheduler": dialled})
    opened.session.model.eval()
    return opened
