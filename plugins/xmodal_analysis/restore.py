"""Rebuilds a finished run in memory, with its schedule of replaced tokens replaced by a dial.

The run's own scheduler class is subclassed, so weights and settings fit, but its answer is whatever
the dial says. That works for every mixer that asks a scheduler, without knowing the mixer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor
from torch.utils.data import Dataset

from xmodal import plugins, runs
from xmodal.batch import Progress, Tokens
from xmodal.data.store import Store
from xmodal.engine import checkpoint
from xmodal.engine.build import Builder
from xmodal.engine.device import or_cpu
from xmodal.engine.plan import Plan, compose_plan
from xmodal.engine.session import RunSession
from xmodal.errors import UsageError
from xmodal.inference.model import best_weights
from xmodal.interfaces import Scheduler, Target
from xmodal.settings import Use


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


class DialBuilder(Builder):
    """Builds a run whose scheduler, where it has one, is a dial."""

    dial: Dial | None = None

    def make(self, use: Use[Any], name: str, output: Target | None = None, **parts: Any) -> Any:
        """Construct one component, the scheduler with a dial."""
        if name != "scheduler":
            return super().make(use, name, output, **parts)
        part = super().make(
            Use(use.name, dialled(use.component), use.config), name, output, **parts
        )
        self.dial = part
        return part

    def proxy(self, session: RunSession) -> Dataset[Any] | None:
        """The recipe's source, also where training did not read it; None where there is none."""
        if session.source is not None or self.recipe.source is None:
            return session.source
        modalities = {self.facts.backbone.modality, getattr(self.facts.source, "modality", "any")}
        if len(modalities) > 1 and "any" not in modalities:
            return None
        return self._source(session.model.backbone)


@dataclass
class Restored:
    """A run in memory. ``start`` are its weights before training; the session holds the best."""

    run: runs.Run
    plan: Plan
    session: RunSession
    store: Store
    start: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    dial: Dial | None
    source: Dataset[Any] | None
    at: tuple[int, int]

    def use(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights (``start`` or ``best``) into the model."""
        checkpoint.load_exactly(self.session.model, weights, str(self.run.path))

    def progress(self) -> Progress:
        """The moment of the best epoch, at which mixers and selectors are asked."""
        stage, epoch = self.at
        return Progress(stage, epoch, max(1, self.session.stages[stage].epochs), 0, 1)


def finished(run: runs.Run) -> runs.Run:
    """``run``, if it is done. Raises UsageError with what to do about it."""
    if run.state != "done":
        raise UsageError(
            f"{run.path} is not finished (state: {run.state}); "
            f"continue it with: xmodal resume {run.path}"
        )
    return run


def restore(run: runs.Run, plugin_files: tuple[str, ...] = ()) -> Restored:
    """Rebuild a finished run, in evaluation mode. Raises UsageError or DataError."""
    result = finished(run).read("result.json")
    best, where = best_weights(run)
    registry, store = plugins.registry(plugin_files), Store()
    made = compose_plan([str(run.path / "resolved.yaml")], registry, store, ["trackers=[]"])
    # It may have been trained where there was another device.
    device = or_cpu(made.recipe.device, warnings.warn)
    made = replace(made, recipe=made.recipe.model_copy(update={"device": device}))
    builder = DialBuilder(made, store, lambda line: None)
    session = builder.session(builder.data())
    session.model.eval()
    start = {name: value.clone() for name, value in session.model.state_dict().items()}
    checkpoint.load_exactly(session.model, best, where)
    at = result["validation"]["at"] or [len(session.stages) - 1, 0]
    source = builder.proxy(session)
    return Restored(
        run, made, session, store, start, best, builder.dial, source, (int(at[0]), int(at[1]))
    )
