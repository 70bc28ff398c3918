"""States are copied at once, written in order, and never swept before a newer one is whole."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from xmodal import api
from xmodal.engine import checkpoint, saving
from xmodal.engine.loop import Snapshot
from xmodal.engine.observe import Silent
from xmodal.engine.process import STOPPING
from xmodal.engine.run import Interrupted
from xmodal.engine.saving import Saver, best_folder, step_folder
from xmodal.errors import DataError
from xmodal.recipe.recipe import Saving
from xmodal.runs import Run

from ..conftest import TINY


class Trained:
    """Stands for a training: its snapshot, its state, its weights."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self.model = model or nn.Linear(1, 1, bias=False)
        self.session, self.snapshot = SimpleNamespace(model=self.model), Snapshot()
        self.content: dict[str, Any] = {}

    def at(self, steps: int, best: int = 0, **content: Any) -> None:
        self.snapshot = at(steps, best)
        self.content = content

    def state(self) -> dict[str, Any]:
        return self.content

    def weights(self) -> dict[str, Any]:
        return self.model.state_dict()


def saver(
    path: Path, training: Trained, check: Callable[[], None] = lambda: None, **settings: Any
) -> Saver:
    return Saver(Run(path), "hash", Saving(**settings), training, check)  # type: ignore[arg-type]


def at(steps: int, best: int = 0) -> Snapshot:
    return Snapshot(total_steps=steps, best_steps=best)


def names(path: Path) -> list[str]:
    return sorted(p.name for p in (path / "checkpoints").iterdir())


def test_what_is_written_is_what_was_at_the_call(tmp_path: Path) -> None:
    weights, it = torch.zeros(1000, 50), Trained()
    odd = torch.arange(6.0).view(2, 3).t()  # another layout in memory
    with saver(tmp_path, it) as saved:
        for step in range(1, 6):
            weights.fill_(step)
            it.at(step, model={"a": weights, "b": weights[:2], "odd": odd})
            saved.save()
            weights.fill_(-1)
    for step in (4, 5):
        loaded = checkpoint.load(step_folder(Run(tmp_path), at(step)), "hash")["model"]
        assert torch.equal(loaded["a"], torch.full((1000, 50), float(step)))
        assert torch.equal(loaded["b"], torch.full((2, 50), float(step)))
        assert torch.equal(loaded["odd"], odd)
    assert len(names(tmp_path)) == 2  # ``keep``


def test_the_best_is_written_with_what_refers_to_it(tmp_path: Path) -> None:
    run, it = Run(tmp_path), Trained()

    def weigh(value: float) -> None:
        nn.init.constant_(it.model.weight, value)  # type: ignore[arg-type]

    with saver(tmp_path, it) as saved:
        for best in (1, 2):  # the second one replaces the first, which nothing refers to
            weigh(best)
            it.at(best, best)
            saved.keep_best()
        assert not (tmp_path / "checkpoints").exists()
        weigh(3)
        it.at(3, 2)
        saved.save()
        saved.flush()
        assert len(names(tmp_path)) == 2
        weigh(4)
        it.at(4, 4)
        saved.keep_best()
        weigh(5)
        saved.save_best()
        saved.save_final()
        weigh(6)
    found = [best_folder(run, at(n, n)) for n in (2, 4)] + [tmp_path / "final"]
    assert [float(checkpoint.load(folder)["model"]["weight"]) for folder in found] == [2, 4, 5]
    assert not best_folder(run, at(1, 1)).exists()


def test_a_checkpoint_goes_only_when_a_newer_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[list[str]] = []
    write = checkpoint.write

    def watched(folder: Path, *rest: Any) -> None:
        there.append(names(tmp_path) if (tmp_path / "checkpoints").exists() else [])
        write(folder, *rest)
        there.append(names(tmp_path))

    monkeypatch.setattr(checkpoint, "write", watched)
    it = Trained()
    with saver(tmp_path, it, keep=1) as saved:
        for step in (1, 2, 3):
            it.at(step)
            saved.save()
    counts = [len(entries) for entries in there]
    assert counts == [0, 1, 1, 2, 1, 2]
    assert names(tmp_path) == [step_folder(Run(tmp_path), at(3)).name]


def test_what_fails_in_the_thread_is_raised_by_the_next_call_or_the_end(tmp_path: Path) -> None:
    def gone() -> None:
        raise DataError("gone")

    saved = saver(tmp_path, Trained(), gone)
    saved.save()
    with pytest.raises(DataError, match="gone"):
        saved.save()
    saved.save()
    with pytest.raises(DataError, match="gone"):
        saved.__exit__(None, None, None)


