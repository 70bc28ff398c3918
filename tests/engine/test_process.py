"""A run is the same whatever the process has done before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from xmodal import api, runs
from xmodal.testing.running import assert_same, weights

from ..conftest import TINY


def run(root: Path) -> runs.Run:
    done = api.run(
        *("methods/pare", "tasks/darcy"), scale="smoke", overrides=TINY, root=root, report=False
    )
    return done.run


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    return run(tmp_path_factory.mktemp("plain"))


@contextmanager
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "state",
    [
        double,
        torch.inference_mode,
        pytest.param(torch.no_grad, marks=pytest.mark.slow),
        lambda: torch.autocast("cpu"),
    ],
)
def test_what_the_caller_has_set_changes_no_run(
    state: Callable[[], AbstractContextManager[object]], plain: runs.Run, tmp_path: Path
) -> None:
    with state():
        done = run(tmp_path)
    assert_same(weights(done), weights(plain))
    assert done.read("result.json")["test"] == plain.read("result.json")["test"]
