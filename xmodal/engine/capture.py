"""Captures optimizer steps as graphs and replays them.

A replayed step runs the kernels of a captured one on the same memory, without Python. So a step is
captured once for each of its forms: the shapes of its micro-batches, and the values of
``from_host`` that are not tensors. Everything else that changes is copied into fixed places before
a replay: the samples, and the tensors of ``from_host``, whose ``make``s are called anew.

Before a capture, the step runs three times for warming up, without an update: kernels are chosen
and memory is allocated then, and a step that cannot be captured is found out: one that asks the
device, or whose last two runs differ, though their inputs are equal. Whatever these runs changed is
put back. Every step that counts is a replay, so resumed and undisturbed runs are alike.
"""

from __future__ import annotations

import random
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from xmodal.batch import Batch, Progress
from xmodal.engine.graphs import Graphs
from xmodal.engine.memory import free, is_out_of_memory
from xmodal.engine.profiling import span
from xmodal.engine.python_state import PythonState, attributes
from xmodal.engine.session import RunSession
from xmodal.engine.writes import Writes
from xmodal.steps import Make, answered_by, on_device

T = TypeVar("T")

WARM_UPS = 3
"""The first may set up what later ones use; the last two must be alike."""
MOST_FORMS = 32
"""More forms than this cost more memory and time than replays save: something varies freely."""

_QUESTIONS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "equal", "bincount", "is_nonzero", "item", "linalg_eig",
}  # fmt: skip
"""Operations whose result, or its shape, the host has to wait for."""


_BY_PYTHON = "computes with numbers that Python code changes from step to step"
_VARIES = "asks from_host differently from time to time"


class CannotBeCaptured(Exception):
    """Why a step has to run operation by operation."""


@dataclass
class _Call:
    """One call of ``from_host``: its function, and where its values go."""

    make: Make
    fixed: Mapping[str, Any]
    places: Mapping[str, Tensor]

    @classmethod
    def of(cls, make: Make, values: Mapping[str, Any], device: torch.device) -> _Call:
        """A call with new places on ``device``, which hold ``values``."""
        places = {
            n: on_device(v, device).clone() for n, v in values.items() if isinstance(v, Tensor)
        }
        return cls(make, form_of(values), places)

    def fits(self, values: Mapping[str, Any]) -> bool:
        """Whether values of this form can go into the places."""
        return form_of(values) == self.fixed

    def fill(self, values: Mapping[str, Any]) -> None:
        """Copy values into the places."""
        for name, place in self.places.items():
            fill(place, values[name])


def fill(place: Tensor, value: Tensor) -> None:
    """Copy ``value`` into its place on the device, without waiting for it."""
    if place.is_cuda and not value.is_cuda:
        value = value.pin_memory()
    place.copy_(value, non_blocking=place.is_cuda)


