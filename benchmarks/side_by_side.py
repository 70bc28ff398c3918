"""Trainings that take turns in one process: the engine's, and loops written by hand."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from xmodal.batch import Batch, Progress
from xmodal.data import loader
from xmodal.engine.loop import StepRecord, Training
from xmodal.engine.session import RunSession
from xmodal.steps import Make, answered_by, on_device


class ByHand:
    """The loop that people write: autocast, fused AdamW, data on the device, nothing waits.

    ``alike``: with the kernels that the engine runs in bf16, instead of autocast's.
    ``graphed``: the whole step is one CUDA graph. Where the method mixes with a source, what is
    drawn on the host stays as in the first step then: nothing is drawn or copied.
    """

    def __init__(self, session: RunSession, alike: bool = False, graphed: bool = False) -> None:
        stage, device = session.stages[-1], session.device
        self.session, self.graphed = session, graphed
        self.model = copy.deepcopy(session.model).train()
        if not alike:
            self.model.backbone.native_bf16 = False
        named = self.model.select_trainable(stage.train)
        self.trained = [parameter for _, parameter in named]
        given = stage.config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.trained,
            lr=torch.tensor(given.lr, device=device) if graphed else given.lr,
            betas=given.betas,
            weight_decay=given.weight_decay,
            fused=True,
            capturable=graphed,
        )
        self.limit = stage.clip()
        size = stage.config.batch.size
        self.x, self.y = (t.to(device) for t in loader.first(session.data.train, 2 * size))
        self.x_in, self.y_in = self.x[:size].clone(), self.y[:size].clone()
        self.source_in: tuple[Tensor, Tensor] | None = None
        if self.model.mixer.needs_source and session.source is not None:
            source_x, source_y = (t.to(device) for t in loader.first(session.source, size))
            self.source_in = source_x, source_y
        self.at = Progress(len(session.stages) - 1, 0, stage.epochs, 0, 2)
        self.fixed = _Fixed(self.at)
        self.graph: torch.cuda.CUDAGraph | None = None
        if graphed:
            self.graph = captured(self._whole, self._forget)

    def loss(self) -> Tensor:
        """Of the batch in the input buffers."""
        with self.session.autocast():
            if self.source_in is not None:
                batch = Batch(self.x_in, self.y_in, self.source_in)
                with self.fixed.answers() if self.graphed else nullcontext():
                    mixed, _ = self.model(batch, self.at)
                return mixed
            prediction = self.model.predict(self.x_in)
            loss: Tensor = self.model.loss(prediction, self.y_in).mean()
        return loss

    def _whole(self) -> None:
        self.loss().backward()
        if self.limit is not None:
            torch.nn.utils.clip_grad_norm_(self.trained, self.limit, foreach=True)
        self.optimizer.step()

    def step(self) -> None:
        """One optimizer step on samples drawn at random."""
        chosen = torch.randint(len(self.x), (len(self.x_in),), device=self.x.device)
        self.x_in.copy_(self.x[chosen])
        self.y_in.copy_(self.y[chosen])
        if self.graph is not None:
            self.graph.replay()
            return
        self._forget()
        self._whole()

    def _forget(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)


class _Fixed:
    """Answers ``from_host`` with what it gave the first time, on the device already."""

    def __init__(self, at: Progress) -> None:
        self.at = at
        self.given: list[Mapping[str, Any]] = []
        self.next = 0

    @contextmanager
    def answers(self) -> Iterator[None]:
        """A step."""
        self.next = 0
        with answered_by(self):
            yield

    def take(self, make: Make, device: torch.device) -> Mapping[str, Any]:
        """The values of the next call."""
        if self.next == len(self.given):
            values = make(self.at).items()
            self.given.append({name: on_device(value, device) for name, value in values})
        self.next += 1
        return self.given[self.next - 1]


def engine_steps(session: RunSession) -> Callable[[], None]:
    """The engine's own loop, a step a call."""
    records = Training(session).run()

    def step() -> None:
        while not isinstance(next(records), StepRecord):
            pass

    return step


def alternate(
    contenders: Mapping[str, Callable[[], object]], rounds: int, block: int
) -> dict[str, float]:
    """Milliseconds a call, with its work on the GPU: medians over blocks that take turns."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for n in range(rounds + 1):
        for name in list(contenders)[:: 1 if n % 2 else -1]:
            finish()
            begun = time.perf_counter()
            for _ in range(block):
                contenders[name]()
            finish()
            if n:  # the first round warms up, and captures
                times[name].append(1e3 * (time.perf_counter() - begun) / block)
    return {name: statistics.median(found) for name, found in times.items()}


def captured(
    once: Callable[[], object], before: Callable[[], object] = lambda: None
) -> torch.cuda.CUDAGraph:
    """A CUDA graph of ``once``, after three calls that warm up; ``before`` comes before each.

    Gradients must be forgotten before: they are then made inside the graph's own memory.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            before()
            once()
    torch.cuda.current_stream().wait_stream(side)
    before()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        once()
    return graph


def finish() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
