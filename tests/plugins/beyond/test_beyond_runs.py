"""The methods beyond PaRe really run, learn with what is theirs, and resume bit-equal."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from xmodal import api, runs
from xmodal.engine.observe import Silent
from xmodal.testing.running import StopAt, assert_same, weights

from ...conftest import TINY

pytestmark = pytest.mark.slow

SAVING = ["saving.every_steps=1", "saving.keep=50", "saving.finished=50"]
SETTINGS = {
    "pare-lml": ["selector.network=mlp"],
    # Ten samples a measurement, of four a step: the crash below comes while they are collected.
    "pare-by-distance": ["scheduler.points=10", "scheduler.values=4"],
    "pare-consistent": ["labelled=0.6", "mixer.ramp_up=0.5", "mixer.back=0.5"],
}


def run(method: str, root: Path, *more: str, observer: Silent | None = None) -> runs.Run:
    common = [line for line in TINY if not line.startswith("selector")]
    return api.run(
        f"methods/{method}",
        "tasks/darcy",
        scale="smoke",
        overrides=[
            *common,
            "saving.every_steps=1",
            "saving.keep=50",
            "saving.finished=50",
            *SETTINGS[method],
            *more,
        ],
        root=root,
        report=False,
        observer=observer,
    ).run


Whole = Callable[[str], runs.Run]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The run of a method that nothing stopped, made once."""
    return functools.cache(lambda method: run(method, tmp_path_factory.mktemp(method)))


@pytest.mark.parametrize("method", SETTINGS)
def test_a_crash_in_the_middle_of_an_epoch_changes_nothing(
    method: str, whole: Whole, tmp_path: Path
) -> None:
    records = 4 if method == "pare-consistent" else 6
    with pytest.raises(RuntimeError, match="crash"):
        run(method, tmp_path / "cut", observer=StopAt(records))
    resumed = run(method, tmp_path / "cut")
    assert_same(weights(whole(method)), weights(resumed))
    assert whole(method).read("result.json")["test"] == resumed.read("result.json")["test"]


def test_the_gate_learns_in_every_epoch(whole: Whole) -> None:
    run_ = whole("pare-lml")
    saved = [
        weights(run_, f"checkpoints/{p.name}") for p in sorted(run_.checkpoints.glob("step-*"))
    ]
    name = "mixer.selector.first.weight"
    # Nine steps in three epochs, and the end of each epoch is saved once more.
    ends = [saved[0], saved[len(saved) // 3], saved[2 * len(saved) // 3], saved[-1]]
    assert all(not torch.equal(a[name], b[name]) for a, b in pairwise(ends))


def test_the_schedule_was_measured(whole: Whole) -> None:
    state = weights(whole("pare-by-distance"))
    distance_G = state["mixer._scheduler.distance_G"]
    assert float(distance_G[0]) >= 0
    assert float(distance_G[-1]) > float(distance_G[0])
    assert int(state["mixer._scheduler.place_3"][1]) == 9  # due again after the last step


def test_hidden_labels_train_without_being_looked_at(tmp_path: Path) -> None:
    """Unlabelled samples change what is learned, and cost two further passes each."""
    with_, without = (
        run("pare-consistent", tmp_path / name, f"mixer.beta_consistency={beta}")
        for name, beta in (("with", 1.0), ("without", 0.0))
    )
    one, other = weights(with_), weights(without)
    names = [name for name in one if name.startswith("predictor.")]
    assert any(not torch.equal(one[name], other[name]) for name in names)
    encoded = [run_.read("result.json")["encoded_samples"] for run_ in (with_, without)]
    # Six labelled samples, two views, three epochs. In the first epoch k = N leaves nothing of the
    # target to agree on; then as many unlabelled samples, two views each.
    assert encoded == [6 * 2 * 3 + 6 * 2 * 2, 6 * 2 * 3]
