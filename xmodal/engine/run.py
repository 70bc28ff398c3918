"""Carries a run out: finds or makes its directory, drives the loop, saves, tests, reports.

Nothing else writes into a run directory while the run lasts. A run is a generator that pauses after
every record of its loop, so that several can take turns in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from xmodal import randomness, runs
from xmodal.data.store import Store
from xmodal.engine import checkpoint, directory
from xmodal.engine import device as devices
from xmodal.engine.build import Builder, accelerator
from xmodal.engine.distributed import of_the_first
from xmodal.engine.evaluate import evaluate
from xmodal.engine.identity import identity
from xmodal.engine.loop import EpochRecord, Training
from xmodal.engine.memory import OutOfMemory, device_errors, is_out_of_memory
from xmodal.engine.observe import Observer, RunLog, Silent
from xmodal.engine.plan import Plan
from xmodal.engine.process import (
    ALONE,
    Process,
    Stopped,
    StopRequest,
    as_in_a_new_process,
    finished,
)
from xmodal.engine.profiling import StepTrace, span
from xmodal.engine.result import (
    advised,
    for_the_report,
    judged,
    keep_predictions,
    keep_samples,
    no_number,
    scored_split,
    summarise,
)
from xmodal.engine.saving import Saver, best_folder, step_folder
from xmodal.engine.session import RunSession
from xmodal.engine.step import StepRecord
from xmodal.engine.tracking import Tracking
from xmodal.errors import DataError, MachineError, TrainingError, XModalError, file_errors
from xmodal.interfaces import TaskData
from xmodal.plugins import Registry

SHARED = (
    "this run takes turns with others in one process: its seconds are those of its own turns, its "
    "memory is that of all"
)


@dataclass(frozen=True)
class RunOrder:
    """Where to run, whether to repeat a finished run, and what draws the report of this one.

    ``looks``: find out what the model looks at, for a page. ``profile``: how many steps to trace.
    """

    name: str
    root: Path = runs.DEFAULT_ROOT
    directory: Path | None = None
    force: bool = False
    source_text: str = ""
    report: Callable[[runs.Run], object] | None = None
    looks: bool = True
    profile: int | None = None


class Interrupted(XModalError):
    """A signal asked the run to end; its state is ``saved``, if it had begun.

    ``at_once``: what was saved is that of an earlier step.
    """

    def __init__(
        self, number: int, run: runs.Run | None = None, saved: bool = True, at_once: bool = False
    ) -> None:
        self.exit_code = 128 + number
        kept = "the state last saved is kept" if at_once else "state saved"
        kept = f"{kept}. Continue with" if saved else "nothing to save yet. Begin again with"
        super().__init__(
            f"interrupted; {f'{kept}: {run.to_continue()}' if run else 'it had not begun'}"
        )


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
    with as_in_a_new_process(), devices.current(plan.recipe.device), device_errors():
        return finished(steps(plan, order, registry, store, observer))


def steps(
    plan: Plan,
    order: RunOrder,
    registry: Registry,
    store: Store,
    observer: Observer | None = None,
    process: Process = ALONE,
) -> Generator[None, None, Outcome]:
    """What ``execute`` does, with a pause after every record of the training loop."""
    # First of all: a device that is not here should not cost the time to load data.
    alone = accelerator(plan.recipe.device, plan.recipe.precision)
    directory.check(order.name, order.root, order.directory)  # nor should a wrong place
    with RunLog(observer or Silent(), writes=alone.is_main_process) as log:
        kernels = randomness.Kernels(plan.recipe.deterministic, log.note)
        work = _steps(plan, order, registry, store, log, alone, process)
        if process.shared:
            return (yield from randomness.within(kernels, work))
        with kernels:  # nobody else is at work in the pauses
            return (yield from work)


def _steps(
    plan: Plan,
    order: RunOrder,
    registry: Registry,
    store: Store,
    observer: Observer,
    alone: Accelerator,
    process: Process,
) -> Generator[None, None, Outcome]:
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
        result = run.read("result.json")
        muted = plan.recipe.ignore  # which is no part of what a run is
        advice = [one for one in result.get("advice", ()) if one["code"] not in muted]
        return Outcome(run, {**result, "advice": advice}, fresh=False)
    with run.lock() if main else nullcontext(), process.watch() as stop:
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
        recorded = _recorded(run, tracking, process.shared) if main else nullcontext()
        with _interrupted(run, stop, process.shared), recorded as place:
            execution = _Execution(
                run, place, digest, plan, builder, data, observer, stop, tracking, process
            )
            execution.looks = order.looks
            if main and order.profile is not None:
                execution.profile = StepTrace(order.profile, execution.session.device, run.path)
            outcome = yield from execution.carry_out()
            if main:
                run.write("result.json", outcome)
                tracking.done(outcome)
                if order.report is not None:
                    draw(order.report, run, observer.note)
        if main:
            # Not earlier: a run that is killed before it is done resumes from one of these.
            execution.sweep(plan.recipe.saving.finished, 1)
    return Outcome(run, outcome, fresh=True)


@contextmanager
def _interrupted(run: runs.Run, stop: StopRequest, shared: bool) -> Iterator[None]:
    """After a second Ctrl-C, say how to go on; of a ``shared`` process it ends all runs."""
    try:
        yield
    except KeyboardInterrupt as error:
        if stop.signal is None or shared:
            raise
        kept = bool(checkpoint.complete(run.checkpoints, checkpoint.STEP))
        raise Interrupted(SIGINT, run, kept, at_once=True) from error


@contextmanager
def _recorded(run: runs.Run, tracking: Tracking, shared: bool) -> Iterator[runs.Place]:
    """Keep the state of a run true whatever happens inside, and let its trackers end with it.

    Yields the place of the run, which must stay what it is. In a ``shared`` process, errors that do
    not say what is wrong with this run leave it running without a process, as a crash would.
    """
    run.set_state("running")
    place = run.place()
    state = "failed"
    try:
        yield place
        run.check_place(place)
        state = "done"
        run.set_state(state)
    except (Exception, KeyboardInterrupt, GeneratorExit) as error:
        state, why = _ending(error)
        if shared and state == "failed" and not _is_own(error):
            state = "interrupted"
            raise
        with suppress(OSError, DataError):  # the disk may be full, or the directory gone
            run.check_place(place)
            run.set_state(state, reason=why)
        if isinstance(error, OSError):
            raise MachineError(f"{MachineError.of(error)}; {_saved(run)}") from error
        raise
    finally:
        tracking.end(state)


def _is_own(error: BaseException) -> bool:
    """Whether an error says what is wrong with the run itself, whatever else the process does."""
    if isinstance(error, OutOfMemory) or is_out_of_memory(error.__cause__ or error):
        return False
    return isinstance(error, XModalError | OSError)


def _ending(error: BaseException) -> tuple[str, str]:
    """The state that an error leaves a run in, and why."""
    if isinstance(error, Interrupted):
        return "interrupted", str(error)
    if isinstance(error, KeyboardInterrupt | GeneratorExit):
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


def draw(report: Callable[[runs.Run], object], run: runs.Run, note: Callable[[str], None]) -> None:
    """Draw the page of a run; if that fails, say so."""
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
        stop: StopRequest,
        tracking: Tracking,
        process: Process,
    ) -> None:
        self.run, self.plan, self.observer, self.stop = run, plan, observer, stop
        self.place, self.digest = place, digest
        self.tracking = tracking
        self.clock = process.clock

        def session() -> RunSession:
            made = builder.session(data)
            made.shared, made.stop = process.shared, stop
            return made

        self.session = session()
        self.training = self._begun(session)
        self.saver = Saver(run, digest, plan.recipe.saving, self.training, self._check)
        self.profile: StepTrace | None = None
        self.looks = True
        self.begun = self.clock()

    def carry_out(self) -> Generator[None, None, dict[str, Any]]:
        """Train from wherever the run stands, then test the best epoch; pauses after records."""
        with self.saver, self.profile or nullcontext():
            return (yield from self._carry_out())

    def _carry_out(self) -> Generator[None, None, dict[str, Any]]:
        resumed = self.training.restored is not None
        if self.place is not None:
            snapshot = self.training.snapshot
            before = self.run.rewind_metrics(snapshot.stage, snapshot.epoch)
        if self.session.shared:
            self.session.note(SHARED)
        self.observer.started(self.run, self.session, resumed)
        if self.place is not None:
            self.tracking.start(before)
        for record in self._records():
            self._tell(record)
            if self.saver.due(isinstance(record, EpochRecord)):
                self._save()
            self._trace(record)
            number = int(self.session.agree(float(self.stop.signal or 0)))
            if number:
                self._save()
                self.saver.flush()
                raise Interrupted(number, self.run)
            yield
        return self._test()

    def _records(self) -> Iterator[StepRecord | EpochRecord]:
        """Those of the training; if memory runs out for good, the state before it is saved."""
        try:
            yield from self.training.run()
        except OutOfMemory:
            self._save()
            self.saver.flush()
            raise
        except Stopped as stopped:
            kept = bool(checkpoint.complete(self.run.checkpoints, checkpoint.STEP))
            raise Interrupted(int(self.stop.signal or SIGTERM), self.run, kept) from stopped

    def _begun(self, anew: Callable[[], RunSession]) -> Training:
        """Training from the newest checkpoint that is whole, or else from the beginning.

        Notes name what was passed over, and what is used instead. ``anew`` makes a session that no
        checkpoint has been loaded into.
        """
        passed: list[tuple[str, DataError]] = []
        for folder in checkpoint.complete(self.run.checkpoints, checkpoint.STEP):
            try:
                state = checkpoint.load(folder, self.digest)
                training = Training(self.session, state, self.clock)
                if training.snapshot.best_at is not None:
                    checkpoint.load(best_folder(self.run, training.snapshot), self.digest)
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
        return Training(self.session, clock=self.clock)

    def _check(self) -> None:
        """Raise DataError if the directory is not that of the run any more."""
        if self.place is not None:
            self.run.check_place(self.place)

    def _epoch_done(self, record: EpochRecord) -> None:
        snapshot = self.training.snapshot
        if self.place is None:
            return
        self._check()
        line = {
            "stage": record.progress.stage,
            "epoch": record.progress.epoch,
            "total_steps": snapshot.total_steps,
            "train": dict(record.train),
            "validation": {"metric": record.metric, "loss": record.loss},
            "best": record.best,
            "seconds": record.seconds,
            "trainable": record.trainable,
            **vars(record.speed),
        }
        self.run.append_metrics(line)
        self.tracking.epoch(line)
        if record.scored and record.metric is None:
            self.session.note(no_number(self.plan.recipe, self.session))
        if record.best:
            self.saver.keep_best()

    def _save(self) -> None:
        """Begin to save everything."""
        if self.place is not None:
            self._check()
            with span("saving"):
                self.saver.save()
            for late in self.training.arrived():
                # What is saved includes them: a run that goes on from here does not yield them.
                self._tell(late)
                self._trace(late)

    def _tell(self, record: StepRecord | EpochRecord) -> None:
        self.observer.record(record)
        if isinstance(record, EpochRecord):
            self._epoch_done(record)
        else:
            self.tracking.step(record)

    def _trace(self, record: StepRecord | EpochRecord) -> None:
        if self.profile is not None and self.session.stages[record.progress.stage].evaluates:
            self.profile.record(record.progress, isinstance(record, EpochRecord))

    def sweep(self, steps: int, bests: int) -> None:
        """Keep this many checkpoints and bests of those that lead to where the run is now."""
        snapshot = self.training.snapshot
        checkpoint.sweep(step_folder(self.run, snapshot), checkpoint.STEP, steps)
        checkpoint.sweep(best_folder(self.run, snapshot), checkpoint.BEST, bests)

    def _test(self) -> dict[str, Any]:
        """Score the best epoch on the test split; the model ends holding the best weights."""
        session, snapshot = self.session, self.training.snapshot
        if self.place is not None:
            self._check()
            if self.plan.recipe.saving.finished:
                self._save()
            self.saver.save_best()
            self.saver.save_final()
        session.accelerator.wait_for_everyone()  # the others read what the first one writes
        if snapshot.best_at is None:
            split = scored_split(self.plan.recipe, session)
            raise TrainingError(
                f"no epoch can be chosen: neither the metric nor the loss of the {split} data was "
                "a finite number in any\nTry a lower learning rate, or look at these data"
            )
        best = checkpoint.load(best_folder(self.run, snapshot), self.digest)
        checkpoint.load_exactly(session.model, checkpoint.weights(best), "the best checkpoint")
        begun = self.clock()
        score = evaluate(session, session.data.test, keep=True)
        took = self.clock() - begun
        assert score.predictions is not None
        if score.metric is None:
            metric = self.plan.recipe.task.config.metric.name
            session.note(f"{metric} is not a number on the test data: this run has no score")
        validated = None
        data = session.data
        if (
            scored_split(self.plan.recipe, session) == "validation"
            and data.validation is not data.train
        ):
            validated = evaluate(session, session.data.validation, keep=True).predictions
        judgement: Mapping[str, Any] = {}
        advice: list[Mapping[str, str]] = []
        if self.place is not None:
            judgement = judged(self.plan.recipe, session, score)
            keep_predictions(self.run, session, session.data.test, score.predictions)
            if validated is not None:
                keep_predictions(
                    self.run, session, session.data.validation, validated, runs.VALIDATED
                )
            predictions = score.predictions
            keep_samples(self.run, self.digest, session, snapshot, predictions, self.looks)
            with for_the_report(session, "what to do next"):
                advice = advised(self.run, self.plan.recipe, session, snapshot, score, judgement)
        judgement, advice = of_the_first((judgement, advice), session.world)
        seconds = {
            "training": snapshot.seconds,
            "this_process": self.clock() - self.begun,
            "test_sample": took / len(score.predictions),
        }
        summary = summarise(self.plan.recipe, session, snapshot, score, judgement, advice)
        return {**summary, "seconds": seconds}
