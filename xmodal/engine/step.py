"""One optimizer step: the gradients of all micro-batches, checks, one clip, one update.

``HostStep`` looks at every loss before it updates. On a GPU that would wait for the kernels in
every step, so ``DeviceStep`` leaves the decision to the device: a flag that the update obeys. Its
numbers arrive a few steps later.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from xmodal.batch import Batch, Progress
from xmodal.engine import distributed
from xmodal.engine.averages import Averages
from xmodal.engine.capture import Capture, fill
from xmodal.engine.memory import is_out_of_memory, without_retry
from xmodal.engine.profiling import span
from xmodal.engine.session import RunSession
from xmodal.errors import TrainingError
from xmodal.interfaces import Stage
from xmodal.text import shortlist

Named = Sequence[tuple[str, nn.Parameter]]

LAG = 4
"""Steps that may be on their way to the device before the numbers of the first are read."""


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step; ``number`` counts the steps of the run, this one included.

    ``seconds`` since the record before, if the device works on several steps at once.
    """

    progress: Progress
    loss: float
    log: Mapping[str, float]
    lr: float
    gradient_norm: float
    seconds: float
    number: int = 0


class Stepper(Protocol):
    """Takes the optimizer steps of a stage."""

    def take(self, micro_batches: Iterable[Any], at: Progress, number: int) -> int:
        """Take step ``number`` of the run. Returns how many samples went through the encoder."""

    def records(self, wait: bool) -> Iterator[StepRecord]:
        """The steps whose numbers are known now, in order; all that were taken if ``wait``.

        Raises TrainingError at a step whose loss or gradient is not finite. Neither that step nor a
        later one has then updated anything.
        """


@dataclass(eq=False)
class _Steps:
    """What all steps of a stage work with. ``encoded`` counts samples, ``clock`` seconds.

    ``averages``: those of the weights, if the stage wants them.
    """

    session: RunSession
    stage: Stage
    trainable: Named
    optimizer: torch.optim.Optimizer
    encoded: Callable[[], int]
    clock: Callable[[], float]
    averages: Averages | None


@dataclass(eq=False)
class HostStep(_Steps):
    """Steps that look at their numbers before they update: on CPUs, and in several processes."""

    _taken: list[StepRecord] = field(default_factory=list, init=False)

    def take(self, micro_batches: Iterable[Any], at: Progress, number: int) -> int:
        """Take a step. Raises TrainingError before anything is updated."""
        session, stage, optimizer = self.session, self.stage, self.optimizer
        begun, before = self.clock(), self.encoded()
        optimizer.zero_grad(set_to_none=True)
        if stage.divides:
            distributed.overwrite(session.model.mixer.buffers(), session.world)
            session.draw_apart(number - 1)
        tally = _Tally()
        # All processes stop below; one that stopped here would leave the others waiting.
        try:
            for micro in micro_batches:
                with span("forward"):
                    loss, log = stage.loss(session, micro, at)
                    value = tally.add(loss, log, micro.part if isinstance(micro, Batch) else 1.0)
                if not math.isfinite(value):
                    break
                with span("backward"):
                    loss.backward()  # type: ignore[no-untyped-call]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            tally.out_of_memory = True
        tally.encoded = self.encoded() - before
        mean_loss, means, encoded = self._gather(tally)
        _check_loss(mean_loss, means, at)
        distributed.average_gradients([p for _, p in self.trainable], session.world)
        parameters = [p for _, p in self.trainable if p.grad is not None]
        norm = torch.linalg.vector_norm(_norms([p.grad for p in parameters if p.grad is not None]))
        gradient_norm = float(norm)
        _check_gradient(gradient_norm, self.trainable, at)
        limit = stage.clip()
        if limit is not None:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        lr = float(optimizer.param_groups[0]["lr"])
        with span("update"), without_retry("the update"):
            optimizer.step()
            if self.averages is not None:
                share = torch.tensor(self.averages.share(at), device=session.device)
                self.averages.update(share)
        seconds = self.clock() - begun
        self._taken.append(StepRecord(at, mean_loss, means, lr, gradient_norm, seconds, number))
        return encoded

    def records(self, wait: bool) -> Iterator[StepRecord]:
        """The steps since the last call: their numbers are known at once."""
        taken, self._taken = self._taken, []
        yield from taken

    def _gather(self, own: _Tally) -> tuple[float, dict[str, float], int]:
        """The loss, the mean log and the encoded samples of a step over all processes.

        Raises MemoryError in all of them if one was out of memory.
        """
        tallies: list[_Tally] = self.session.gather([own])
        if any(tally.out_of_memory for tally in tallies):
            raise MemoryError
        # Work that is not divided was done by every process alike: count the first one's.
        encoded = sum(t.encoded for t in (tallies if self.stage.divides else [own]))
        micros = sum(t.micros for t in tallies)
        names = dict.fromkeys(name for t in tallies for name in t.log)
        means = {name: sum(t.log.get(name, 0.0) for t in tallies) / micros for name in names}
        return sum(t.loss for t in tallies) / len(tallies), means, encoded


