"""Carries a run out: finds or makes its directory, drives the loop, saves, tests, reports.

Nothing else writes into a run directory while the run lasts.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file
from torch import Tensor

from xmodal import runs
from xmodal.data import loader
from xmodal.data.store import Store
from xmodal.engine import checkpoint, directory
from xmodal.engine import device as devices
from xmodal.engine.build import Builder, accelerator
from xmodal.engine.evaluate import PROBED_SAMPLES, SplitScore, evaluate
from xmodal.engine.identity import identity
from xmodal.engine.loop import EpochRecord, Snapshot, Training
from xmodal.engine.observe import Observer, RunLog, Silent
from xmodal.engine.plan import Plan
from xmodal.engine.session import RunSession
from xmodal.engine.tracking import Tracking
from xmodal.errors import DataError, MachineError, TrainingError, XModalError, file_errors
from xmodal.files import atomically
from xmodal.interfaces import TaskData
from xmodal.plugins import Registry
from xmodal.recipe.recipe import Recipe

SHOWN_SAMPLES = 4
MAX_PREDICTION_BYTES = 256 * 2**20
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class RunOrder:
    """Where to run, whether to repeat a finished run, and what draws the report of this one."""

    name: str
    root: Path = runs.DEFAULT_ROOT
    directory: Path | None = None
    force: bool = False
    source_text: str = ""
    report: Callable[[runs.Run], object] | None = None


class Interrupted(XModalError):
    """A signal asked the run to end; its state is saved."""

    def __init__(self, number: int, run: runs.Run) -> None:
        self.exit_code = 128 + number
        super().__init__(f"interrupted; state saved. Continue with: {run.to_continue()}")


@dataclass(frozen=True)
class Outcome:
    """A finished run. ``fresh`` is False if an earlier run had already done it."""

    run: runs.Run
    result: Mapping[str, Any]
    fresh: bool


@file_errors()
def execute(
    plan: Plan, order: RunOrder, registry: Registry, store: Store, observer: Observer | None = None
) -> Outcome:
    """Run a plan to its end, or resume it. Raises XModalError kinds; the state is saved first."""
    # First of all: a device that is not here should not cost the time to load data.
    alone = accelerator(plan.recipe.device, plan.recipe.precision)
    directory.check(order.name, order.root, order.directory)  # nor should a wrong place
    log = RunLog(observer or Silent(), writes=alone.is_main_process)
    with devices.current(plan.recipe.device), log:
        return _execute(plan, order, registry, store, log, alone)


def _execute(
    plan: Plan,
    order: RunOrder,
    registry: Registry,
    store: Store,
    observer: Observer,
    alone: Accelerator,
) -> Outcome:
    builder = Builder(plan, store, observer.note)
    data = builder.data()
    # Of several processes one chooses and owns the directory; the others only read it.
    main = alone.is_main_process
    own = identity(plan.recipe, registry, store, data.checksum) if main else None
    chosen = None
    if own is not None:
        found = directory.choose(own, order.name, order.root, order.directory, order.force)
        chosen = (*found, own.hash)
    run, done, digest = broadcast_object_list([chosen])[0]
    if done:
        return Outcome(run, run.read("result.json"), fresh=False)
    with run.lock() if main else nullcontext(), _watch_signals() as stop:
        if own is not None:
            directory.belongs(run, own)  # another process may have had the lock meanwhile
            if order.force or not (run.path / "manifest.json").exists():
                run.clear()
                directory.describe(
                    run,
                    plan,
                    order.name,
                    order.source_text,
                    registry,
                    own,
                    data,
                    alone.num_processes,
                )
        alone.wait_for_everyone()
        tracking = Tracking(plan.recipe, run, builder.note)
        with _recorded(run, tracking) if main else nullcontext() as place:
            execution = _Execution(
                run, place, digest, plan, builder, data, observer, stop, tracking
            )
            outcome = execution.carry_out()
            if main:
                run.write("result.json", outcome)
                tracking.done(outcome)
                if order.report is not None:
                    _draw(order.report, run, observer.note)
        if main:
            # Not earlier: a run that is killed before it is done resumes from one of these.
            execution.sweep(plan.recipe.saving.finished, 1)
    return Outcome(run, outcome, fresh=True)


class _StopRequest:
    """Remembers that a signal arrived; the run asks between steps."""

    def __init__(self) -> None:
        self.signal: int | None = None


@contextmanager
def _watch_signals() -> Iterator[_StopRequest]:
    """Turn SIGTERM and SIGINT into a request; a second SIGINT interrupts at once."""
    request = _StopRequest()
    previous = {}

    def handle(number: int, frame: FrameType | None) -> None:
        if request.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = number

    try:
        for number in SIGNALS:
            previous[number] = signal.signal(number, handle)
    except ValueError:
        # Not the main thread (a notebook, a test runner): signals stay the caller's business.
        previous = {}
    try:
        yield request
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


@contextmanager
def _recorded(run: runs.Run, tracking: Tracking) -> Iterator[runs.Place]:
    """Keep the state of a run true whatever happens inside, and let its trackers end with it.

    Yields the place of the run, which must stay what it is.
    """
    run.set_state("running")
    place = run.place()
    state = "failed"
    try:
        yield place
        run.check_place(place)
        state = "done"
        run.set_state(state)
    except (Exception, KeyboardInterrupt) as error:
        state, why = _ending(error)
        with suppress(OSError, DataError):  # the disk may be full, or the directory gone
            run.check_place(place)
            run.set_state(state, reason=why)
        if isinstance(error, OSError):
            raise MachineError(f"{MachineError.of(error)}; {_saved(run)}") from error
        raise
    finally:
        tracking.end(state)


def _ending(error: BaseException) -> tuple[str, str]:
    """The state that an error leaves a run in, and why."""
    if isinstance(error, Interrupted):
        return "interrupted", str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "interrupted before its state was saved"
    if isinstance(error, TrainingError):
        return "stopped", str(error)
    return "failed", f"{type(error).__name__}: {error}"


def _saved(run: runs.Run) -> str:
    """What is left of a run that failed, and how to go on."""
    with suppress(DataError, OSError):
        for folder in checkpoint.complete(run.checkpoints, checkpoint.STEP):
            with suppress(DataError):
                checkpoint.load(folder)
                kept = f"the checkpoint {folder.name} is kept"
                return f"{kept}; continue with: {run.to_continue()}"
    return "nothing had been saved"


def _draw(report: Callable[[runs.Run], object], run: runs.Run, note: Callable[[str], None]) -> None:
    try:
        report(run)
    except Exception as error:  # a picture must never cost a finished run its result
        note(f"the report could not be drawn: {type(error).__name__}: {error}")


class _Execution:
    """One pass over a run: build, restore, train, test.

    ``place``: that of the run, in the process that owns its directory; None in the others.
    """

    def __init__(
        self,
        run: runs.Run,
        place: runs.Place | None,
        digest: str,
        plan: Plan,
        builder: Builder,
        data: TaskData,
        observer: Observer,
        stop: _StopRequest,
        tracking: Tracking,
    ) -> None:
        self.run, self.plan, self.observer, self.stop = run, plan, observer, stop
        self.place, self.digest = place, digest
        self.tracking = tracking
        self.saving = plan.recipe.saving
        self.session = builder.session(data)
        self.training = self._begun(lambda: builder.session(data))
        self.saved_at = time.monotonic()
        self.begun = time.perf_counter()

    def carry_out(self) -> dict[str, Any]:
        """Train from wherever the run stands, then test the best epoch."""
        resumed = self.training.restored is not None
        if self.place is not None:
            snapshot = self.training.snapshot
            before = self.run.rewind_metrics(snapshot.stage, snapshot.epoch)
        self.observer.started(self.run, self.session, resumed)
        if self.place is not None:
            self.tracking.start(before)
        for record in self.training.run():
            self.observer.record(record)
            if isinstance(record, EpochRecord):
                self._epoch_done(record)
            else:
                self.tracking.step(record, self.training.snapshot.total_steps)
                if self._due():
                    self._save()
            number = int(self.session.agree(float(self.stop.signal or 0)))
            if number:
                self._save()
                raise Interrupted(number, self.run)
        return self._test()

    def _begun(self, anew: Callable[[], RunSession]) -> Training:
        """Training from the newest checkpoint that is whole, or else from the beginning.

        Notes name what was passed over, and what is used instead. ``anew`` makes a session that no
        checkpoint has been loaded into.
        """
        passed: list[tuple[str, DataError]] = []
        for folder in checkpoint.complete(self.run.checkpoints, checkpoint.STEP):
            try:
                training = Training(self.session, checkpoint.load(folder, self.digest))
                if training.snapshot.best_at is not None:
                    checkpoint.load(self._best_folder(training.snapshot.best_steps), self.digest)
            except DataError as error:
                passed.append((folder.name, error))
                continue
            for name, why in passed:
                self.session.note(f"{name}: {why}; using the one before it: {folder.name}")
            return training
        if passed:
            self.session = anew()
        for name, why in passed:
            self.session.note(f"{name}: {why}; training starts again from the beginning")
        return Training(self.session)

    def _due(self) -> bool:
        every = self.saving.every_steps
        if every is not None and self.training.snapshot.total_steps % every == 0:
            return True
        minutes = self.saving.every_minutes
        return minutes is not None and time.monotonic() - self.saved_at > 60 * minutes

    def _step_folder(self) -> Path:
        snapshot = self.training.snapshot
        # The end of an epoch and its last step share total_steps, so the name counts both.
        order = snapshot.total_steps * 2 + (snapshot.step == 0)
        return self.run.checkpoints / f"{checkpoint.STEP}{order:012d}"

    def _best_folder(self, steps: int) -> Path:
        return self.run.checkpoints / f"{checkpoint.BEST}{steps:010d}"

    def _epoch_done(self, record: EpochRecord) -> None:
        snapshot = self.training.snapshot
        if self.place is None:
            return
        self.run.check_place(self.place)
        line = {
            "stage": record.progress.stage,
            "epoch": record.progress.epoch,
            "total_steps": snapshot.total_steps,
            "train": dict(record.train),
            "validation": {"metric": record.metric, "loss": record.loss},
            "best": record.best,
            "seconds": record.seconds,
            "trainable": record.trainable,
        }
        self.run.append_metrics(line)
        self.tracking.epoch(line)
        if record.scored and record.metric is None:
            self.session.note(_no_number(self.plan.recipe, self.session))
        if record.best:
            state = {"model": self.session.model.state_dict()}
            checkpoint.save(self._best_folder(snapshot.best_steps), state, self.digest)
        # An epoch of preparation can be a single step: saving would take longer than the epoch.
        over = record.progress.epoch + 1 == record.progress.epochs
        if record.scored or over or self._due():
            self._save()

    def _save(self) -> None:
        """Save everything; afterwards older checkpoints and bests may go."""
        self.saved_at = time.monotonic()
        if self.place is None:
            return
        self.run.check_place(self.place)
        snapshot = self.training.snapshot
        checkpoint.save(self._step_folder(), self.training.state(), self.digest)
        self.sweep(self.saving.keep, self.saving.keep)
        self.run.set_state("running", stage=snapshot.stage, epoch=snapshot.epoch)

    def sweep(self, steps: int, bests: int) -> None:
        """Keep this many checkpoints and bests of those that lead to where the run is now."""
        checkpoint.sweep(self._step_folder(), checkpoint.STEP, steps)
        best = self._best_folder(self.training.snapshot.best_steps)
        checkpoint.sweep(best, checkpoint.BEST, bests)

    def _test(self) -> dict[str, Any]:
        """Score the best epoch on the test split; the model ends holding the best weights."""
        session, snapshot = self.session, self.training.snapshot
        if self.place is not None:
            self.run.check_place(self.place)
            final = {k: v.cpu() for k, v in session.model.state_dict().items()}
            checkpoint.save(self.run.path / "final", {"model": final}, self.digest)
        if snapshot.best_at is None:
            split = _scored_split(self.plan.recipe, session)
            raise TrainingError(
                f"no epoch can be chosen: neither the metric nor the loss of the {split} data was "
                "a finite number in any\nTry a lower learning rate, or look at these data"
            )
        best = checkpoint.load(self._best_folder(snapshot.best_steps), self.digest)
        checkpoint.load_exactly(session.model, checkpoint.weights(best), "the best checkpoint")
        score = evaluate(session, session.data.test, keep=True)
        assert score.predictions is not None
        if score.metric is None:
            metric = self.plan.recipe.task.config.metric.name
            session.note(f"{metric} is not a number on the test data: this run has no score")
        if self.place is not None:
            keep_predictions(self.run, session, score.predictions)
            keep_samples(self.run, self.digest, session, snapshot, score.predictions)
        seconds = {
            "training": snapshot.seconds,
            "this_process": time.perf_counter() - self.begun,
        }
        return {**summarise(self.plan.recipe, session, snapshot, score), "seconds": seconds}


# --- what a finished run keeps ---


def keep_predictions(run: runs.Run, session: RunSession, predictions: Tensor) -> None:
    """Write all test predictions with their labels, unless they are too large."""
    size = predictions.numel() * predictions.element_size()
    if size <= MAX_PREDICTION_BYTES:
        labels = session.data.in_unit(loader.labels(session.data.test))
        content = {"prediction": predictions, "label": labels}
        tensors = {name: tensor.contiguous() for name, tensor in content.items()}
        with atomically(run.path / "predictions.safetensors") as new:
            save_file(tensors, new)


def keep_samples(
    run: runs.Run, digest: str, session: RunSession, snapshot: Snapshot, predictions: Tensor
) -> None:
    """Keep a few samples, and what the mixer did to them, for the report."""
    x, y = loader.first(session.data.test, SHOWN_SAMPLES)
    kept: dict[str, Any] = {
        "test": {"x": x, "y": session.data.in_unit(y), "prediction": predictions[: len(x)]},
        "train": {"x": loader.first(session.data.train, PROBED_SAMPLES)[0]},
        "probes": snapshot.probes,
        "images": dict(session.data.images),
    }
    if session.source is not None:
        kept["source"] = {"x": loader.first(session.source, PROBED_SAMPLES)[0]}
    checkpoint.save(run.path / "samples", kept, digest)


def summarise(
    recipe: Recipe, session: RunSession, snapshot: Snapshot, score: SplitScore
) -> Mapping[str, Any]:
    """The content of ``result.json``, to which the caller adds times."""
    parameters = list(session.model.parameters())
    return {
        "task": recipe.task.name,
        "family": session.facts.task.family,
        "metric": recipe.task.config.metric.name,
        "better": session.metric.better,
        "test": {"metric": score.metric, "loss": score.loss, "smallest": score.smallest},
        "validation": {
            "metric": snapshot.best_metric,
            "loss": snapshot.best_loss,
            "at": list(snapshot.best_at or ()),
        },
        "selected_on": _selected_on(recipe, session, snapshot),
        "protocol": recipe.protocol,
        "seed": recipe.seed,
        "steps": snapshot.total_steps,
        "encoded_samples": snapshot.encoded,
        "memory_bytes": int(session.agree(peak_memory())),
        "parameters": {
            "total": sum(p.numel() for p in parameters),
            "trainable": snapshot.trainable,
        },
        "token_norm": {"source": session.source_norm, "target": session.target_norm},
        "device": str(session.device),
        "notes": list(session.notes),
    }


def _selected_on(recipe: Recipe, session: RunSession, snapshot: Snapshot) -> str:
    """What chose the best epoch: ``validation``, ``test loss``, ...

    The test split, as published or where a task has no other; the loss, where the metric was not a
    number in any epoch.
    """
    split = _scored_split(recipe, session)
    return split if snapshot.best_metric is not None else f"{split} loss"


def _no_number(recipe: Recipe, session: RunSession) -> str:
    """What follows from a metric that is undefined after an epoch, and the ways out."""
    metric, split = recipe.task.config.metric.name, _scored_split(recipe, session)
    return (
        f"{metric} is not a number on the {split} data; if it is so after every epoch, the {split} "
        f"loss chooses the epoch. Ways out: {split} data that hold every class and labels that "
        "vary, or another task.metric"
    )


def _scored_split(recipe: Recipe, session: RunSession) -> str:
    same = session.data.test is session.data.validation
    return "test" if recipe.protocol == "published" or same else "validation"


def peak_memory() -> int:
    """Bytes: the GPU's peak allocation, or this process's peak resident memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource  # Unix only. psutil knows the peak on Windows alone.
    except ImportError:
        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
