"""Whether numbers stay: repeated, resumed, with other kernels, and after a step that went wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from workloads import MIDDLE, Bench

from xmodal import randomness
from xmodal.batch import Progress
from xmodal.engine import checkpoint
from xmodal.engine.capture import CannotBeCaptured
from xmodal.engine.loop import StepRecord, Training
from xmodal.engine.session import RunSession
from xmodal.errors import TrainingError

ROUNDING = 1e-3
"""Relative difference of losses, of the same mathematics in other kernels, after a few steps."""


EAGER = {
    "mona", "mona-pare", "orca", "orca-pare", "orca-published", "pare-by-distance", "recraft",
    "recraft-pare",
}  # fmt: skip
"""Methods with a stage that is not captured, because it measures."""


class Refused:
    """Stands for graphs: every step is refused, so that it runs operation by operation."""

    def aside(self) -> AbstractContextManager[None]:
        """Nothing to set apart."""
        return nullcontext()

    def capture(self, compute: Callable[[], Any]) -> Any:
        """Refuse."""
        raise CannotBeCaptured("was not to be captured")


@dataclass(frozen=True)
class Course:
    """What a training came to; ``saved``: the steps before its state was kept."""

    losses: tuple[float, ...]
    weights: Mapping[str, Tensor]
    encoded: int
    notes: tuple[str, ...]
    saved: int = 0


def trained(
    session: RunSession,
    save: tuple[int, Path] | None = None,
    restored: Path | None = None,
    apart: bool = False,
) -> Course:
    """Train to the end, with deterministic kernels.

    ``save``: keep the state when so many steps are known, in this folder, and stop there.
    ``apart``: not as the device does it, but on a GPU operation by operation, looking at every
    loss, and on a CPU with the steps of a GPU, without their graphs.
    """
    state = None if restored is None else checkpoint.load(restored)
    training = Training(session, state)
    if apart:
        training.graphs = None if session.device.type == "cuda" else Refused
    losses: list[float] = []
    saved = 0
    with randomness.Kernels(True, session.note):
        for record in training.run():
            if isinstance(record, StepRecord):
                losses.append(record.loss)
                if save is not None and len(losses) == save[0]:
                    checkpoint.save(save[1], training.state())
                    saved = training.snapshot.total_steps
                    break
    weights = {name: value.cpu() for name, value in session.model.state_dict().items()}
    encoded, notes = training.snapshot.encoded, tuple(session.notes)
    return Course(tuple(losses), weights, encoded, notes, saved)


def equal(one: Course, other: Course) -> bool:
    """Whether two trainings agree in every bit of their weights, losses and counts.

    One that was resumed has the losses of its own steps only.
    """
    a, b = one.weights, other.weights
    same = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    shared = one.losses[len(one.losses) - len(other.losses) :]
    return same and one.encoded == other.encoded and shared == other.losses


def distance(one: Course, other: Course) -> tuple[float, float]:
    """The largest difference of losses, relative, and of weights, relative to their tensor's."""
    losses = [
        abs(a - b) / max(abs(a), 1e-12) for a, b in zip(one.losses, other.losses, strict=True)
    ]
    weights = [0.0]
    for name, value in one.weights.items():
        a, b = value.double(), other.weights[name].double()
        if a.numel():
            weights.append(float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)))
    return max(losses, default=0.0), max(weights)


def again(bench: Bench) -> None:
    """Every method, with micro-batches and a smaller last batch: repeated, resumed, and eagerly.

    Plain fine-tuning and PaRe also with larger backbones, in bf16. A second run stops in the middle
    and a third resumes it: both halves must be those of the first, and so is the whole.
    """
    # Numbers come a few steps late: with fewer steps no place in the middle could be saved.
    small = (f"task.train={26 if bench.cuda else 10}", "training.epochs=2",
             "training.max_steps=null", "training.batch={size: 4, micro: 2}")  # fmt: skip
    for method in bench.methods:
        _again(bench, method, method, small if method != "baseline" else small[:1], "smoke")
    for shape in bench.smaller_shapes:
        given = (*shape.overrides, "precision=bf16", "training.epochs=2",
                 f"training.max_steps={7 if bench.cuda else 2}",
                 f"training.batch.size={shape.size}")  # fmt: skip
        for method in ("nft", "pare"):
            more = (MIDDLE,) if method == "pare" else ()
            _again(bench, f"{method} on {shape.name}", method, (*given, *more), None)