@dataclass
class _Tally:
    """What one process computed in a step: sums over its micro-batches."""

    loss: float = 0.0
    log: dict[str, float] = field(default_factory=dict)
    micros: float = 0.0
    encoded: int = 0
    out_of_memory: bool = False

    def add(self, loss: Tensor, log: Mapping[str, Tensor | float], part: float) -> float:
        """Count a micro-batch, or the ``part`` of one that this process had; returns its loss."""
        # The loss and all logged tensors reach the CPU in one transfer.
        tensors = {name: value for name, value in log.items() if isinstance(value, Tensor)}
        value, *logged = torch.stack([loss.detach(), *tensors.values()]).tolist()
        numbers = {name: float(v) for name, v in log.items() if not isinstance(v, Tensor)}
        numbers.update(zip(tensors, logged, strict=True))
        self.loss += value
        self.micros += part
        for name, number in numbers.items():
            self.log[name] = self.log.get(name, 0.0) + part * number
        return float(value)


# --- steps that ask the device nothing ---


@dataclass(frozen=True)
class Computed:
    """What a step left on the device: ``numbers`` float64 are loss, gradient norm and ``names``.

    ``constants``: what the host adds to them or beside them, the same in all steps of a form.
    """

    numbers: Tensor
    names: tuple[str, ...]
    constants: Mapping[str, float]
    encoded: int


@dataclass(frozen=True)
class _Sent:
    """A step that is on its way: its numbers on the host are valid after ``arrived``."""

    computed: Computed
    host: Tensor
    arrived: torch.cuda.Event | None
    progress: Progress
    lr: float
    number: int
    begun: float