def test_an_error_in_the_run_lets_the_write_end_and_stays_the_error(tmp_path: Path) -> None:
    it = Trained()
    it.at(1, x=torch.zeros(10**6))

    def fail(saved: Saver) -> None:
        with saved:
            saved.save()
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        fail(saver(tmp_path, it))
    assert checkpoint.load(step_folder(Run(tmp_path), at(1)))["x"].numel() == 10**6
    with pytest.raises(RuntimeError, match="crash"):
        fail(saver(tmp_path / "gone", it))


@pytest.mark.parametrize(
    ("settings", "passed", "before", "steps", "over", "due"),
    [
        ({}, 49.0, 0, 7, True, False),  # a save takes 1 s, and may take 2 % of the time
        ({}, 51.0, 0, 7, True, True),
        ({}, 51.0, 0, 7, False, False),
        ({}, 601.0, 0, 7, False, True),
        ({"every_minutes": None}, 10**6, 0, 7, False, False),
        ({"every_minutes": 0.5}, 31.0, 0, 7, False, True),
        ({"every_steps": 7}, 0.0, 6, 7, False, True),
        ({"every_steps": 7}, 0.0, 6, 9, False, True),  # several records at a time
        ({"every_steps": 7}, 0.0, 9, 13, False, False),
        ({"every_steps": 7}, 0.0, 14, 14, True, True),  # the step is saved, its epoch is not
        ({"every_steps": 7}, 0.0, 7, 8, True, False),
    ],
)
def test_when_a_save_is_due(
    settings: dict[str, Any],
    passed: float,
    before: int,
    steps: int,
    over: bool,
    due: bool,
    tmp_path: Path,
) -> None:
    it = Trained()
    it.at(before)
    saved = saver(tmp_path, it, **settings)
    it.at(steps)
    saved._cost, saved._saved_at = 1.0, time.monotonic() - passed
    assert saved.due(over) is due


def test_until_one_was_timed_a_save_is_taken_to_cost_something(tmp_path: Path) -> None:
    small = saver(tmp_path, Trained())
    large = saver(tmp_path, Trained(nn.Linear(1000, 10**5, device="meta")))
    assert small._cost == pytest.approx(saving._FILES, rel=1e-3)
    assert large._cost == pytest.approx(saving._FILES + 3 * 4 * 1001 * 10**5 / saving._BYTES)


class Signal(Silent):
    """Sends SIGTERM at a record."""

    def __init__(self, number: int) -> None:
        self.left = number

    def record(self, record: object) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


class Impatient(Silent):
    """Presses Ctrl-C at a record, once or twice."""

    def __init__(self, number: int, times: int) -> None:
        self.left, self.times = number, times

    def record(self, record: object) -> None:
        self.left -= 1
        for _ in range(self.times if self.left == 0 else 0):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("times", "said"), [(1, "interrupted; state saved"), (2, "interrupted; nothing to save yet")]
)
def test_ctrl_c_answers_at_once_and_ends_with_a_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, times: int, said: str
) -> None:
    with pytest.raises(Interrupted, match=f"{said}.*xmodal resume") as ended:
        api.run(
            "methods/pare", "tasks/darcy", scale="smoke", overrides=[*TINY],
            directory=tmp_path / "run", report=False, observer=Impatient(2, times),
        )  # fmt: skip
    assert ended.value.exit_code == 130
    assert [r.getMessage() for r in caplog.records].count(STOPPING) == 1
    assert Run(tmp_path / "run").state == "interrupted"
    assert bool(checkpoint.complete(tmp_path / "run" / "checkpoints", checkpoint.STEP)) is (
        times == 1
    )


def test_state_saved_is_said_when_it_is(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="state saved"):
        api.run(
            "methods/pare", "tasks/darcy", scale="smoke", overrides=[*TINY],
            directory=tmp_path / "run", report=False, observer=Signal(6),
        )  # fmt: skip
    run = Run(tmp_path / "run")
    (newest,) = checkpoint.complete(run.checkpoints, checkpoint.STEP)
    snapshot = Snapshot.of(checkpoint.load(newest, run.digest)["snapshot"])
    assert (snapshot.epoch, snapshot.step, snapshot.total_steps) == (1, 2, 5)
    # The first epoch is the best so far; nothing had saved it before.
    assert checkpoint.load(best_folder(run, snapshot), run.digest)["model"]
