"""Out of memory: half as many samples at once, from the state before the step, and as noted."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xmodal import api, runs
from xmodal.engine import checkpoint
from xmodal.engine.evaluate import evaluate
from xmodal.engine.loop import EpochRecord, Snapshot, Training
from xmodal.engine.memory import Before, OutOfMemory, device_errors, is_out_of_memory
from xmodal.engine.observe import Silent
from xmodal.engine.session import RunSession
from xmodal.engine.step import StepRecord
from xmodal.errors import MachineError
from xmodal.testing.running import StopAt, assert_same, weights

from ..conftest import TINY
from .tape import TapeGraphs
from .test_capture import session_of

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of ..."


class Limit:
    """Lets the encoder run out of memory with too many samples, after ``calls`` passes of it."""

    def __init__(
        self, session: RunSession, most: int, calls: int = 0, evaluating: bool = False
    ) -> None:
        self.most, self.calls, self.evaluating, self.model = most, calls, evaluating, session.model
        session.model.backbone.register_forward_hook(self.check)

    def check(self, module: Any, inputs: Any, features: Any) -> None:
        if self.model.training == self.evaluating:
            return
        self.calls -= 1
        if self.calls < 0 and len(inputs[0].x_BND) > self.most:
            raise torch.OutOfMemoryError(FULL)


def trained(session: RunSession, **options: Any) -> list[StepRecord | EpochRecord]:
    return list(Training(session, **options).run())


def state(session: RunSession) -> dict[str, torch.Tensor]:
    return dict(session.model.state_dict())


@pytest.mark.long
@pytest.mark.parametrize("method", ["nft", "pare"])
@pytest.mark.parametrize("graphs", [None, TapeGraphs])
def test_from_the_first_step_on_it_is_a_run_with_smaller_micro_batches(
    method: str, graphs: Callable[[], TapeGraphs] | None
) -> None:
    passes = 1 if method == "nft" else 2  # the encoder sees both views at once
    limited = session_of(method, "training.batch={size: 4, micro: null}")
    Limit(limited, 2 * passes)
    right = session_of(method, "training.batch={size: 4, micro: 2}")
    steps, wanted = trained(limited, graphs=graphs), trained(right, graphs=graphs)
    assert_same(state(limited), state(right))
    losses = [[r.loss for r in found if isinstance(r, StepRecord)] for found in (steps, wanted)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 9
    (note,) = [note for note in limited.notes if "out of memory" in note]
    assert note.startswith("out of memory with 4 samples at once: 2 from now on")
    assert limited.most_at_once == 2


def test_in_the_middle_nothing_of_the_failed_step_is_left() -> None:
    """Micro-batches of 2, 2 | 2, 2 | 2: the seventh pass, after a backward, is in epoch 2."""
    dropout = "selector.network=mlp-dropout"  # draws from the stream of the process
    limited = session_of("pare", dropout)
    Limit(limited, 2, calls=6)  # two views of one sample
    training = Training(limited)
    steps = [record for record in training.run() if isinstance(record, StepRecord)]
    right = session_of("pare", dropout)
    wanted = Training(right)
    for record in wanted.run():
        if isinstance(record, EpochRecord) and record.progress.epoch == 0:
            right.most_at_once = 1
    assert_same(state(limited), state(right))
    assert [step.number for step in steps] == list(range(1, 10))
    for name in ("encoded", "samples", "sums", "best_metric", "total_steps"):
        assert getattr(training.snapshot, name) == getattr(wanted.snapshot, name)
    for name, generator in limited.generators.items():
        assert torch.equal(generator.get_state(), right.generators[name].get_state())
    assert (training.snapshot.samples, training.snapshot.most_at_once) == (30, 1)


@pytest.mark.parametrize("draws", [True, False])
def test_streams_and_buffers_return_to_where_they_were(draws: bool) -> None:
    session = session_of("nft")
    session.model.register_buffer("moving", torch.zeros(2))
    session.model.register_buffer("still", torch.ones(2))

    def step() -> list[Any]:
        for generator in session.generators.values():
            torch.rand(1, generator=generator)
        session.model.get_buffer("moving").add_(1)
        host = [np.random.rand(), random.random()] if draws else []
        return [torch.rand(1).item(), float(session.model.get_buffer("moving")[0]), *host]

    for taken in range(3):
        before = Before(session)
        for _ in range(taken):
            step()
            before.remember()
        failed = step()
        before.restore()
        values = [list(g.get_state()) for g in session.generators.values()]
        assert step() == failed
        before.restore()
        assert values == [list(g.get_state()) for g in session.generators.values()]
        names = [name for name, _ in session.model.named_buffers()]
        if taken:
            assert [names[n] for n in before._moving] == ["moving"]


def test_running_statistics_return_as_well() -> None:
    """Kernels change them without counting it as other changes are counted."""
    session = session_of("nft")
    norm = torch.nn.BatchNorm1d(2)
    session.model.add_module("norm", norm)
    before = Before(session)
    norm(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    before.remember()
    expected = {name: value.clone() for name, value in norm.state_dict().items()}
    norm(torch.tensor([[-1.0, 0.0], [7.0, 5.0]]))
    assert not torch.equal(norm.state_dict()["running_var"], expected["running_var"])
    before.restore()
    assert_same(dict(norm.state_dict()), expected)


def test_a_capture_does_not_make_buffers_look_as_if_steps_changed_them() -> None:
    """All that look so are copied before every step."""
    session = session_of("nft")
    session.model.register_buffer("still", torch.ones(2))
    versions = [buffer._version for buffer in session.model.buffers()]
    tape = TapeGraphs()
    trained(session, graphs=lambda: tape)
    assert tape.captures > 0
    assert [buffer._version for buffer in session.model.buffers()] == versions


def test_with_one_sample_at_a_time_it_ends() -> None:
    session = session_of("nft")
    Limit(session, 0)
    with pytest.raises(OutOfMemory, match="out of memory with one sample at a time") as caught:
        trained(session)
    assert caught.value.exit_code == 4
    assert "precision=bf16" in str(caught.value)


def test_evaluation_goes_on_with_smaller_batches() -> None:
    whole, limited = session_of("nft", "task.validation=7"), session_of("nft", "task.validation=7")
    Limit(limited, 2, evaluating=True)
    scores = [evaluate(s, s.data.validation, keep=True) for s in (whole, limited)]
    assert limited.evaluation_batch == 2
    said = [note for note in limited.notes if "out of memory in evaluation" in note]
    assert "with 64 samples at once: 32 from now on" in said[0]
    assert "with 4 samples at once: 2 from now on" in said[-1]
    assert scores[1].metric == pytest.approx(scores[0].metric, rel=1e-5)
    assert scores[1].loss == pytest.approx(scores[0].loss, rel=1e-5)
    none = session_of("nft")
    Limit(none, 0, evaluating=True)
    with pytest.raises(OutOfMemory, match="in evaluation with 1 samples at once"):
        evaluate(none, none.data.validation)


class Limiting(StopAt):
    """Limits what a run can encode at once, and crashes after some records."""

    def __init__(self, most: int, records: int = 10**6, calls: int = 0) -> None:
        super().__init__(records)
        self.most, self.calls = most, calls

    def started(self, run: runs.Run, session: RunSession, resumed: bool) -> None:
        super().started(run, session, resumed)
        Limit(session, self.most, self.calls)
        self.session = session


def run(folder: Path, observer: Silent | None) -> api.Outcome:
    overrides = [*TINY, "training.batch={size: 4, micro: null}", "saving.every_steps=1"]
    return api.run(
        "methods/pare", "tasks/darcy", scale="smoke", overrides=overrides, directory=folder,
        report=False, observer=observer,
    )  # fmt: skip


def test_a_resumed_run_fetches_as_few_from_the_start(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", Limiting(4))
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "cut", Limiting(4, records=5))
    watched = Limiting(10**6)  # memory would suffice now
    resumed = run(tmp_path / "cut", watched)
    assert_same(weights(whole.run), weights(resumed.run))
    assert watched.session.at_once == 2
    for outcome in (whole, resumed):
        assert sum("2 from now on" in note for note in outcome.result["notes"]) == 1


def test_the_state_is_saved_when_nothing_helps(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", None)
    with pytest.raises(MachineError, match="out of memory with one sample at a time") as caught:
        run(tmp_path / "cut", Limiting(0, calls=4))
    assert "continue with: xmodal resume" in str(caught.value)
    assert "\n" not in str(caught.value)
    cut = runs.Run(tmp_path / "cut")
    newest = checkpoint.complete(cut.checkpoints, checkpoint.STEP)[0]
    snapshot = Snapshot.of(checkpoint.load(newest)["snapshot"])
    assert snapshot.most_at_once == 1
    # On a larger machine, and with as many at once as in the beginning, it is as if nothing was.
    state = checkpoint.load(newest)
    state["snapshot"]["most_at_once"] = None
    checkpoint.save(newest, state, cut.digest or "")
    assert_same(weights(whole.run), weights(run(tmp_path / "cut", None).run))


def test_which_errors_are_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    for words in ("CUDA error: out of memory\n", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"):
        assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def failing(error: Exception) -> None:
    with device_errors():
        raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError(FULL), "out of memory: CUDA out of memory. Tried to allocate 2.00"),
        (torch.AcceleratorError("CUDA error: unspecified launch failure\nmore", 719), "the device"),
    ],
)
def test_failures_of_a_device_are_one_line(error: Exception, said: str) -> None:
    with pytest.raises(MachineError, match=f"^{said}") as caught:
        failing(error)
    assert "\n" not in str(caught.value)


def test_mistakes_are_no_failures_of_a_device() -> None:
    for error in (
        RuntimeError("shapes do not fit"),
        torch.AcceleratorError("CUDA error: device-side assert triggered", 710),
    ):
        with pytest.raises(type(error)):
            failing(error)
