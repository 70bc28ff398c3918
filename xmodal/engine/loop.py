"""The training loop: a generator of records over stages, epochs and steps.

It computes and yields; the caller logs, saves and stops. ``Snapshot`` holds everything a run needs
to continue bit for bit, and is consistent at every yield.

    for stage:      choose what trains, make optimizer and schedule
        for epoch:
            for step:     for micro-batch: loss, backward;  check, clip, update  -> StepRecord
            validate, remember the best                                          -> EpochRecord
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from xmodal import randomness
from xmodal.batch import Progress, Tokens
from xmodal.engine import distributed, guard
from xmodal.engine.checkpoint import load_exactly
from xmodal.engine.evaluate import evaluate, look_at_tokens
from xmodal.engine.session import RunSession
from xmodal.interfaces import Stage


@dataclass
class Snapshot:
    """How far a run has come; plain values only. Weights are read from the session when saving."""

    stage: int = 0
    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best_metric: float | None = None
    best_at: tuple[int, int] | None = None
    best_steps: int = 0
    encoded: int = 0
    seconds: float = 0.0
    probes: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Tally:
    """What one process found in a step; sums over its micro-batches."""

    loss: float = 0.0
    log: dict[str, float] = field(default_factory=dict)
    micros: float = 0.0
    encoded: int = 0

    def add(self, loss: float, log: Mapping[str, float], part: float) -> None:
        """Count a micro-batch, or the ``part`` of one that this process had."""
        self.loss += loss
        self.micros += part
        for name, number in log.items():
            self.log[name] = self.log.get(name, 0.0) + part * number


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step."""

    progress: Progress
    loss: float
    log: Mapping[str, float]
    lr: float
    gradient_norm: float
    seconds: float


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: means over its steps, and the validation score (None where the stage has none).

    ``best``: the best so far.
    """

    progress: Progress
    train: Mapping[str, float]
    metric: float | None
    loss: float | None
    best: bool
    seconds: float
    trainable: int


class Training:
    """The loop's state: session, snapshot, and the optimizer and schedule of the current stage."""

    def __init__(self, session: RunSession, restored: Mapping[str, Any] | None = None) -> None:
        self.session = session
        self.snapshot = Snapshot()
        self.optimizer: torch.optim.Optimizer | None = None
        self.schedule: torch.optim.lr_scheduler.LRScheduler | None = None
        self.restored = restored
        self.begin_seconds = 0.0
        self._encoded = 0
        if restored is not None:
            self.snapshot = Snapshot(**restored["snapshot"])
            load_exactly(session.model, restored["model"], "the checkpoint")

    def state(self) -> dict[str, Any]:
        """Everything needed to continue, for ``checkpoint.save``."""
        session = self.session
        return {
            "snapshot": dict(vars(self.snapshot)),
            "model": session.model.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "generators": {name: g.get_state() for name, g in session.generators.items()},
            "global": randomness.global_state(),
        }

    def run(self) -> Iterator[StepRecord | EpochRecord]:
        """Train. Yields after every optimizer step and every epoch."""
        counter = self.session.model.backbone.register_forward_pre_hook(self._count)
        try:
            yield from self._stages()
        finally:
            counter.remove()

    def _count(self, module: nn.Module, inputs: tuple[Tokens]) -> None:
        """Count the samples that go through the encoder, of which a method's cost is made."""
        self._encoded += len(inputs[0].x_BND)

    def _stages(self) -> Iterator[StepRecord | EpochRecord]:
        snapshot = self.snapshot
        for stage in self.session.stages[: snapshot.stage]:
            if stage.optimizer([]) is None:
                # A closed-form stage keeps what it fitted outside the weights; fit it again.
                stage.begin(self.session)
        for index in range(snapshot.stage, len(self.session.stages)):
            stage = self.session.stages[index]
            named = self._enter(index, stage)
            while snapshot.epoch < stage.epochs:
                yield from self._epoch(index, stage, named)
            snapshot.stage, snapshot.epoch = index + 1, 0

    def _enter(self, index: int, stage: Stage) -> list[tuple[str, nn.Parameter]]:
        session = self.session
        named = session.model.select_trainable(stage.train)
        self.optimizer = stage.optimizer(named)
        steps = stage.steps_per_epoch(session)
        self.schedule = None if self.optimizer is None else stage.schedule(self.optimizer, steps)
        session.share_randomness()
        started = time.perf_counter()
        self._encoded = 0
        stage.begin(session)
        self.begin_seconds = time.perf_counter() - started
        if not (self.snapshot.epoch or self.snapshot.step):
            # A stage that is entered again on resume has been counted.
            self.snapshot.encoded += self._encoded
        if self.restored is not None:
            self._restore(self.restored)
            self.restored = None
        return named

    def _restore(self, state: Mapping[str, Any]) -> None:
        # A checkpoint at the end of a stage holds that stage's optimizer; the next makes its own.
        if self.snapshot.epoch or self.snapshot.step:
            if self.optimizer is not None and state["optimizer"] is not None:
                self.optimizer.load_state_dict(state["optimizer"])
            if self.schedule is not None and state["schedule"] is not None:
                self.schedule.load_state_dict(state["schedule"])
        for name, generator in self.session.generators.items():
            generator.set_state(state["generators"][name])
        randomness.set_global_state(state["global"])

    def _epoch(
        self, index: int, stage: Stage, named: list[tuple[str, nn.Parameter]]
    ) -> Iterator[StepRecord | EpochRecord]:
        session, snapshot = self.session, self.snapshot
        steps = stage.steps_per_epoch(session)
        at = Progress(index, snapshot.epoch, stage.epochs, snapshot.step, steps)
        session.model.train()
        started = time.perf_counter()
        self._encoded = 0
        for micro_batches in stage.steps(session, at):
            at = Progress(index, snapshot.epoch, stage.epochs, snapshot.step, steps)
            begun = time.perf_counter()
            loss, log, lr, norm = self._step(stage, micro_batches, named, at)
            snapshot.step += 1
            snapshot.total_steps += 1
            for name, value in {"loss": loss, **log, "gradient_norm": norm, "lr": lr}.items():
                snapshot.sums[name] = snapshot.sums.get(name, 0.0) + value
            yield StepRecord(at, loss, log, lr, norm, time.perf_counter() - begun)
        seconds = time.perf_counter() - started + self.begin_seconds
        self.begin_seconds = 0.0
        yield self._finish_epoch(stage, at, named, seconds)

    def _step(
        self,
        stage: Stage,
        micro_batches: Any,
        named: list[tuple[str, nn.Parameter]],
        at: Progress,
    ) -> tuple[float, dict[str, float], float, float]:
        """One optimizer step: gradients of all micro-batches, checks, one clip, one update."""
        session, optimizer = self.session, self.optimizer
        assert optimizer is not None
        optimizer.zero_grad(set_to_none=True)
        if stage.divides:
            distributed.overwrite(session.model.mixer.buffers(), session.world)
            session.draw_apart(self.snapshot.total_steps)
        tally = Tally()
        for micro in micro_batches:
            loss, log = stage.loss(session, micro, at)
            value, numbers = _to_numbers(loss, log)
            tally.add(value, numbers, stage.part(micro))
            if not math.isfinite(value):
                break  # all processes stop below; one that stopped here would leave them waiting
            session.accelerator.backward(loss)
        total, means = self._together(stage, tally)
        guard.check_loss(total, means, at)
        distributed.average_gradients([p for _, p in named], session.world)
        parameters = [p for _, p in named if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        gradient_norm = float(norm)
        guard.check_gradient(gradient_norm, named, at)
        limit = stage.clip()
        if limit is not None:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        lr = float(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        return total, means, lr, gradient_norm

    def _together(self, stage: Stage, own: Tally) -> tuple[float, dict[str, float]]:
        """The loss and the mean log of a step over all processes; counts the encoded samples."""
        own.encoded, self._encoded = self._encoded, 0
        tallies: list[Tally] = self.session.gather([own])
        # What is not divided was done by all: the first process's count is everybody's.
        self.snapshot.encoded += sum(t.encoded for t in (tallies if stage.divides else [own]))
        micros = sum(t.micros for t in tallies)
        names = dict.fromkeys(name for t in tallies for name in t.log)
        means = {name: sum(t.log.get(name, 0.0) for t in tallies) / micros for name in names}
        return sum(t.loss for t in tallies) / len(tallies), means

    def _finish_epoch(
        self, stage: Stage, at: Progress, named: list[tuple[str, nn.Parameter]], seconds: float
    ) -> EpochRecord:
        session, snapshot = self.session, self.snapshot
        score, best = None, False
        distributed.overwrite(session.model.buffers(), session.world)
        if stage.evaluates:
            score = evaluate(session, session.evaluation_split())
            best = _better(score.metric, snapshot.best_metric, session.metric.better == "lower")
            snapshot.probes.append(look_at_tokens(session, at))
        if score is not None and best:
            snapshot.best_metric, snapshot.best_at = score.metric, (at.stage, at.epoch)
            snapshot.best_steps = snapshot.total_steps
        means = {name: total / max(1, snapshot.step) for name, total in snapshot.sums.items()}
        snapshot.sums = {}
        snapshot.epoch, snapshot.step = snapshot.epoch + 1, 0
        snapshot.seconds += seconds
        trainable = sum(p.numel() for _, p in named)
        metric, loss = (None, None) if score is None else (score.metric, score.loss)
        return EpochRecord(at, means, metric, loss, best, seconds, trainable)


def _better(score: float, best: float | None, lower: bool) -> bool:
    """Whether a score beats the best so far; one that is not a number only beats none."""
    if best is None or math.isnan(best):
        return best is None or not math.isnan(score)
    return score < best if lower else score > best


def _to_numbers(loss: Tensor, log: Mapping[str, Tensor | float]) -> tuple[float, dict[str, float]]:
    """Bring the loss and what is logged to the CPU in one transfer."""
    tensors = {name: value for name, value in log.items() if isinstance(value, Tensor)}
    stacked = torch.stack([loss.detach(), *tensors.values()]).tolist()
    numbers = {name: float(v) for name, v in log.items() if not isinstance(v, Tensor)}
    numbers.update(zip(tensors, stacked[1:], strict=True))
    return stacked[0], numbers
