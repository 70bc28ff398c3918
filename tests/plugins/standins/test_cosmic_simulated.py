"""The task on simulated exposures: what it yields, and that it depends on its settings alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from xmodal import api
from xmodal.data.augment import in_pass
from xmodal.data.datasets import Preparation
from xmodal.data.store import Store
from xmodal.errors import DataError, UsageError
from xmodal.settings import Use
from xmodal.testing.running import StopAt, assert_same, weights
from xmodal_basics.losses import BinaryCrossEntropy
from xmodal_basics.pixel_auroc import PixelAUROCError
from xmodal_standins.cosmic_rays import expose
from xmodal_standins.cosmic_simulated import CARD, CosmicSimulated, counts

PARTS: dict[str, Any] = {
    "loss": Use("bce", BinaryCrossEntropy, BinaryCrossEntropy.Config()),
    "metric": Use("pixel-auroc-error", PixelAUROCError, PixelAUROCError.Config()),
}


def task(cache: Path, **settings: Any) -> CosmicSimulated:
    config = CosmicSimulated.Config(**{**PARTS, "samples": 20, "resolution": 24, **settings})
    return CosmicSimulated(config, SimpleNamespace(store=Store(cache)))  # type: ignore[arg-type]


def test_sizes_are_those_of_the_benchmark() -> None:
    assert counts(None) == {"train": 4347, "validation": 483, "test": 420}
    for samples in (3, 10, 500, 5250):
        sizes = counts(samples)
        assert sum(sizes.values()) == samples
        assert min(sizes.values()) >= 1
    assert counts(5250) == counts(None)


def test_samples_are_the_simulators(tmp_path: Path) -> None:
    data = task(tmp_path).load(0)
    raw = np.stack([expose(0, n, 24).image for n in range(16)]).astype(np.float64)
    for dataset, start in ((data.train, 0), (data.validation, 16), (data.test, 18)):
        for n in range(len(dataset)):  # type: ignore[arg-type]
            x, y = dataset[n]
            one = expose(0, start + n, 24)
            expected = (one.image - raw.mean()) / raw.std()
            torch.testing.assert_close(x[0], torch.from_numpy(expected).float(), rtol=0, atol=1e-4)
            labels = np.where(one.ignore == 1, np.nan, one.hit)
            np.testing.assert_array_equal(y[0].numpy(), labels)
    added = in_pass(data.train, 1)[3][0] - data.train[3][0]
    factor = float(added.mean()) * raw.std() / expose(0, 3, 24).sky
    assert -0.9 <= factor <= 3
    assert added.std() < 1e-5
    assert in_pass(data.test, 1) is data.test


def test_what_was_generated_before_changes_nothing(tmp_path: Path) -> None:
    plain = task(tmp_path / "a").load(0)
    # A data set of other samples lies ready, then one of the same.
    for settings in ({"data_seed": 3}, {}):
        one = task(tmp_path / "b", **settings)
        scratch = tmp_path / f"scratch{settings}"
        scratch.mkdir()
        Store(tmp_path / "b").make_dataset(
            CARD,
            lambda folder, one=one, scratch=scratch: CosmicSimulated.prepare(
                one.config, Preparation(scratch, generate=True), folder
            ),
        )
        found = task(tmp_path / "b").load(5)
        assert found.checksum == plain.checksum
        assert found.train[4][0].equal(plain.train[4][0])
    assert len(list((tmp_path / "b/built").iterdir())) == 1  # the second one was read


def test_generating_goes_on_where_it_stopped(tmp_path: Path) -> None:
    one = task(tmp_path, samples=120)
    scratch, folder = tmp_path / "scratch", tmp_path / "new"
    for place in (scratch, folder):
        place.mkdir()
    CosmicSimulated.prepare(one.config, Preparation(scratch, generate=True, jobs=2), folder)
    first = (folder / "x.npy").read_bytes()
    kept = sorted(scratch.iterdir())
    assert len(kept) == 3
    kept[1].unlink()
    times = [path.stat().st_mtime_ns for path in (kept[0], kept[2])]
    CosmicSimulated.prepare(one.config, Preparation(scratch, generate=True), folder)
    assert (folder / "x.npy").read_bytes() == first
    assert [path.stat().st_mtime_ns for path in (kept[0], kept[2])] == times


def test_a_path_of_other_data_is_refused(tmp_path: Path) -> None:
    task(tmp_path).load(0)
    (folder,) = (tmp_path / "built").iterdir()
    assert len(task(tmp_path, path=folder).load(0).train) == 16  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"x.npy has shape \(20, 1, 24, 24\), the settings say"):
        task(tmp_path, path=folder, samples=21).load(0)
    made = task(tmp_path).config

    def prepare(folder: Path) -> Any:
        return CosmicSimulated.prepare(made, Preparation(tmp_path, generate=True), folder)

    ready = Store(tmp_path).make_dataset(CARD, prepare)
    with pytest.raises(DataError, match=r"was made with seed 0, not 3"):
        task(tmp_path, path=ready, data_seed=3).load(0)
    with pytest.raises(DataError) as caught:
        task(tmp_path, path=tmp_path / "mine").load(0)
    assert "holds no x.npy" in str(caught.value)
    assert "delete" not in str(caught.value)  # it may be the user's


def test_what_cannot_be_split_or_hit_is_not_generated(tmp_path: Path) -> None:
    for wanted in ({"samples": 2}, {"resolution": 15}):
        order = Preparation(tmp_path, generate=True, **wanted)
        with pytest.raises(UsageError, match="at least 3 images of 16 pixels per side are needed"):
            CosmicSimulated.prepare(task(tmp_path).config, order, tmp_path)
    with pytest.raises(ValueError, match=r"sky: 3\.0 is above -0\.9"):
        task(tmp_path, sky=(3.0, -0.9))


def test_a_fresh_machine_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path / "cache"))
    done = api.run(
        "methods/pare",
        "tasks/cosmic-simulated",
        scale="smoke",
        overrides=["training.max_steps=1", "training.epochs=1"],
        root=tmp_path / "runs",
        report=False,
    )
    result = done.run.read("result.json")
    assert 0 < result["test"]["metric"] < 1
    assert "cosmic-simulated: simulated exposures, no real image" in result["notes"]


@pytest.mark.long
def test_augmented_training_resumes_bit_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sky of a sample is that of its epoch, whether or not the run was stopped before."""
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path / "cache"))

    def run(root: Path, *overrides: str, observer: Any = None) -> Any:
        return api.run(
            "methods/nft",
            "tasks/cosmic-simulated",
            scale="smoke",
            overrides=["training.epochs=2", "training.max_steps=null", *overrides],
            root=root,
            report=False,
            observer=observer,
        ).run

    saving = ("saving.every_steps=1", "saving.keep=50")
    whole = run(tmp_path / "whole", *saving)
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "cut", *saving, observer=StopAt(6))
    assert_same(weights(whole), weights(run(tmp_path / "cut", *saving)))
    plain = run(tmp_path / "plain", *saving, "task.augment=false")
    with pytest.raises(AssertionError):
        assert_same(weights(whole), weights(plain))
