"""Runs the trials of a search: the cheap answers, then fine-tuning by successive halving.

Which trials there are is a function of the data, the seed and the results so far. The clock only
decides which of them start; those that it left out are named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from xmodal import text
from xmodal.comparison.queue import LOG, command, last_lines
from xmodal.errors import XModalError
from xmodal.interfaces import Job, Launcher
from xmodal.plugins import as_options
from xmodal.search.clock import Clock
from xmodal.search.space import FACTOR, Answer, Rung
from xmodal.search.trials import Maker, Trial, TrialRun, best, took

PAUSE = 0.2
REPORT = 8.0
"""Seconds for what follows the last fit: its test and the report."""
REFIT, REFIT_STEPS = 1.3, 1.1
"""A last fit has up to a quarter more samples than the trial, or as many steps, and tests."""
OVER = 0.07
"""The share of the time that a last fit may take beyond it, rather than that a trial is lost."""
TOO_LATE = "no time was left"
STOPPED = "it was stopped, because no time was left; with more --time it goes on"


@dataclass(frozen=True)
class Limits:
    """What a model may need: ``memory`` in bytes, ``latency`` in seconds a sample; None: any."""

    memory: int | None = None
    latency: float | None = None

    def broken(self, trial: Trial) -> str:
        """Why a trial that is done cannot be chosen; empty if it can."""
        if self.memory is not None and trial.memory() > self.memory:
            return f"it took {text.size(trial.memory())} of memory; --memory allows less"
        took = trial.latency()
        if self.latency is not None and (took is None or took > self.latency):
            return f"it takes {text.duration(took)} a sample; --max-latency allows less"
        return ""


@dataclass
class Search:
    """One search. ``say`` gets a line about everything that happens.

    ``folds``: those of each rung, lowest first; cheap answers get the last ones. ``most``: how many
    trials may start. ``limits``: of what can be chosen. ``spare``: last fits to leave time for.
    ``plugin_files``: what trials need to import.
    """

    maker: Maker
    launcher: Launcher
    jobs: int
    clock: Clock
    better: str
    folds: Sequence[Sequence[int]]
    say: Callable[[str], None]
    most: int | None = None
    limits: Limits = Limits()
    spare: int = 1
    plugin_files: Sequence[str] = ()
    trials: list[Trial] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    late: bool = False
    _told: set[str] = field(default_factory=set)

    def run(
        self,
        cheap: Iterable[Answer],
        others: Iterator[Answer],
        ladder: Sequence[Rung],
        width: int,
    ) -> None:
        """Try all cheap answers, then ``width`` others at a time while time and trials last."""
        self._wave([(one, None, None) for one in cheap], ())
        while not self._over():
            bracket = list(islice(others, width))
            if not bracket:
                break
            before = len(self.trials)
            self._climb(bracket, ladder)
            if len(self.trials) == before:
                break
        self._settle(ladder)

    def eligible(self) -> list[Trial]:
        """Trials that can be chosen: done, and judged on all folds; best first."""
        whole = len(self.folds[-1])
        return best(self._allowed([t for t in self.trials if len(t.parts) == whole]), self.better)

    def _allowed(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those that are done and within the limits."""
        return [trial for trial in trials if trial.done and not self.limits.broken(trial)]

    def last_fits(self, parts: Sequence[TrialRun], needed: Collection[TrialRun]) -> None:
        """Fit trials once more, and test them. Raises XModalError if one that is needed fails."""
        self._work([part for part in parts if not part.done], lambda part: True)
        for part in parts:
            if not part.done and part in needed:
                raise XModalError(f"the last fit has failed:\n{last_lines(part.directory / LOG)}")

    def in_time(self, trials: Sequence[Trial]) -> bool:
        """Whether there is time left for the last fits of trials."""
        return self._last_fits(trials) + REPORT < self.clock.left()

    def _over(self) -> bool:
        return self.late or (self.most is not None and len(self.trials) >= self.most)

    def _climb(self, bracket: Sequence[Answer], ladder: Sequence[Rung]) -> None:
        level: Sequence[Answer] = bracket
        for number, rung in enumerate(ladder):
            above = list(zip(ladder[number + 1 :], self.folds[number + 1 :], strict=False))
            tried = self._wave([(one, number, rung) for one in level], above)
            ended = best(self._allowed(tried), self.better)
            # Of a bracket that was cut short, a third of those that started climbs.
            level = [trial.answer for trial in ended[: math.ceil(len(ended) / FACTOR)]]
            if not level or self._over():
                return

    def _settle(self, ladder: Sequence[Rung]) -> None:
        """Where time was too short for any way to fine-tune to climb, judge the best one after all.

        That is on all folds, on the highest rung that there is time for.
        """
        judged = any(not trial.answer.cheap for trial in self.eligible())
        if self.clock.limit is None or judged:
            return
        tuned = [trial for trial in self.trials if not trial.answer.cheap]
        for trial in best(self._allowed(tuned), self.better)[:1]:
            for number, rung in reversed(list(enumerate(ladder))):
                if self._over() or self._wave([(trial.answer, number, rung)], (), self.folds[-1]):
                    return

    def _wave(
        self,
        asked: Sequence[tuple[Answer, int | None, Rung | None]],
        above: Sequence[tuple[Rung, Sequence[int]]],
        on: Sequence[int] = (),
    ) -> list[Trial]:
        """Run trials that do not wait for each other's results; returns those that started.

        ``above``: the rungs that the best of them may still climb, and their folds. ``on``: the
        folds of the trials, if not those of their rungs.
        """
        started: list[Trial] = []
        parts: list[TrialRun] = []
        owner: dict[str, Trial] = {}
        for answer, number, rung in asked:
            folds = on or self.folds[-1 if number is None else number]
            try:
                trial = self.maker.trial(answer, number, rung, folds)
            except XModalError as error:
                self._leave_out(answer.name, str(error))
                continue
            parts += trial.parts
            owner |= {str(part.directory): trial for part in trial.parts}
        refused: set[str] = set()
        path: Sequence[tuple[Rung, Sequence[int]]] | None = None

        def may_start(part: TrialRun) -> bool:
            nonlocal path
            trial = owner[str(part.directory)]
            if trial in started:
                return self.clock.left() > 0 or not self.eligible()
            if not self.trials:  # however short the time is, there is an answer
                started.append(trial)
                self.trials.append(trial)
                return True
            if trial.name in refused or self._over():
                return False
            # The first way to fine-tune is always worth a start: before it, nothing is known.
            if path is None and self.clock.expected(trial.answer.name, trial.cost):
                path = self._affordable(trial, above)
            reserve = self._reserve(trial, path or ())
            if not self.clock.allows(trial.answer.name, trial.cost, reserve):
                refused.add(trial.name)
                return False
            started.append(trial)
            self.trials.append(trial)
            return True

        self._work(parts, may_start, owner)
        if self.most is None:
            tried = {trial.name for trial in self.trials}  # on fewer folds, too
            late = {trial.name for trial in owner.values()} - tried
            self.left_out |= dict.fromkeys(sorted(late), TOO_LATE)
        return started

    def _affordable(
        self, trial: Trial, above: Sequence[tuple[Rung, Sequence[int]]]
    ) -> Sequence[tuple[Rung, Sequence[int]]]:
        """How far up a trial can climb in the time that is left: time is kept for that."""
        name, cost = trial.answer.name, trial.cost
        paths = (above[:count] for count in range(len(above), 0, -1))
        return next(
            (p for p in paths if self.clock.allows(name, cost, self._reserve(trial, p))), ()
        )

    def _reserve(self, trial: Trial, path: Sequence[tuple[Rung, Sequence[int]]]) -> float:
        """Seconds that the first run of a trial must leave.

        They are for its other runs, for the rungs and folds of ``path``, for the folds that the
        last of these lacks to be chosen, and for the last fit.
        """
        name = trial.answer.name
        own = self.clock.expected(name, trial.cost)
        waiting = max(1, sum(not part.done for part in trial.parts))
        climbs = [(self.clock.expected(name, trial.work_of(r)), len(folds)) for r, folds in path]
        last, judged = climbs[-1] if climbs else (own, len(trial.parts))
        turns = [(own, waiting), *climbs, (last, len(self.folds[-1]) - judged)]
        runs = sum(each * math.ceil(count / self.jobs) for each, count in turns) - own
        refits = self._last_fits(self.eligible()[: self.spare])
        return runs + max(_refit(trial) * last, refits) + REPORT

    def _last_fits(self, trials: Sequence[Trial]) -> float:
        """Seconds that the last fits of trials take: they go by what the trials have taken."""
        each = [_refit(trial) * trial.seconds() / len(trial.parts) for trial in trials]
        return max([*each, sum(each) / self.jobs]) if each else 0.0

    def _work(
        self,
        parts: Sequence[TrialRun],
        may_start: Callable[[TrialRun], bool],
        owner: Mapping[str, Trial] | None = None,
    ) -> None:
        """Run parts in order, ``jobs`` at a time, until the clock has run out."""
        waiting, running, begun = list(parts), dict[str, TrialRun](), dict[str, float]()
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    part = waiting.pop(0)
                    fresh = not part.done
                    if not may_start(part):
                        continue
                    name = str(part.directory)
                    if fresh:
                        self.launcher.submit([_job(part, owner is None, self.plugin_files)])
                        running[name], begun[name] = part, self.clock.spent()
                    elif owner is not None:
                        self._ended(part, owner[name], fresh=False)
                self.launcher.wait(PAUSE)
                unfinished = self.launcher.unfinished()
                for name in [name for name in running if name not in unfinished]:
                    part = running.pop(name)
                    if owner is not None:
                        self._ended(part, owner[name], fresh=True)
                if owner is None or self.clock.limit is None:
                    continue
                # What ends now may be the best, and has to be fitted once more.
                since = [(self.clock.spent() - begun[one], owner[one]) for one in running]
                again = max((_refit(one) * took for took, one in since), default=0.0)
                reserve = max(self._last_reserve(), again + REPORT - OVER * self.clock.limit)
                if self.clock.left() <= reserve and self.eligible():
                    self.late = True
                    if running:
                        self.launcher.stop()
                    for name, part in running.items():
                        if part.done:  # in the meantime
                            self._ended(part, owner[name], fresh=True)
                        else:
                            self._leave_out(owner[name].name, STOPPED)
                    return
        except BaseException:
            self.launcher.stop()
            raise

    def _last_reserve(self) -> float:
        """Seconds that the last fits of the best trials so far need."""
        found = self.eligible()[: self.spare]
        if not found or self.clock.limit is None:
            return 0.0
        return min(self._last_fits(found) + REPORT, 0.5 * self.clock.limit)

    def _ended(self, part: TrialRun, trial: Trial, fresh: bool) -> None:
        """Take note of a run that has ended."""
        if not part.done:
            self._leave_out(trial.name, _why(last_lines(part.directory / LOG)))
            return
        if fresh:
            self.clock.learn(trial.answer.name, trial.cost, took(part.result["seconds"]))
        # Several of its runs may have ended since the last look: it is told once.
        if trial.done and trial.key not in self._told:
            self._told.add(trial.key)
            score = trial.score()
            said = "no number" if score is None else f"{score:.4g}"
            again = "" if fresh else " (kept)"
            self.say(f"{trial.name}: {said}, {trial.seconds():.1f} s{again}")
            if why := self.limits.broken(trial):
                self._leave_out(trial.name, why)

    def _leave_out(self, name: str, reason: str) -> None:
        if name not in self.left_out:
            self.left_out[name] = reason
            self.say(f"left out: {name}: {reason.splitlines()[0]}")


def _refit(trial: Trial) -> float:
    """What the last fit of a trial takes, as a multiple of one of its runs."""
    return REFIT if trial.answer.cheap else REFIT_STEPS


def _why(log: str) -> str:
    """What a log says of the end of a run: its error and what follows."""
    lines = log.splitlines()
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    return "\n".join(lines[errors[-1] :] if errors else lines[-1:]) or "it was ended"


def _job(part: TrialRun, report: bool, plugin_files: Sequence[str]) -> Job:
    part.prepare()
    folder = part.directory
    options = [*([] if report else ["--no-report"]), *as_options(plugin_files)]
    return Job(str(folder), (*command(folder), *options), folder / LOG)
