"""Fewer samples to validate and test: whole groups, the same for everybody, and said in notes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from xmodal.data import loader
from xmodal.data.store import Store
from xmodal.engine.plan import compose_plan
from xmodal.interfaces import TaskData
from xmodal.plugins import registry
from xmodal_nasbench360.deepsea import DeepSea
from xmodal_nasbench360.ecg import Ecg
from xmodal_nasbench360.fsd50k import Fsd50k
from xmodal_nasbench360.satellite import Satellite
from xmodal_nasbench360.scored import limited

from .test_ecg import data as ecg_file  # noqa: F401
from .test_fsd50k import archive
from .test_parts import deepsea_file, satellite_files, task

SPLITS = ("validation", "test")


def numbered(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count)[:, None], torch.zeros(count))


def test_groups_stay_whole_and_the_size_is_the_nearest() -> None:
    sizes = np.random.default_rng(0).integers(1, 30, 40)
    group_N = torch.from_numpy(np.repeat(np.arange(40), sizes))
    total = len(group_N)
    groups = {"train": group_N, "test": group_N}
    data = TaskData(numbered(total), numbered(9), numbered(total), "", groups=groups)
    few = limited(data, 100, "x")
    assert few.train is data.train
    assert few.validation is data.validation  # it has no more than that
    kept = few.groups["test"]
    assert loader.count(few.test) == len(kept)
    rows = torch.stack([x for x, _ in few.test])[:, 0]  # type: ignore[attr-defined]
    assert torch.equal(group_N[rows], kept)
    for group in kept.unique():
        assert (kept == group).sum() == (group_N == group).sum()
    assert abs(len(kept) - 100) <= 15  # half of the largest group
    assert few.notes == (f"x: NOT scored on all, but on {len(kept)} of {total} test samples",)
    again = limited(data, 100, "x")
    assert torch.equal(again.groups["test"], kept)
    assert limited(data, total, "x") is limited(data, None, "x") is data


@pytest.mark.slow
def test_ecg_and_the_others_score_what_their_facts_say(
    ecg_file: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    (tmp_path / "satellite").mkdir()
    (tmp_path / "sound").mkdir()
    satellite_files(tmp_path / "satellite")
    arrays = deepsea_file(tmp_path / "deepsea_filtered.npz")
    archive(tmp_path / "sound")
    for kind, path, settings in (
        (Ecg, ecg_file[0], {"scored": 6}),
        (Satellite, tmp_path / "satellite", {"scored": 4, "validation": 7}),
        (DeepSea, tmp_path / "deepsea_filtered.npz", {"scored": 2}),
        (Fsd50k, tmp_path / "sound", {"scored": 2}),
    ):
        one = task(kind, path, tmp_path / "cache", **settings)
        loaded, facts = one.load(0), kind.describe(one.config, one.store)
        whole = task(kind, path, tmp_path / "cache", **{**settings, "scored": None}).load(0)
        assert "NOT scored on all" in loaded.notes[-1]
        assert facts.samples == {
            part: loader.count(getattr(loaded, part)) for part in ("train", *SPLITS)
        }
        assert loader.count(loaded.train) == loader.count(whole.train)
        assert loader.count(loaded.test) < loader.count(whole.test)
        for split in SPLITS if whole.groups else ():
            mine, all_of = loaded.groups[split], whole.groups[split]
            assert all((mine == g).sum() == (all_of == g).sum() for g in mine.unique())
        if kind is DeepSea:
            given = {x.tobytes() for x in arrays["x_test"].transpose(0, 2, 1).astype(np.float32)}
            assert {x.numpy().tobytes() for x, _ in loaded.test} < given


@pytest.mark.parametrize("name", ["ecg", "satellite", "deepsea", "fsd50k"])
def test_small_scales_score_few_and_the_benchmark_all(name: str, tmp_path: Path) -> None:
    for scale, most in (("cpu", 4000), ("smoke", 64), (None, None)):
        made = compose_plan(
            ["methods/nft", f"tasks/{name}"], registry(), Store(tmp_path), scale=scale
        )
        published = made.recipe.task.component.describe(
            made.recipe.task.config.model_copy(update={"scored": None}), Store(tmp_path)
        ).samples
        for split in SPLITS:
            count = made.facts.task.samples[split]
            assert count == published[split] if most is None else count <= most