def _again(
    bench: Bench, name: str, method: str, overrides: Sequence[str], scale: str | None
) -> None:
    if bench.late():
        bench.report.add(name, "skipped: the time is over")
        return

    def make(*more: str) -> RunSession:
        return bench.session([f"methods/{method}", "tasks/darcy"], [*overrides, *more], scale)

    said, good = [], True
    try:
        whole = trained(make())
        count = len(whole.losses)
        middle = min(count // 2 + 2, count - 1)
        saved = bench.folder / f"saved-{len(bench.report.rows)}"
        half = trained(make(), save=(middle, saved)) if middle > 0 else None
        second = trained(make(), restored=saved if half else None)
        what = f"repeated, and resumed after {half.saved} of {count} steps" if half else "repeated"
        begun = half.losses if half else ()
        found = {what: equal(whole, second) and begun == whole.losses[: len(begun)]}
        if half and not found[what]:
            found["repeated only"] = equal(whole, trained(make()))
        if scale is None:
            recomputed = trained(make("activation_checkpointing=true"))
            found["with activation checkpointing"] = equal(whole, recomputed)
        good = all(found.values())
        said += [f"{what}: {'equal' if same else 'NOT EQUAL'}" for what, same in found.items()]
        other = trained(make(), apart=True)
        loss, weight = distance(whole, other)
        good &= loss < ROUNDING and whole.encoded == other.encoded
        said.append(f"against {'eager' if bench.cuda else 'device'} steps: loss {loss:.1g}, "
                    f"weights {weight:.1g}")  # fmt: skip
        if whole.encoded != other.encoded:
            said.append(f"encoded {whole.encoded}, but eagerly {other.encoded}")
        refused = [note for note in whole.notes if "CUDA graphs" in note]
        good &= not (bench.cuda and refused) or method in EAGER
        said += refused or ["captured"] * bench.cuda
        said += [note for note in whole.notes if "deterministic kernel" in note]
    except Exception as error:
        said, good = [*said, f"{type(error).__name__}: {error}"[:200]], False
    bench.report.add(name, good, "; ".join(said), wanted="bit-equal; to rounding; captured")
    bench.free()


# --- when something goes wrong ------------------------------------------------------------------


def wrong(bench: Bench) -> None:
    """A label that is infinite: nothing is updated, and the message names step and place."""
    good = 3
    common = ["task.train=16", "training.epochs=1", "training.batch={size: 2, micro: null}",
              "training.schedule={warmup_epochs: 0, decay: none}"]  # fmt: skip
    recipes = ["methods/nft", "tasks/darcy"]
    session = bench.session(recipes, [*common, "training.max_steps=8"], "smoke")
    order = session.order(Progress(0, 0, 1, 0, 8))

    def spoil(y: Tensor) -> None:
        y[order[2 * good]] = float("inf")

    bad = bench.session(recipes, [*common, "training.max_steps=8"], "smoke", change=spoil)
    training, said = Training(bad), ""
    try:
        with randomness.Kernels(True, bad.note):
            for _ in training.run():
                pass
    except TrainingError as error:
        said = str(error)
    few = trained(bench.session(recipes, [*common, f"training.max_steps={good}"], "smoke"))
    left = bad.model.state_dict()
    same = all(torch.equal(value, left[name].cpu()) for name, value in few.weights.items())
    bench.report.add("a bad step leaves the weights as they were", same, wanted="yes")
    named = f"epoch 1, step {good + 1}" in said
    first = (said.splitlines() or ["no message"])[0]
    bench.report.add("the message names epoch and step", named, first, wanted="yes")


def broken(bench: Bench) -> None:
    """A capture that breaks: the run goes on without graphs, draws as it should, and says why."""
    if not bench.cuda:
        bench.report.add("a broken capture", "skipped: only a GPU captures")
        return
    given = ["task.train=16", "training.epochs=1", "training.max_steps=4", "backbone.dropout=0.2"]

    def train(graphs: Any = None, breaks: bool = False) -> tuple[Mapping[str, Tensor], str]:
        session = bench.session(["methods/nft", "tasks/darcy"], given, "smoke")
        training = Training(session)
        training.graphs = graphs or training.graphs

        def wait(module: Any, inputs: Any) -> None:
            if breaks and torch.cuda.is_current_stream_capturing():
                torch.cuda.synchronize()  # what no capture survives

        session.model.backbone.register_forward_pre_hook(wait)
        with randomness.Kernels(True, session.note):
            for _ in training.run():
                pass
        notes = [note for note in session.notes if "CUDA graphs" in note]
        return session.model.state_dict(), "; ".join(notes)

    right, _ = train(Refused)
    left, note = train(breaks=True)
    same = all(torch.equal(value, right[name]) for name, value in left.items())
    bench.report.add("after it, a run is what it is without graphs", same, wanted="yes")
    bench.report.add("the note", "capturing" in note, note or "none", wanted="the reason")
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        train(breaks=True)
        bench.free()
    grown = (torch.cuda.memory_reserved() - before) / 1e6
    bench.report.add("memory that three more leave behind", grown, "MB", at_most=64.0)
    _, note = train()
    bench.report.add("the next run is captured", not note, note or "yes", wanted="yes")
