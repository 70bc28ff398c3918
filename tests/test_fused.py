"""Fused kernels: the same numbers as the plain forms, which run wherever kernels cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.paths import ROOT
from xmodal.fused import _working, fused_kernels


def test_the_cpu_takes_the_plain_form():
    assert fused_kernels("no_such_module", torch.zeros(2, 3)) is None


def test_kernels_that_fail_are_left_out_with_one_warning(tmp_path: Path, monkeypatch):
    (tmp_path / "bad_kernels.py").write_text(
        "def try_out(device):\n    raise RuntimeError('Failed to find C compiler.\\nMore.')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    # Whatever this machine has: the launch is what decides.
    monkeypatch.setattr("xmodal.fused.has_triton", lambda: True)
    monkeypatch.setattr("torch.cuda.device", lambda device: torch.no_grad())
    with pytest.warns(UserWarning, match="plain ones run instead: Failed to find C compiler.$"):
        assert _working("bad_kernels", torch.device("cuda", 0)) is None
    assert _working("bad_kernels", torch.device("cuda", 0)) is None


@pytest.mark.long
def test_kernels_are_the_plain_forms_in_tritons_interpreter():
    # Found without importing it: its library complains when a process ends.
    if find_spec("triton") is None or [*map(int, version("triton").split(".")[:2])] < [3, 9]:
        pytest.skip("needs Triton 3.9, whose interpreter knows today's numpy")
    # Triton decides at its import whether it interprets, so this takes a new process.
    done = subprocess.run(
        [sys.executable, "-m", "tests.interpreted_kernels"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ranks\nclosed form\nsimplex\nloop\n"
