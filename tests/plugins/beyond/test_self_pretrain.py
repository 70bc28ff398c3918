"""Self-pretraining: masks, targets and error by plain loops; what trains, its cost, resuming."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xmodal import api, runs
from xmodal.batch import Tokens
from xmodal.engine.observe import Silent
from xmodal.errors import UsageError
from xmodal.testing.running import StopAt, assert_same, weights
from xmodal.testing.tiny import TinyBackbone, build, random, tiny_backbone, tiny_context, tiny_facts
from xmodal_basics.embedders.columns import Columns
from xmodal_basics.embedders.conv1d import Conv1d
from xmodal_basics.embedders.patch import Patch
from xmodal_beyond.decoding import masks
from xmodal_beyond.self_pretrain import Denoiser

from ...forms import TIMED

COARSE = replace(tiny_backbone(), reduction=2)


# --- what is masked ---


@pytest.mark.parametrize(("share", "wanted"), [(0.4, 10), (0.01, 1), (0.99, 23)])
def test_every_sample_loses_its_own_share_of_tokens(share: float, wanted: int) -> None:
    generator = torch.Generator().manual_seed(0)
    mask_BN = masks(50, (4, 6), tiny_backbone(), share, generator)
    assert mask_BN.dtype == torch.bool
    assert mask_BN.sum(1).tolist() == [wanted] * 50
    if share == 0.4:
        assert len({tuple(row) for row in mask_BN.tolist()}) > 45
        # Every token is masked about as often: 50 draws of .4, four standard deviations.
        assert (mask_BN.float().mean(0) - wanted / 24).abs().max() < 4 * math.sqrt(0.24 / 50)


def test_tokens_that_share_a_feature_are_masked_together() -> None:
    """Features are twice as coarse, and the grid is odd: cells at the edge are smaller."""
    mask_BHW = masks(20, (3, 5), COARSE, 0.5, torch.Generator().manual_seed(0)).unflatten(1, (3, 5))
    for sample in mask_BHW:
        cells = [sample[i : i + 2, j : j + 2] for i in (0, 2) for j in (0, 2, 4)]
        assert all(bool(cell.all()) or not bool(cell.any()) for cell in cells)
        assert sum(bool(cell.all()) for cell in cells) == 3


# --- the pieces of a sample ---


def embedder(kind: Any, form: Any, **settings: Any) -> Any:
    context = tiny_context(tiny_facts(form), {"backbone": build(TinyBackbone)})
    return build(kind, settings, context)


def test_pieces_of_a_sequence() -> None:
    """Two channels of 40 steps in pieces of 7: the last has five steps, and two unknown ones."""
    x = random(3, 2, 40)
    found = embedder(Conv1d, "sequence", kernel=7).pieces(x)
    assert found.shape == (3, 6, 14)
    for n in range(6):
        for channel in range(2):
            for k in range(7):
                value, at = found[:, n, 7 * channel + k], 7 * n + k
                if at < 40:
                    assert torch.equal(value, x[:, channel, at])
                else:
                    assert value.isnan().all()


def test_pieces_of_a_grid() -> None:
    x = random(2, 2, 16, 24)
    found = embedder(Patch, "grid", patch=5).pieces(x)
    assert found.shape == (2, 4 * 5, 2 * 25)
    for row in range(4):
        for column in range(5):
            patch = torch.full((2, 2, 5, 5), float("nan"))
            own = x[:, :, 5 * row : 5 * row + 5, 5 * column : 5 * column + 5]
            patch[:, :, : own.shape[2], : own.shape[3]] = own
            place = found[:, 5 * row + column].unflatten(1, (2, 5, 5))
            assert torch.equal(place.nan_to_num(9e9), patch.nan_to_num(9e9))


def test_pieces_of_a_row() -> None:
    x = torch.tensor([[1.5, float("nan"), 2.0, 0.5, 5.0, -1.0]])  # levels 0, 0, 3, 0, 2, 4
    found = embedder(Columns, "row").pieces(x)[0, :, 0]
    assert found[[0, 2, 3]].tolist() == [1.5, 2.0, 0.5]
    assert found[[1, 4, 5]].isnan().all()


# --- the error ---


def denoiser(pieces: Tensor, form: Any = "sequence", levels: Any = (), **settings: Any) -> Denoiser:
    facts = tiny_facts(form)
    if settings.pop("coarse", False):
        facts = replace(facts, backbone=COARSE, grid=(3, 5))
    normalise = settings.pop("normalise", "data")
    torch.manual_seed(0)
    return Denoiser(pieces, levels, form == "row", facts, normalise)


@pytest.mark.parametrize("normalise", ["data", "piece"])
def test_the_error_counts_masked_known_numbers(normalise: Any) -> None:
    pieces = 3 + 2 * random(4, 10, 5)
    pieces[:, -1, 3:] = float("nan")
    made = denoiser(pieces, normalise=normalise)
    mask, decoded = random(4, 10, seed=1) > 0, random(4, 10, 5, seed=2)
    total, count = 0.0, 0
    for b in range(4):
        for n in range(10):
            known = [p for p in range(5) if not (n == 9 and p > 2)]
            own = pieces[b, n, known]
            for p in known if mask[b, n] else []:
                if normalise == "piece":
                    mean, scale = own.mean(), (own.var(correction=0) + 1e-6).sqrt()
                else:
                    seen = pieces[:, :, p][~pieces[:, :, p].isnan()]
                    mean, scale = seen.mean(), seen.std(correction=0)
                total += float(decoded[b, n, p] - (pieces[b, n, p] - mean) / scale) ** 2
                count += 1
    assert float(made.error(decoded, pieces, mask)) == pytest.approx(total / count, rel=1e-5)


def test_numbers_and_categories_of_a_table() -> None:
    """Each column has its own scale; a category is told by -log p among the column's levels."""
    levels = (0, 0, 3, 0, 2, 4)
    x = torch.stack([random(8) * 10, torch.full((8,), 4.0), torch.arange(8) % 3 * 1.0], 1)
    x = torch.cat([x, random(8, 1, seed=3), torch.arange(8)[:, None] % 2, torch.ones(8, 1)], 1)
    x[0, 2] = x[1, 0] = float("nan")
    made = denoiser(x[..., None], "row", levels)
    mask, decoded = random(8, 6, seed=1) > 0, random(8, 6, 1 + 9, seed=2)
    assert made.decoder.linear.out_features == 1 + 9
    first = {2: 1, 4: 4, 5: 6}
    total, count = 0.0, 0
    for b in range(8):
        for f, number in enumerate(levels):
            if not mask[b, f] or x[b, f].isnan():
                continue
            count += 1
            if number:
                logits = decoded[b, f, first[f] : first[f] + number]
                total -= float(logits.log_softmax(0)[int(x[b, f])])
                continue
            seen = x[:, f][~x[:, f].isnan()]
            scale = seen.std(correction=0) if f != 1 else 1.0  # a constant column keeps its unit
            total += float(decoded[b, f, 0] - (x[b, f] - seen.mean()) / scale) ** 2
    assert float(made.error(decoded, x[..., None], mask)) == pytest.approx(total / count, rel=1e-5)


