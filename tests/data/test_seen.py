"""Training samples are found again by their values, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from xmodal.data import seen


def test_equal_values_are_found_whatever_their_bits() -> None:
    x = torch.randn(50, 3, 4)
    x[0, 0, 0], x[1, 0, 0] = 0.0, torch.nan
    kept = seen.Seen.of(seen.remember(TensorDataset(x, torch.zeros(50)), (3, 4)).state())
    assert kept.complete
    assert kept.count(x.flip(0)) == 50
    again = x[:2].clone()
    again[0, 0, 0] = -0.0
    again[1, 0, 0] = torch.tensor(np.float32(np.nan)) * -1
    assert kept.count(again) == 2
    assert kept.count(x + torch.finfo(torch.float32).eps * x.abs() * 2) <= 1
    assert kept.count(torch.randn(1000, 3, 4)) == 0


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "MOST", 30)
    x = torch.randn(50, 2)
    kept = seen.remember(TensorDataset(x, torch.zeros(50)), (2,))
    assert (kept.complete, len(kept.hashes), kept.count(x)) == (False, 30, 30)
    assert kept.hashes.nbytes == 240
