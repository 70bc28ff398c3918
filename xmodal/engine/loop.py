"""The training loop: a generator of records over stages, epochs and steps.

It computes and yields; the caller logs, saves and stops. ``Snapshot`` holds everything a run needs
to continue bit for bit, and is consistent at every yield.

    for stage:      choose what trains, make optimizer and schedule
        for epoch:
            for step:     gradients, checks, clip, update (``engine.step``)      -> StepRecord
            validate, remember the best                                          -> EpochRecord
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from xmodal.batch import Batch, Progress, Tokens
from xmodal.engine import distributed
from xmodal.engine.averages import Averages
from xmodal.engine.capture import Capture
from xmodal.engine.checkpoint import load_exactly, weights
from xmodal.engine.evaluate import SplitScore, evaluate, look_at_tokens
from xmodal.engine.graphs import CudaGraphs, Graphs
from xmodal.engine.memory import Before, fewer_at_once, is_out_of_memory
from xmodal.engine.profiling import span
from xmodal.engine.session import RunSession
from xmodal.engine.speed import Meter, Speed, peak_here
from xmodal.engine.step import Computed, DeviceStep, HostStep, Stepper, StepRecord, needs_closure
from xmodal.errors import DataError, UsageError
from xmodal.interfaces import Stage
from xmodal.records import problem
from xmodal.text import shortlist, shown


@dataclass
class Snapshot:
    """How far a run has come; plain values only. Weights are read from the session when saving.

    The best epoch has the best validation metric. Where no epoch so far has a metric that is a
    number (``best_metric`` is None), it has the least validation loss; ``best_objective`` is that
    loss as it is trained. ``encoded`` counts the samples that went through the encoder,
    ``trainable`` is the most parameters that trained at once. The epochs' steps had ``samples``
    and took ``step_seconds``; at the peak of the GPU they would have taken ``peak_seconds``.
    Where memory ran out, ``most_at_once`` and ``evaluation_batch`` are what it suffices for.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best_metric: float | None = None
    best_loss: float | None = None
    best_objective: float | None = None
    best_at: tuple[int, int] | None = None
    best_steps: int = 0
    encoded: int = 0
    trainable: int = 0
    seconds: float = 0.0
    samples: int = 0
    step_seconds: float = 0.0
    peak_seconds: float = 0.0
    most_at_once: int | None = None
    evaluation_batch: int | None = None
    probes: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, document: Any) -> Snapshot:
        """The snapshot that a checkpoint holds. Raises DataError if it has another form."""
        try:
            snapshot = TypeAdapter(cls).validate_python(document)
        except ValidationError as error:
            raise DataError(f"the checkpoint is damaged: {problem(error)}") from None
        if lacking := {"stage", "epoch", "step", "total_steps", "best_steps"} - document.keys():
            raise DataError(f"the checkpoint is damaged: it lacks {shortlist(sorted(lacking))}")
        return snapshot


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: means over its steps, and the validation score.

    ``scored``: whether the stage has one; a metric or loss that is not a number is None even then.
    ``best``: the best so far. ``speed`` is that of its steps, without validation.
    """

    progress: Progress
    train: Mapping[str, float]
    scored: bool
    metric: float | None
    loss: float | None
    best: bool
    seconds: float
    trainable: int
    speed: Speed


class Training:
    """The loop's state: session, snapshot, and what the current stage trains and steps with."""

    def __init__(
        self,
        session: RunSession,
        restored: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        graphs: Callable[[], Graphs] | None = None,
    ) -> None:
        """``graphs`` captures steps; by default they are captured on a GPU only."""
        self.session = session
        self.clock = clock
        self.graphs = graphs
        if graphs is None and session.device.type == "cuda":
            self.graphs = lambda: CudaGraphs(session.device)
        self.stepper: Stepper | None = None
        self.snapshot = Snapshot()
        self.trainable: list[tuple[str, nn.Parameter]] = []
        self.optimizer: torch.optim.Optimizer | None = None
        self.schedule: torch.optim.lr_scheduler.LRScheduler | None = None
        self.averages: Averages | None = None
        self.restored = restored
        self.begin_seconds = 0.0
        self._encoded = 0
        self._samples = 0
        self.meter = Meter(
            peak_here(session.device, session.accelerator.mixed_precision),
            lambda: self._encoded,
        )
        self._known: list[StepRecord] = []
        if restored is not None:
            self.snapshot = Snapshot.of(restored.get("snapshot"))
            load_exactly(session.model, weights(restored), "the checkpoint")
            session.most_at_once = self.snapshot.most_at_once
            if self.snapshot.evaluation_batch is not None:
                session.evaluation_batch = self.snapshot.evaluation_batch

    def run(self) -> Iterator[StepRecord | EpochRecord]:
        """Train. Yields after optimizer steps and after every epoch.

        On a GPU the record of a step comes a few steps later, at the latest before its epoch's.
        """
        session, snapshot = self.session, self.snapshot
        counter = session.model.backbone.register_forward_pre_hook(self._count_encoded)
        try:
            for stage in session.stages[: snapshot.stage]:
                if stage.optimizer([]) is None:
                    # A closed-form stage keeps what it fitted outside the weights: fit it again.
                    stage.begin(session)
            for index in range(snapshot.stage, len(session.stages)):
                stage = session.stages[index]
                self._begin(stage)
                while snapshot.epoch < stage.epochs:
                    yield from self._epoch(index, stage)
                snapshot.stage, snapshot.epoch = index + 1, 0
        finally:
            counter.remove()

    def _epoch(self, index: int, stage: Stage) -> Iterator[StepRecord | EpochRecord]:
        snapshot = self.snapshot
        steps = stage.steps_per_epoch(self.session)
        at = Progress(index, snapshot.epoch, stage.epochs, snapshot.step, steps)
        self.session.model.train()
        started, self._samples, encoded_before = self.clock(), 0, snapshot.encoded
        self.session.at_once = 0
        while not (yield from self._steps(stage, replace(at, step=snapshot.step))):
            pass
        yield from self._records(wait=True)
        seconds = self.clock() - started
        speed = self._speed(stage, snapshot.encoded - encoded_before, seconds)
        last = replace(at, step=max(at.step, snapshot.step - 1))
        yield self._end_epoch(stage, last, seconds + self.begin_seconds, speed)

    def _steps(self, stage: Stage, at: Progress) -> Generator[StepRecord, None, bool]:
        """The steps from ``at`` on; False if memory ran out: then they go on with less at once."""
        snapshot = self.snapshot
        taking = stage.steps(self.session, at)
        before: Before | None = None
        # Data may be read ahead in another thread, which ends with the iterator.
        with closing(taking) if isinstance(taking, Generator) else nullcontext():
            for micro_batches in taking:
                assert self.stepper is not None
                at = replace(at, step=snapshot.step)
                if before is None:
                    before = Before(self.session)
                    self._capture_anew(stage)
                else:
                    before.remember()
                encoded = self._take(micro_batches, at)
                if encoded is None:
                    break
                snapshot.step += 1
                snapshot.total_steps += 1
                snapshot.encoded += encoded
                if self.schedule is not None:
                    self.schedule.step()
                yield from self._records(wait=False)
            else:
                return True
        # Only here: the steps that were fetched, and the error, held on to memory.
        before.restore()
        yield from self._records(wait=True)
        assert self.optimizer is not None
        self.stepper = None  # with what it captured
        fewer_at_once(self.session)
        snapshot.most_at_once = self.session.most_at_once
        self.stepper = self._stepper(stage, self.optimizer)
        return False

    def _take(self, micro_batches: Iterable[Any], at: Progress) -> int | None:
        """Take a step; the samples that went through the encoder. None if memory ran out."""
        samples, encoded = self._samples, self._encoded
        assert self.stepper is not None
        try:
            number = self.snapshot.total_steps + 1
            return self.stepper.take(self._counted(micro_batches), at, number)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self._samples, self._encoded = samples, encoded
        return None

    def _counted(self, micro_batches: Iterable[Any]) -> Iterator[Any]:
        """The micro-batches of a step; counts their samples."""
        coming, end = iter(micro_batches), object()
        while True:
            with span("data"):
                micro = next(coming, end)
            if micro is end:
                return
            if isinstance(micro, Batch):
                self._samples += len(micro.x)
            yield micro

    def _speed(self, stage: Stage, encoded: int, seconds: float) -> Speed:
        """The speed of the steps that this process took in an epoch; adds it to the run's."""
        snapshot = self.snapshot
        samples = sum(self.session.gather([self._samples])) if stage.divides else self._samples
        if not samples or not seconds:
            return Speed()
        at_peak = self.meter.at_peak(encoded)
        snapshot.samples += samples
        snapshot.step_seconds += seconds
        snapshot.peak_seconds += at_peak or 0.0
        return Speed(samples / seconds, None if at_peak is None else at_peak / seconds)

    def _records(self, wait: bool) -> Iterator[StepRecord]:
        """The steps whose numbers have arrived since the last call."""
        self._settle(wait)
        yield from self.arrived()

    def arrived(self) -> Iterator[StepRecord]:
        """The steps that ``state`` has waited for, and ``run`` has not yielded yet."""
        while self._known:
            yield self._known.pop(0)

    def _settle(self, wait: bool) -> None:
        """Add the numbers that have arrived to the sums of the epoch."""
        if self.stepper is None:
            return
        for record in self.stepper.records(wait):
            numbers = {"gradient_norm": record.gradient_norm, "lr": record.lr}
            for name, value in ({"loss": record.loss, **record.log} | numbers).items():
                self.snapshot.sums[name] = self.snapshot.sums.get(name, 0.0) + value
            self._known.append(record)

    def _end_epoch(self, stage: Stage, at: Progress, seconds: float, speed: Speed) -> EpochRecord:
        """Validate, remember the best, and start the next epoch's counts at zero."""
        session, snapshot = self.session, self.snapshot
        self.begin_seconds = 0.0
        score, best = None, False
        distributed.overwrite(session.model.buffers(), session.world)
        if self.averages is not None and snapshot.epoch + 1 == stage.epochs:
            # The stage leaves the averages: to what comes next, and as the final weights.
            self.averages.adopt()
            self.averages = None
        # Training samples tell nothing about which epoch is best: they are scored once.
        split = session.evaluation_split()
        choose = split is not session.data.train or snapshot.epoch + 1 == stage.epochs
        if stage.evaluates and choose:
            batch = session.evaluation_batch
            with nullcontext() if self.averages is None else self.averages.shown():
                with span("evaluation"):
                    score = evaluate(session, split)
                with span("probe"):
                    snapshot.probes.append(look_at_tokens(session, at))
            if session.evaluation_batch != batch:
                snapshot.evaluation_batch = session.evaluation_batch
            best = _is_best(score, snapshot, session.metric.better == "lower")
        if score is not None and best:
            snapshot.best_metric, snapshot.best_at = score.metric, (at.stage, at.epoch)
            snapshot.best_loss, snapshot.best_objective = score.loss, score.objective
            snapshot.best_steps = snapshot.total_steps
        means = {name: total / max(1, snapshot.step) for name, total in snapshot.sums.items()}
        snapshot.sums = {}
        snapshot.epoch, snapshot.step = snapshot.epoch + 1, 0
        snapshot.seconds += seconds
        trainable = sum(p.numel() for _, p in self.trainable)
        snapshot.trainable = max(snapshot.trainable, trainable)
        metric, loss = (None, None) if score is None else (score.metric, score.loss)
        return EpochRecord(
            at, means, score is not None, metric, loss, best, seconds, trainable, speed
        )

    # --- the beginning of a stage, and what a checkpoint holds ---

    def _begin(self, stage: Stage) -> None:
        """Choose what trains, make optimizer and schedule, and let the stage prepare itself."""
        session = self.session
        self.trainable = session.model.select_trainable(stage.train)
        self.trainable += session.model.select_helper(self.snapshot.stage)
        self.optimizer = stage.optimizer(self.trainable)
        if self.optimizer is not None and not self.trainable:
            patterns = ", ".join(stage.train) or "none"
            raise UsageError(
                f"stage {self.snapshot.stage} has nothing to train: no parameter fits {patterns}\n"
                f"parameters: {shortlist(name for name, _ in session.model.named_parameters())}"
            )
        if self.optimizer is not None and needs_closure(self.optimizer):
            raise UsageError(
                f"stage {self.snapshot.stage} cannot use {type(self.optimizer).__name__}: its step "
                "computes the loss again, and steps here compute it once"
            )
        steps = stage.steps_per_epoch(session)
        self.schedule = None if self.optimizer is None else stage.schedule(self.optimizer, steps)
        decay = None if self.optimizer is None else stage.averaging()
        self.averages = None if decay is None else Averages(self.trainable, decay)
        self.stepper = None if self.optimizer is None else self._stepper(stage, self.optimizer)
        self.meter.begin()
        session.share_randomness()
        started = self.clock()
        before = self._encoded
        stage.begin(session)
        if self.averages is not None:
            self.averages.restart()  # the stage may have changed the weights
        self.begin_seconds = self.clock() - started
        if not (self.snapshot.epoch or self.snapshot.step):
            # A stage that a resumed run enters again was counted the first time.
            self.snapshot.encoded += self._encoded - before
        if self.restored is not None:
            self._restore(self.restored, stage)
            self.restored = None

    def _stepper(self, stage: Stage, optimizer: torch.optim.Optimizer) -> Stepper:
        """What takes the steps of a stage here."""
        about = (
            self.session, stage, self.trainable, optimizer, lambda: self._encoded, self.clock,
            self.averages,
        )  # fmt: skip
        if self.graphs is None:
            return HostStep(*about)
        what = f"stage {self.snapshot.stage}"
        if not DeviceStep.fits(self.session, optimizer):
            self.session.note(
                f"{what} runs without CUDA graphs, which is slower: they need a single process and "
                "torch's own Adam, AdamW or SGD with fused=True"
            )
            return HostStep(*about)
        capture: Capture[Computed] = Capture(self.session, self.graphs(), what, self.meter.counting)
        return DeviceStep(*about, capture=capture)

    def _capture_anew(self, stage: Stage) -> None:
        """Forget captured steps if something was changed between epochs, as by ``stage.steps``."""
        if isinstance(self.stepper, DeviceStep) and self.stepper.outdated:
            assert self.optimizer is not None
            self.stepper = None  # with what it captured
            self.stepper = self._stepper(stage, self.optimizer)

    def _count_encoded(self, module: nn.Module, inputs: tuple[Tokens]) -> None:
        """Count the samples that go through the encoder: the unit of a method's cost."""
        self._encoded += len(inputs[0].x_BND)

    def weights(self) -> dict[str, Any]:
        """The model to predict with: with the averages for weights, where there are some."""
        own: dict[str, Any] = self.session.model.state_dict()
        return own if self.averages is None else {**own, **self.averages.state()}

    def state(self) -> dict[str, Any]:
        """Everything needed to continue, for ``checkpoint.save``. Waits for the device."""
        self._settle(wait=True)
        session = self.session
        generators, outer = session.random_state()
        return {
            "snapshot": dict(vars(self.snapshot)),
            "model": session.model.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "averages": None if self.averages is None else self.averages.state(),
            "generators": generators,
            "global": outer,
        }

    def _restore(self, state: Mapping[str, Any], stage: Stage) -> None:
        """Continue with the optimizer, schedule and random streams of a checkpoint."""
        try:
            # A checkpoint at the end of a stage holds that stage's optimizer; the next makes its
            # own. A stage may have changed, at its end, what there is to train.
            begun = self.snapshot.epoch or self.snapshot.step
            if begun and self.snapshot.epoch < stage.epochs:
                if self.optimizer is not None and state["optimizer"] is not None:
                    self.optimizer.load_state_dict(state["optimizer"])
                if self.schedule is not None and state["schedule"] is not None:
                    self.schedule.load_state_dict(state["schedule"])
                if self.averages is not None:
                    self.averages.load(state["averages"])
            self.session.set_random_state(state["generators"], state["global"])
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise DataError(f"the checkpoint does not fit this run: {shown(error, 300)}") from error


def _is_best(score: SplitScore, snapshot: Snapshot, lower: bool) -> bool:
    """Whether a score beats the best so far: by the metric, or by the loss while there is none.

    A metric that is a number beats every epoch without one, so the two never choose together.
    """
    if score.metric is None:
        least = math.inf if snapshot.best_objective is None else snapshot.best_objective
        unscored = snapshot.best_metric is None and score.objective is not None
        return unscored and (score.objective or 0.0) < least
    if snapshot.best_metric is None:
        return True
    return score.metric < snapshot.best_metric if lower else score.metric > snapshot.best_metric