def test_coarse_features_give_the_outputs_of_all_their_tokens() -> None:
    """Feature (i, j) decodes tokens (2i + s, 2j + t), in blocks of P numbers by s, then t."""
    made = denoiser(random(2, 15, 3), "grid", coarse=True)
    features = Tokens(random(2, 6, tiny_backbone().feature_width), (2, 3))
    found = made.decoder(features, (3, 5)).unflatten(1, (3, 5))
    each = made.decoder.linear(features.x_BND).unflatten(1, (2, 3))
    for y in range(3):
        for x in range(5):
            block = 2 * (y % 2) + x % 2
            expected = each[:, y // 2, x // 2, 3 * block : 3 * block + 3]
            assert torch.equal(found[:, y, x], expected)


# --- whole runs ---

EPOCHS = 3


def run(
    root: Path,
    *more: str,
    task: str = "tasks/darcy",
    method: str = "self-pretrain",
    observer: Silent | None = None,
) -> runs.Run:
    overrides = [
        f"training.epochs={EPOCHS}",
        "training.max_steps=null",
        "training.batch={size: 4, micro: 2}",
        "saving.every_steps=1",
        *(["task.train=10"] if task == "tasks/darcy" else []),
        *more,
    ]
    return api.run(
        f"methods/{method}",
        task,
        scale="smoke",
        overrides=overrides,
        root=root,
        report=False,
        observer=observer,
    ).run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """A run that nothing stopped."""
    return run(tmp_path_factory.mktemp("whole"))


def metrics(run_: runs.Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMED} for line in run_.metrics()]