def form_of(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """What decides which kernels a step has: all but the content of tensors."""
    return {
        name: (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value
        for name, value in values.items()
    }


@dataclass
class _Recorder:
    """Answers ``from_host`` while a step warms up and is captured.

    ``drawn`` holds what earlier calls of ``make`` gave for this step: it is drawn only once, in
    the block ``aside``.
    """

    drawn: list[Mapping[str, Any]]
    progress: Progress
    aside: Callable[[], AbstractContextManager[object]]
    calls: list[_Call] = field(default_factory=list)
    at: int = 0
    complete: bool = False

    def take(self, make: Make, device: torch.device) -> Mapping[str, Any]:
        """The values of the next call, tensors as the places that replays will fill."""
        if self.at == len(self.calls):
            if self.complete:
                raise CannotBeCaptured(_VARIES)
            if self.at == len(self.drawn):
                with self.aside():
                    self.drawn.append(make(self.progress))
            self.calls.append(_Call.of(make, self.drawn[self.at], device))
        call = self.calls[self.at]
        self.at += 1
        return {**self.drawn[self.at - 1], **call.places}

    def rewind(self) -> None:
        """Start again. The first time through, ``calls`` become complete."""
        if self.complete and self.at != len(self.calls):
            raise CannotBeCaptured(_VARIES)
        self.complete, self.at = True, 0


@dataclass
class _Once:
    """Answers ``from_host`` of a step that runs as usual, with what was drawn for it already."""

    drawn: list[Mapping[str, Any]]
    progress: Progress
    at: int = 0

    def take(self, make: Make, device: torch.device) -> Mapping[str, Any]:
        """The values of the next call."""
        values = self.drawn[self.at] if self.at < len(self.drawn) else make(self.progress)
        self.at += 1
        return {name: on_device(value, device) for name, value in values.items()}


@dataclass
class _Captured(Generic[T]):
    """A step that can be replayed."""

    calls: Sequence[_Call]
    replay: Callable[[], None]
    result: T


class ClosedProgress:
    """The progress of a captured step: only ``from_host`` may look at it."""

    def __getattr__(self, name: str) -> Any:
        raise CannotBeCaptured(f"reads progress.{name} outside of from_host")


class Capture(Generic[T]):
    """The captured steps of one stage."""

    _seen: Mapping[str, Any] | None = None

    def __init__(
        self,
        session: RunSession,
        graphs: Graphs,
        what: str,
        counting: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """``counting`` gives a block for one step that is not kept."""
        self.session, self.graphs, self.what, self.counting = session, graphs, what, counting
        self.given_up = False
        self._places: dict[Any, Tensor] = {}
        self._steps: dict[Any, list[_Captured[T]]] = {}
        self._settings: dict[str, Any] | None = None

    def run(
        self,
        compute: Callable[[Iterable[Any], Progress], T],
        micro_batches: Iterable[Any],
        at: Progress,
        idle: Callable[[], AbstractContextManager[object]],
        settings: Mapping[str, Any],
    ) -> T:
        """Take one step: a replay, or ``compute`` itself once it cannot be captured.

        ``idle`` gives a block in which ``compute`` updates nothing. ``settings``, by name: Python
        values of the update; a graph replays those that it was captured with.
        """
        if self.given_up:
            return compute(micro_batches, at)
        if self._settings is not None and settings != self._settings:
            self.give_up(f"changes {_first_change(self._settings, settings)} between steps")
            return compute(micro_batches, at)
        self._settings = dict(settings)
        drawn: list[Mapping[str, Any]] = []
        micros = list(micro_batches)
        step: _Captured[T] | None = None
        try:
            placed, key = self._placed(micros)
            steps = self._steps.setdefault(key, [])
            step = _fitting(steps, drawn, at)
            if step is None:
                if sum(map(len, self._steps.values())) == MOST_FORMS:
                    raise CannotBeCaptured(f"has more than {MOST_FORMS} forms")
                with idle(), _Unchanged(self.session) as unchanged:
                    inputs = _Recorder(drawn, at, unchanged.undone)
                    step = self._captured(compute, placed, inputs)
                steps.append(step)
                self._seen = attributes(self.session)
        except CannotBeCaptured as why:
            self.give_up(why)
        if step is None:
            # Not above: the reason holds on to everything that the failed attempt had made.
            free()
            with answered_by(_Once(drawn, at)):
                return compute(micros, at)
        for call, values in zip(step.calls, drawn, strict=True):
            call.fill(values)
        with span("replay"):
            step.replay()
        return step.result

    @property
    def outdated(self) -> bool:
        """Whether Python code has changed, since the last capture, what a replay does not read."""
        return bool(self._steps) and attributes(self.session) != self._seen

    def give_up(self, why: str | CannotBeCaptured) -> None:
        """Run this and all further steps operation by operation."""
        if self.given_up:
            return
        self.given_up = True
        self._steps.clear()
        self._places.clear()
        where = _origin(why) if isinstance(why, CannotBeCaptured) else ""
        self.session.note(f"{self.what} runs without CUDA graphs, which is slower: it {why}{where}")

    def _placed(self, micros: Sequence[Any]) -> tuple[list[Batch], Any]:
        """The micro-batches in fixed places, and their shapes."""
        placed, key = [], []
        for number, micro in enumerate(micros):
            if not isinstance(micro, Batch):
                raise CannotBeCaptured(f"takes {type(micro).__name__} for micro-batches")
            source = micro.source
            if source is not None:
                source = (
                    self._place((number, "source"), source[0]),
                    self._place((number, "source y"), source[1]),
                )
            further = micro.unlabelled
            if further is not None:
                further = self._place((number, "unlabelled"), further)
            x, y = self._place((number, "x"), micro.x), self._place((number, "y"), micro.y)
            index = micro.index
            if index is not None:
                index = self._place((number, "index"), index)
            batch = Batch(x, y, source, further, micro.share, micro.part, index)
            tensors = (x, y, *(source or (None, None)), further, index)
            shapes = tuple(None if t is None else (tuple(t.shape), t.dtype) for t in tensors)
            placed.append(batch)
            key.append((shapes, micro.share, micro.part))
        return placed, tuple(key)

    def _place(self, name: Any, tensor: Tensor) -> Tensor:
        """The fixed place of a tensor of this name and shape, with its values."""
        key = (name, tuple(tensor.shape), tensor.dtype)
        if key not in self._places:
            self._places[key] = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        self._places[key].copy_(tensor, non_blocking=True)
        return self._places[key]

    def _captured(
        self,
        compute: Callable[[Iterable[Any], Progress], T],
        micros: Sequence[Batch],
        inputs: _Recorder,
    ) -> _Captured[T]:
        """Warm a step up and capture it."""
        closed = cast(Progress, ClosedProgress())

        def once() -> T:
            result = compute(micros, closed)
            inputs.rewind()
            return result

        with answered_by(inputs):
            with self.graphs.aside():
                for _ in range(WARM_UPS - 2):
                    with self.counting():
                        once()
                with self._watched(), _Numbers() as one:
                    once()
                with _Numbers() as other:
                    once()
                if differing := one.differing(other):
                    raise CannotBeCaptured(f"{_BY_PYTHON} ({differing})")
            try:
                # Under a dispatch mode, torch takes other kernels for some operations.
                with _disable_current_modes():
                    replay, result = self.graphs.capture(once)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                first = str(error).strip().splitlines()[0]
                raise CannotBeCaptured(f"cannot be captured: {first}") from error
        return _Captured(inputs.calls, replay, result)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Find out what a replay would miss: random draws, counters and replaced buffers."""
        model = self.session.model
        places = {name: t.data_ptr() for name, t in _tensors(model)}
        draws, python = self._host_draws(), PythonState.of(self.session)
        yield
        if self._host_draws() != draws:
            raise CannotBeCaptured("draws random numbers outside of from_host")
        for name, tensor in _tensors(model):
            if tensor.data_ptr() != places.get(name):
                raise CannotBeCaptured(f"replaces its tensor {name} instead of writing into it")
        if where := python.changed(PythonState.of(self.session)):
            raise CannotBeCaptured(f"changes {where} in every step")

    def _host_draws(self) -> list[Any]:
        """The state of all random streams of the host."""
        states = [g.get_state().numpy().tobytes() for g in self.session.generators.values()]
        if self.session.device.type != "cpu":
            states.append(torch.get_rng_state().numpy().tobytes())
        numpy_state: Any = np.random.get_state(legacy=False)
        return [*states, repr(numpy_state), random.getstate()]


class _Unchanged:
    """A block after which the tensors of the model and all random streams are as before.

    After an error so is what components keep in Python. Not otherwise: what they have set up for
    later steps, a captured step uses.
    """

    def __init__(self, session: RunSession) -> None:
        self.session = session

    def __enter__(self) -> Self:
        self._buffers = [
            (module, name, buffer, buffer.clone())
            for module in self.session.model.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]
        self._parameters = [(m, dict(m._parameters)) for m in self.session.model.modules()]
        self._streams = self.session.random_state()
        self._python: PythonState | None = PythonState.of(self.session)
        self._writes = Writes(self.session.model.parameters())
        self._writes.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._writes.__exit__(kind, *error)  # type: ignore[no-untyped-call]
        python, self._python = self._python, None  # which would hold on to tensors
        if kind is not None and python is not None:
            python.restore()
        for module, parameters in self._parameters:
            module._parameters.update(parameters)
        self._writes.undo()
        for module, name, buffer, value in self._buffers:
            setattr(module, name, buffer)
            buffer.data.copy_(value)  # so that it does not look as if steps changed it
        self.session.set_random_state(*self._streams)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """A block inside of it that goes on with random streams and Python state, for good."""
        with _disable_current_modes():  # what happens here is not part of the step
            inside = self.session.random_state()
            if self._python is not None:
                self._python.restore()
            self.session.set_random_state(*self._streams)
            yield
            self._streams = self.session.random_state()
            self._python = PythonState.of(self.session)
            self.session.set_random_state(*inside)


class NoQuestions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations that would wait for the device, or read memory of the host."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in _QUESTIONS or (
            name == "repeat_interleave" and kwargs.get("output_size") is None
        ):
            raise CannotBeCaptured(f"asks the device for numbers ({name})")
        if name in ("index", "index_put", "index_put_"):
            chosen = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in chosen):
                raise CannotBeCaptured("chooses by a mask, which gives any number of elements")
        if name in ("lift_fresh", "lift_fresh_copy"):
            raise CannotBeCaptured("makes a tensor of Python numbers")
        result = func(*args, **kwargs)
        if name in ("_to_copy", "copy_") and _crosses(args, result):
            raise CannotBeCaptured("copies between host and device")
        return result


def _crosses(args: Sequence[Any], result: Any) -> bool:
    tensors = [t for t in (*args, result) if isinstance(t, Tensor)]
    return len({tensor.device.type for tensor in tensors}) > 1


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


class _Numbers(NoQuestions):  # type: ignore[no-untyped-call]
    """Collects the numbers that operations are given by Python."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._given: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        leaves = tree_leaves((args, kwargs or {}))
        numbers = [leaf for leaf in leaves if isinstance(leaf, bool | int | float | complex)]
        self._given[func.overloadpacket.__name__, repr(numbers)] += 1
        return super().__torch_dispatch__(func, types, args, kwargs)

    def differing(self, other: _Numbers) -> str:
        """An operation that the other run had not, or not as often; empty if there is none."""
        only = [*(self._given - other._given), *(other._given - self._given)]
        return only[0][0] if only else ""


def _first_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return next(name for name in {**before, **now} if before.get(name) != now.get(name))


def _fitting(
    steps: Sequence[_Captured[T]], drawn: list[Mapping[str, Any]], at: Progress
) -> _Captured[T] | None:
    """The captured step of the form that this step has, if there is one.

    Fills ``drawn`` with what ``from_host`` gives in this step, as far as a captured step tells what
    it asks. Steps that agree so far ask the same next.
    """
    alive = list(steps)
    while alive:
        asked = len(drawn)
        if len(alive[0].calls) == asked:
            return alive[0]
        drawn.append(alive[0].calls[asked].make(at))
        alive = [step for step in alive if step.calls[asked].fits(drawn[asked])]
    return None


def _origin(why: BaseException) -> str:
    """Where the reason arose: the last line of a component."""
    skipped = (Path(__file__).parent, Path(torch.__file__).parent, Path(traceback.__file__).parent)
    for frame in reversed(traceback.extract_tb(why.__traceback__)):
        path = Path(frame.filename)
        own = any(path.is_relative_to(folder) for folder in skipped[:2])
        if not own and path.parent != skipped[2] and path.name != "steps.py":
            return f" ({path.name}, line {frame.lineno})"
    return ""