@dataclass(eq=False)
class DeviceStep(_Steps):
    """Steps that never wait for the device, captured as graphs where ``capture`` is given.

    If a loss or a gradient is not finite, a flag on the device keeps this and all later updates
    from changing anything, until the host learns of it.
    """

    capture: Capture[Computed] | None
    lag: int = LAG

    def __post_init__(self) -> None:
        device = self.session.device
        self._bad = torch.zeros((), device=device)
        self._norms = torch.zeros(len(self.trainable), device=device)
        self._limit: float | None = None
        self._rates = torch.zeros(len(self.optimizer.param_groups), device=device)
        self._share = torch.zeros((), device=device)  # how far averages go in this step
        # The fused optimizers skip the update, moments and weight decay too, where this is 1.
        self.optimizer.found_inf = self._bad  # type: ignore[attr-defined]
        _prepare_momentum(self.optimizer)
        self._sent: deque[_Sent] = deque()
        self._seen = 0.0

    @staticmethod
    def fits(session: RunSession, optimizer: torch.optim.Optimizer) -> bool:
        """Whether this session and optimizer can take such steps."""
        fused = all(group.get("fused") for group in optimizer.param_groups)
        # A class of its own may do anything in a step.
        known = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
        return known and fused and session.world == 1

    def take(self, micro_batches: Iterable[Any], at: Progress, number: int) -> int:
        """Send a step to the device."""
        begun = self.clock()
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        fill(self._rates, torch.tensor(rates))
        if self.averages is not None:
            fill(self._share, torch.tensor(self.averages.share(at)))
        self._limit = self.stage.clip()
        if self.capture is None:
            computed = self.compute(micro_batches, at)
        else:
            settings = _settings(self.optimizer, self._limit)
            if self._hooked():
                self.capture.give_up("calls hooks of its optimizer")
            computed = self.capture.run(self.compute, micro_batches, at, self._idle, settings)
        host, arrived = _to_host(computed.numbers)
        self._sent.append(_Sent(computed, host, arrived, at, rates[0], number, begun))
        return computed.encoded

    @property
    def outdated(self) -> bool:
        """Whether steps are captured, but would be others now (``Capture.outdated``)."""
        return self.capture is not None and self.capture.outdated

    def records(self, wait: bool) -> Iterator[StepRecord]:
        """The steps whose numbers have been read: all but the last few, unless ``wait``."""
        while len(self._sent) > (0 if wait else self.lag):
            sent = self._sent.popleft()
            if sent.arrived is not None:
                with span("waiting for the GPU"):
                    sent.arrived.synchronize()
            loss, norm, *logged = sent.host.tolist()
            log = dict(sent.computed.constants)
            for name, value in zip(sent.computed.names, logged, strict=True):
                # Of one name, some micro-batches may log constants.
                log[name] = log.get(name, 0.0) + value
            _check_loss(loss, log, sent.progress)
            self._check_norm(norm, sent.progress)
            now = self.clock()
            seconds, self._seen = now - max(sent.begun, self._seen), now
            yield StepRecord(sent.progress, loss, log, sent.lr, norm, seconds, sent.number)

    def _hooked(self) -> bool:
        optimizer = self.optimizer
        return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)

    def compute(self, micro_batches: Iterable[Any], at: Progress) -> Computed:
        """Queue all kernels of a step. Asks the device nothing, so that it can be captured."""
        before = self.encoded()
        self.optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        sums: dict[str, Tensor] = {}
        constants: dict[str, float] = {}
        micros = 0.0
        for micro in micro_batches:
            part = micro.part if isinstance(micro, Batch) else 1.0
            with span("forward"):
                loss, log = self.stage.loss(self.session, micro, at)
            with span("backward"):
                loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach().double())
            micros += part
            for name, value in log.items():
                if isinstance(value, Tensor):
                    known = sums.get(name)
                    value = part * value.detach().double()
                    sums[name] = value if known is None else known + value
                else:
                    constants[name] = constants.get(name, 0.0) + part * value
        total = torch.stack(losses).sum()
        with span("update"):
            norm = self._update(total)
        names = tuple(sums)
        numbers = torch.stack([total, norm.double(), *(sums[name] / micros for name in names)])
        fixed = {name: value / micros for name, value in constants.items()}
        return Computed(numbers, names, fixed, self.encoded() - before)

    @contextmanager
    def _idle(self) -> Iterator[None]:
        """A block in which the flag keeps steps from updating anything."""
        before = self._bad.clone()
        self._bad.fill_(1)
        try:
            yield
        finally:
            self._bad.copy_(before)

    def _update(self, loss: Tensor) -> Tensor:
        """Clip and update, unless a number is not finite; returns the gradient norm."""
        parameters = [p for _, p in self.trainable if p.grad is not None]
        with torch.no_grad():
            own = _norms([p.grad for p in parameters if p.grad is not None])
            norm: Tensor = torch.linalg.vector_norm(own)
            norms = iter(own)
            none = self._bad.new_zeros(())
            every = torch.stack(
                [none if p.grad is None else next(norms) for _, p in self.trainable]
            )
            # Keep the norms of the first bad step: they tell the user which gradient it was.
            self._norms.copy_(torch.where(self._bad == 0, every, self._norms))
            bad = ~(loss.isfinite() & norm.isfinite())
            self._bad.copy_(torch.maximum(self._bad, bad.float()))
        if self._limit is not None:
            nn.utils.clip_grads_with_norm_(parameters, self._limit, norm)
        with self._rates_on_device(), without_retry("the update"):
            self.optimizer.step()
            if self.averages is not None:
                self.averages.update(self._share * (self._bad == 0))
        return norm

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """Let the update read the learning rates from the device: a graph replays numbers."""
        groups = self.optimizer.param_groups
        capturing = self._rates.is_cuda and torch.cuda.is_current_stream_capturing()
        kept = [dict(group) for group in groups]
        try:
            for group, rate in zip(groups, self._rates.unbind(), strict=True):
                group["lr"] = rate
                if "capturable" in group:
                    group["capturable"] = capturing
            yield
        finally:
            for group, old in zip(groups, kept, strict=True):
                group.update(old)

    def _check_norm(self, norm: float, at: Progress) -> None:
        if math.isfinite(norm):
            return
        found = zip(self.trainable, self._norms.tolist(), strict=True)
        bad = [name for (name, _), value in found if not math.isfinite(value)]
        # Each could be squared, but their sum could not.
        first = shortlist(bad or [name for name, _ in self.trainable], 5)
        raise TrainingError(
            f"the gradient is not finite, or too large to be squared, at {_place(at)}, "
            f"first in: {first}\n{_ADVICE}"
        )


