"""The average of the weights: its formula, what is scored and saved, and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xmodal import api, plugins, runs
from xmodal.batch import Progress
from xmodal.data.store import Store
from xmodal.engine.averages import Averages
from xmodal.engine.build import Builder
from xmodal.engine.evaluate import evaluate
from xmodal.engine.loop import EpochRecord, Training
from xmodal.engine.observe import Silent
from xmodal.engine.plan import compose_plan
from xmodal.engine.session import RunSession
from xmodal.testing.running import StopAt, assert_same, weights

from .tape import TapeGraphs

SMALL = [
    "task.train=10",
    "training.epochs=3",
    "training.max_steps=null",
    "training.batch={size: 4, micro: 2}",
]


def session_of(*overrides: str) -> RunSession:
    made = compose_plan(
        ["methods/nft-ema", "tasks/darcy"],
        plugins.registry(),
        Store(),
        [*SMALL, *overrides],
        "smoke",
    )
    builder = Builder(made, Store(), lambda line: None)
    return builder.session(builder.data())


def run(root: Path, *more: str, observer: Any = None) -> runs.Run:
    return api.run(
        "methods/nft-ema", "tasks/darcy", scale="smoke", root=root, report=False,
        overrides=[*SMALL, "saving.every_steps=1", *more], observer=observer or Silent(),
    ).run  # fmt: skip


def test_the_average_is_the_formula() -> None:
    """By hand: d_0 = 1/10, d_1 = 2/11, and later 0.5, where the warm-up is above it."""
    weight = nn.Parameter(torch.tensor([0.0]))
    averages = Averages([("weight", weight)], 0.5)
    expected, step = 0.0, 0
    for step, value in enumerate((1.0, 3.0, 2.0, 7.0)):
        weight.data.fill_(value)
        share = averages.share(Progress(0, step // 2, 3, step % 2, 2))
        averages.update(torch.tensor(share))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert float(averages.kept[0]) == pytest.approx(expected, rel=1e-6)
    assert averages.share(Progress(0, 50, 60, 1, 2)) == 0.5
    with averages.shown():
        assert float(weight.detach()) == pytest.approx(expected, rel=1e-6)
    assert float(weight.detach()) == 7.0
    averages.adopt()
    assert float(weight.detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("graphs", [None, TapeGraphs])
def test_a_stage_trains_as_without_and_leaves_the_average(graphs: Any) -> None:
    """An average beside the plain weights, computed here step by step."""
    plain = session_of("stages.0.ema=null")
    expected = {n: p.detach().clone() for n, p in plain.model.named_parameters()}
    scores, step = [], 0
    for record in Training(plain, graphs=graphs).run():
        if isinstance(record, EpochRecord):
            own = {n: p.detach().clone() for n, p in plain.model.named_parameters()}
            _put(plain, expected)
            scores.append(evaluate(plain, plain.data.validation).metric)
            _put(plain, own)
            continue
        if graphs is None:  # otherwise records come late
            decay = min(0.99, (1 + step) / (10 + step))
            for name, parameter in plain.model.named_parameters():
                expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
            step += 1
    averaged = session_of()
    found = [r for r in Training(averaged, graphs=graphs).run() if isinstance(r, EpochRecord)]
    if graphs is None:
        for name, parameter in averaged.model.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name], msg=name)
        assert [r.metric for r in found] == pytest.approx(scores, rel=1e-5)
        return
    host = session_of()
    list(Training(host).run())
    for name, parameter in averaged.model.named_parameters():
        other = host.model.get_parameter(name)
        torch.testing.assert_close(parameter, other, rtol=1e-3, atol=1e-5, msg=name)


def _put(session: RunSession, values: dict[str, Tensor]) -> None:
    for name, parameter in session.model.named_parameters():
        parameter.data.copy_(values[name])


@pytest.mark.parametrize("records", [2, 6, 8])
def test_a_run_that_is_cut_off_ends_bit_equal(records: int, tmp_path: Path) -> None:
    """In the first epoch, in the middle of the second, and at its end."""
    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "cut", observer=StopAt(records))
    resumed = run(tmp_path / "cut")
    assert_same(weights(whole), weights(resumed))
    assert whole.read("result.json")["test"] == resumed.read("result.json")["test"]


def test_what_is_kept_is_what_was_scored(tmp_path: Path) -> None:
    """Also where the best epoch is not the last one."""
    done = run(tmp_path, "training.optimizer.lr=1.0e-2", "training.epochs=4")
    best = min(line["validation"]["metric"] for line in done.metrics())
    session = session_of("training.optimizer.lr=1.0e-2", "training.epochs=4")
    (folder,) = done.checkpoints.glob("best-*")
    session.model.load_state_dict(weights(done, f"checkpoints/{folder.name}"))
    assert evaluate(session, session.data.validation).metric == pytest.approx(best, rel=1e-6)
