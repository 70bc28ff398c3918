"""A look at a run makes only a few of the samples that the run would generate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xmodal.data.store import Store
from xmodal.engine.dry_run import describe
from xmodal.engine.plan import compose_plan
from xmodal.plugins import registry


@pytest.mark.parametrize(
    ("task", "size", "splits", "made"),
    [
        pytest.param(
            "darcy",
            ("train=3000", "validation=500", "test=500"),
            "train 3000, validation 500, test 500",
            100,  # both files of Darcy flow, in chunks of 50
            marks=pytest.mark.slow,
        ),
        ("advection", ("samples=5000",), "train 4050, validation 450, test 500", 32),
        pytest.param(
            "cosmic-simulated",
            ("samples=4000",),
            "train 3312, validation 368, test 320",
            32,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_few_samples_are_generated_and_all_are_counted(
    tmp_path: Path, task: str, size: tuple[str, ...], splits: str, made: int
) -> None:
    store, notes = Store(tmp_path), list[str]()
    settings = [f"task.{setting}" for setting in size]
    settings += ["training.batch.size=8", "training.epochs=3", "training.max_steps=null"]
    plan = compose_plan(["methods/nft", f"tasks/{task}"], registry(), store, settings, "smoke")
    shown = describe(plan, store, notes.append)
    assert shown["data"]["task"].endswith(f": {splits}")
    train = int(splits.split()[1].strip(","))
    steps = 3 * -(-train // 8)
    assert shown["cost"]["stage 0"].startswith(f"{steps} steps of ")
    assert "only a few samples are generated" in notes[0]
    assert sum(_samples(folder) for folder in (tmp_path / "built").glob("*")) == made


def _samples(folder: Path) -> int:
    if folder.name.startswith(("darcy", "pdebench", "cosmic")):
        files = [file for file in folder.iterdir() if file.name == "x.npy"]
        return len(np.load(files[0], mmap_mode="r")) if files else 50
    return 0