@pytest.mark.long
@pytest.mark.parametrize("records", [1, 3, 5, 12, 13, 15])
def test_a_run_stopped_anywhere_ends_the_same(
    records: int, whole: runs.Run, tmp_path: Path
) -> None:
    """Three steps an epoch and its end: the twelfth record ends the stage."""
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "cut", observer=StopAt(records))
    resumed = run(tmp_path / "cut")
    assert_same(weights(whole), weights(resumed))
    assert metrics(whole) == metrics(resumed)


@pytest.mark.slow
def test_it_costs_what_nft_compute_matched_costs(whole: runs.Run, tmp_path: Path) -> None:
    matched = run(tmp_path, method="nft-compute-matched")
    costs = [r.read("result.json")["encoded_samples"] for r in (whole, matched)]
    assert costs == [2 * EPOCHS * 10] * 2


@pytest.mark.slow
def test_the_helper_trains_in_its_stage_alone(whole: runs.Run, tmp_path: Path) -> None:
    """A longer second stage leaves it as it was; a longer first one does not."""
    short = weights(run(tmp_path / "short", "stages.1.epochs=1"))
    other = weights(run(tmp_path / "other", "stages.0.epochs=1"))
    own = [name for name in short if name.startswith("helpers.stage0.")]
    assert {name.split(".")[2] for name in own} == {"fill_D", "decoder", "mean", "scale"}
    done = weights(whole)
    for name in own:
        assert torch.equal(short[name], done[name])
        assert name.endswith((".mean", ".scale")) == torch.equal(other[name], done[name])
    assert not torch.equal(
        short["backbone.layers.0.qkv.weight"], done["backbone.layers.0.qkv.weight"]
    )


@pytest.mark.slow
def test_samples_without_labels_are_used_too(tmp_path: Path) -> None:
    some = run(tmp_path / "some", "labelled=0.6")
    none = run(tmp_path / "none", "labelled=0.6", "stages.0.unlabelled=false")
    cost = [r.read("result.json")["encoded_samples"] for r in (some, none)]
    assert cost == [EPOCHS * (10 + 6), EPOCHS * (6 + 6)]


@pytest.mark.long
@pytest.mark.parametrize("task", ["tasks/darcy", "tasks/openml/car", "tasks/openml/wdbc"])
def test_it_learns_to_reconstruct(task: str, tmp_path: Path) -> None:
    """Better than always the mean, whose error is 1; of car's categories, than all alike."""
    more = ["stages.0.epochs=15", "stages.1.epochs=1", "stages.0.optimizer={lr: 3e-3}"]
    trained = run(tmp_path, *more, "training.max_steps=12", task=task)
    error = [line["train"]["masked error"] for line in trained.metrics() if line["stage"] == 0]
    assert error[-1] < 0.9 * error[0]
    # car's columns are independent: nothing but each column's own levels can be learned.
    alike = sum(math.log(m) for m in (4, 4, 4, 3, 3, 3)) / 6
    assert error[-1] < (1.05 * alike if task.endswith("car") else 0.75)


@pytest.mark.slow
def test_pieces_of_one_number_have_no_scale(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no scale of its own"):
        run(tmp_path, "stages.0.normalise=piece", task="tasks/openml/wdbc")
