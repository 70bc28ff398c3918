"""Several runs in one process that take turns: a turn lasts until the next record of a run's loop.

A small run leaves a GPU idle most of the time. Here one thread queues the steps of several runs,
each in a CUDA stream of its own, and the GPU works on all of them. Each run computes what it
computes alone, to the last bit: nothing is batched over runs, and see ``engine.turns``.

What a run may find wrong with itself (an ``XModalError``) ends it as if it were alone. Any other
error may be a neighbour's doing (its memory, a kernel that broke the device). It leaves the run as
a crash would, "dead": whoever started it continues it alone.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby

import torch

from xmodal.data.store import Store
from xmodal.engine import device as devices
from xmodal.engine.observe import Observer
from xmodal.engine.plan import Plan
from xmodal.engine.process import Process, StopRequest, as_in_a_new_process, watch_signals
from xmodal.engine.run import Interrupted, Outcome, RunOrder, steps
from xmodal.engine.turns import OwnClock, OwnState, turns
from xmodal.errors import XModalError, file_errors
from xmodal.plugins import Registry

Result = Outcome | BaseException


@dataclass(frozen=True)
class Work:
    """A run to carry out. ``turn`` opens a block around every turn of it.

    ``ended`` is told, in the last turn, what came out, or what was raised.
    """

    plan: Plan
    order: RunOrder
    observer: Observer | None = None
    turn: Callable[[], AbstractContextManager[object]] = nullcontext
    ended: Callable[[Result], None] = lambda result: None


def execute_together(works: Sequence[Work], registry: Registry, store: Store) -> list[Result]:
    """What ``execute`` returns or raises for each run, in order.

    Runs that differ in device, precision or determinism, which belong to a process, follow one
    another. A signal lets all runs save and end, and none begin; KeyboardInterrupt is raised.
    """
    with watch_signals() as stop:
        members = [_Member(work, registry, store, stop, len(works) > 1) for work in works]
        for (device, *_), alike in groupby(sorted(members, key=_kind), key=_kind):
            _Pack(list(alike), device, stop).carry_out()
    return [member.result for member in members if member.result is not None]


class _Member:
    """A run of a pack: its steps, its own state between its turns, and what came out."""

    def __init__(
        self, work: Work, registry: Registry, store: Store, stop: StopRequest, shared: bool
    ) -> None:
        self.work = work
        self.clock = OwnClock()
        self.own: OwnState
        self.result: Result | None = None
        process = Process(lambda: nullcontext(stop), self.clock, shared)
        self.steps = steps(work.plan, work.order, registry, store, work.observer, process)

    def turn(self, act: Callable[[Generator[None, None, Outcome]], object] = next) -> bool:
        """One turn, in which ``act`` moves the run on. Returns whether it goes on."""
        self.own.put()
        self.clock.go()
        try:
            with self.work.turn():
                try:
                    with file_errors():
                        act(self.steps)
                except StopIteration as end:
                    self._end(end.value)
                except (Exception, SystemExit) as error:
                    self._end(error)
        finally:
            self.clock.stop()
            self.own.keep()
        return self.result is None

    def _end(self, result: Result) -> None:
        self.work.ended(result)
        self.result = result
        if isinstance(result, BaseException):
            _forget(result)


def _forget(error: BaseException | None) -> None:
    """Let go of what an error has seen on its way: the run's model and data."""
    seen: list[BaseException] = []  # errors can be causes of each other
    found = [error]
    while found:
        if (one := found.pop()) is not None and not any(one is other for other in seen):
            one.__traceback__ = None
            seen.append(one)
            found += [one.__cause__, one.__context__]


def _kind(member: _Member) -> tuple[str, str, bool]:
    """What runs must agree on to take turns. Deterministic ones go first.

    For cuBLAS keeps the work space with which the process first used it.
    """
    recipe = member.work.plan.recipe
    return recipe.device, recipe.precision, not recipe.deterministic


class _Pack:
    """Runs that take turns, on one device."""

    def __init__(self, members: Sequence[_Member], device: str, stop: StopRequest) -> None:
        self.waiting, self.active = deque(members), list[_Member]()
        self.stop = stop
        # A device that is not here is an error of every run, which finds it itself.
        self.name = devices.or_cpu(device, lambda note: None)
        self.device = devices.checked(self.name)

    def carry_out(self) -> None:
        """Take turns until every run has ended."""
        with as_in_a_new_process(), devices.current(self.name), turns(self.device):
            for member in self.waiting:
                member.own = OwnState(self.device)
            free = self._memory()[0]
            try:
                while self.waiting or self.active:
                    if self.stop.signal:
                        self._end_all(self.waiting, Interrupted(self.stop.signal))
                    elif self.waiting and self._fits(free):
                        self.active.append(self.waiting.popleft())
                    for member in tuple(self.active):
                        if member.result is None and not member.turn():
                            self._ended(member)
            except BaseException:
                for member in self.active:
                    member.turn(Generator.close)
                raise

    def _ended(self, member: _Member) -> None:
        """Make room where it is needed. A run that broke the device takes all others with it."""
        self.active.remove(member)
        result = member.result
        unexplained = isinstance(result, BaseException) and not isinstance(result, XModalError)
        if self.device.type != "cuda" or not (self.waiting or unexplained):
            return
        gc.collect()  # takes a while
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            self._end_all(self.active, error)
            self._end_all(self.waiting, error)

    def _end_all(self, members: list[_Member] | deque[_Member], error: Exception) -> None:
        """Raise an error in runs that would go on."""
        for member in members:
            member.turn(lambda steps: steps.throw(error))
        members.clear()

    def _fits(self, before: int) -> bool:
        """Whether there is room for one more run; ``before`` the first one, so much was free.

        Half of a GPU must be free, and twice what a run has taken on average.
        """
        if not self.active or self.device.type != "cuda":
            return True
        free, total = self._memory()
        taken = (before - free) / len(self.active)
        return free > max(2 * taken, total / 2)

    def _memory(self) -> tuple[int, int]:
        """Bytes of the GPU that are free, and all of them."""
        return torch.cuda.mem_get_info() if self.device.type == "cuda" else (0, 0)