def _norms(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of every gradient: ``nn.utils.get_total_norm`` without looking for devices."""
    return torch.stack([norm.float() for norm in torch._foreach_norm(list(gradients))])


def _settings(optimizer: torch.optim.Optimizer, limit: float | None) -> dict[str, Any]:
    """What the update reads from Python, by name, and may change from step to step."""
    settings: dict[str, Any] = {"the clip": limit}
    for number, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            if name not in ("params", "lr", "capturable"):
                plain = value.tolist() if isinstance(value, Tensor) else value
                settings[f"{name} of parameter group {number}"] = plain
    return settings


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer wants to compute the loss itself, as LBFGS does."""
    closure = signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is Parameter.empty


def _prepare_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Start momentum at 0, as the first step would: a step that is skipped must find it."""
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def _to_host(numbers: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy on the host and the event after which it is valid; replays overwrite ``numbers``."""
    if not numbers.is_cuda:
        return numbers.clone(), None
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return host, arrived


# --- numbers that are not finite ---

_ADVICE = (
    "nothing was updated; the last checkpoint is good. "
    "Try a lower stages.N.optimizer.lr, a stages.N.clip, or precision=fp32"
)


def _check_loss(loss: float, log: Mapping[str, float], at: Progress) -> None:
    """Raise TrainingError, before anything is updated, if the loss is not finite."""
    if math.isfinite(loss):
        return
    parts = ", ".join(f"{k} {v:.4g}" for k, v in log.items())
    raise TrainingError(f"the loss is {loss} at {_place(at)} ({parts})\n{_ADVICE}")


def _check_gradient(norm: float, named: Named, at: Progress) -> None:
    """Raise TrainingError, before the update, if the gradient norm is not finite."""
    if math.isfinite(norm):
        return
    gradients = {name: p.grad for name, p in named if p.grad is not None}
    bad = [name for name, grad in gradients.items() if not bool(grad.isfinite().all())]
    if bad:
        what = f"not finite at {_place(at)}, first in: {shortlist(bad, 5)}"
    else:
        largest = max(gradients, key=lambda name: float(gradients[name].abs().max()))
        what = f"too large to be squared at {_place(at)}, largest in: {largest}"
    raise TrainingError(f"the gradient is {what}\n{_ADVICE}")


def _place(at: Progress) -> str:
    return f"stage {at.stage}, epoch {at.epoch + 1}, step {at.step + 1}"
