"""Rivals that are trained by the engine: a run that is resumed ends bit-identical, and predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xmodal
from xmodal import api, runs
from xmodal.errors import DataError
from xmodal.testing.running import StopAt, assert_same, weights


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("gated-cnn", "sequence"),
        ("perceiver-io", "grid"),
        ("wide-resnet", "grid"),
        ("unet", "grid"),
        ("fno", "grid"),
    ],
)
def test_resuming_changes_nothing(name: str, form: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 1, 64) if form == "sequence" else (60, 1, 16, 16))
    x = x.astype("float32")
    y = np.arange(60) % 2 if form == "sequence" else np.cumsum(x, axis=2)
    np.savez(tmp_path / "data.npz", x=x, y=y)

    def run(place: str, observer: Any = None) -> runs.Run:
        overrides = [
            f"task.path={tmp_path / 'data.npz'}", "training.max_steps=null",
            "stages.finetune.epochs=2", "stages.finetune.batch={size: 16}",
            "saving.every_steps=1", "saving.keep=50", "saving.finished=50",
        ]  # fmt: skip
        return api.run(
            f"methods/{name}", f"arrays/{form}", scale="smoke", overrides=overrides,
            root=tmp_path / place, report=False, observer=observer,
        ).run  # fmt: skip

    try:
        whole = run("whole")
    except DataError as missing:
        pytest.skip(f"its library: {missing}")
    with pytest.raises(RuntimeError, match="crash"):
        run("broken", StopAt(5))
    assert_same(weights(whole), weights(run("broken")))
    assert xmodal.load(whole.path).predict(x[:3]).shape == (3, *y.shape[1:])
