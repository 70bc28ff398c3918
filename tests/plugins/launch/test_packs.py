"""How many cells the launcher for this machine puts into one process."""

from __future__ import annotations

import pytest

from xmodal.data.store import Store
from xmodal.interfaces import Context
from xmodal_launch import local


@pytest.mark.parametrize(
    ("gpus", "settings", "packs"),
    [
        ([], {}, 1),
        ([], {"pack": 3}, 3),
        (["0", "1"], {}, local.CELLS_ON_A_GPU),
        (["0"], {"pack": 1}, 1),
        (["0"], {"jobs": 2}, 1),  # so many cells at a time, and no more
        (["0"], {"jobs": 2, "pack": 4}, 4),
    ],
)
def test_cells_share_a_process_on_a_gpu(
    gpus: list[str], settings: dict[str, int], packs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_gpus", lambda: gpus)
    config = local.Local.Config(**settings)
    assert local.Local(config, Context.outside(Store(), "launcher")).packs == packs
