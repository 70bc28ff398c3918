"""Settings of the backbone's pass in whole runs: precision and activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import xmodal
from xmodal.testing.running import assert_same, weights

Run = Callable[..., Any]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_layers_change_no_bit_of_a_run(
    tiny_run: Run, tmp_path: Path, precision: str
) -> None:
    more = (f"precision={precision}", "backbone.dropout=0.2")
    plain = tiny_run(*more, directory=tmp_path / "plain").run
    found = tiny_run(*more, "activation_checkpointing=true", directory=tmp_path / "recomputed").run
    assert_same(weights(found), weights(plain))
    assert found.read("manifest.json")["hash"] == plain.read("manifest.json")["hash"]


def test_a_backbone_without_layers_says_so(tiny_run: Run) -> None:
    found = tiny_run("activation_checkpointing=true", recipe="methods/baseline").run
    notes = " ".join(found.read("result.json")["notes"])
    assert "has no layers that can be recomputed" in notes


def test_a_bf16_run_predicts_as_it_scored(tiny_run: Run) -> None:
    """A loaded model computes in the precision of the run, with weights in float32."""
    done = tiny_run("precision=bf16").run
    model = xmodal.load(done.path)
    assert {p.dtype for p in model.model.parameters()} == {torch.float32}
    seen: list[torch.dtype] = []
    layer = next(m for m in model.model.backbone.modules() if isinstance(m, torch.nn.Linear))
    layer.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    outputs = model.outputs(np.ones((2, *model.raw.shape), np.float32))
    assert set(seen) == {torch.bfloat16}
    assert outputs.isfinite().all()


@pytest.mark.parametrize("fast", [True, False])
def test_a_processor_without_bf16_is_told(
    tiny_run: Run, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xmodal.engine.build.multiplies_bf16", lambda device: fast)
    notes = " ".join(tiny_run("precision=bf16", "device=cpu").run.read("result.json")["notes"])
    assert ("does not multiply in bf16" in notes) != fast
    plain = " ".join(tiny_run("device=cpu").run.read("result.json")["notes"])
    assert "bf16" not in plain
