"""The budget of scale ``cpu``: a fixed cost model, the same cuts for every method, said aloud."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xmodal.data.store import Store
from xmodal.engine.budget import TERA, forward_cost, within_budget
from xmodal.engine.plan import Plan, compose_plan
from xmodal.facts import BackboneFacts
from xmodal.plugins import registry

LONG = ("arrays/sequence", "task.path=long.npz")


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """600 series of 905 = 5 * 181 points in 3 channels; 40 short ones; 100 images."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    series = draw.normal(size=(600, 3, 905)).astype(np.float32)
    np.savez("long.npz", x=series, y=np.arange(600) % 2)
    np.savez("short.npz", x=series[:40, :, :30], y=np.arange(40) % 2)
    images = draw.normal(size=(100, 3, 448, 392)).astype(np.float32)
    np.savez("images.npz", x=images, y=np.arange(100) % 2)


def planned(*words: str, scale: str | None = "cpu") -> Plan:
    recipes = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    return compose_plan(recipes, registry(), Store(), overrides, scale)


def finetune(plan: Plan) -> Any:
    return plan.recipe.stages[-1].config


def cost(plan: Plan) -> float:
    """The model once more: 3 passes a training sample, 1 a validation or test sample."""
    stage, samples = finetune(plan), plan.facts.task.samples
    steps = min(-(-samples["train"] // stage.batch.size), stage.max_steps or 10**9)
    passes = 3 * stage.batch.size * steps * stage.epochs
    passes += samples["validation"] * stage.epochs + samples["test"]
    return passes * forward_cost(plan.facts.num_tokens, plan.facts.backbone)


def test_the_cost_of_a_layer_is_that_of_its_products() -> None:
    """QKV and output projection 4 D^2, MLP 8 D^2, scores and their use 2 N D; each 2 operations."""
    facts = BackboneFacts("b", "text", 8, 8, layers=1)
    tokens, width = 5, 8
    products = 4 * width**2 + 8 * width**2 + 2 * tokens * width
    assert forward_cost(tokens, facts) == 2 * tokens * products
    assert forward_cost(tokens, replace(facts, layers=3)) == 3 * forward_cost(tokens, facts)
    # In windows of 49 tokens the cost is linear in the tokens.
    windows = replace(facts, reduction=8)
    assert forward_cost(980, windows) == 10 * forward_cost(98, windows)
    assert forward_cost(tokens, replace(facts, layers=0)) == 0


@pytest.mark.slow
def test_it_counts_what_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
        vocab_size=8, attn_implementation="eager",
    )  # fmt: skip
    encoder = BertModel(config).encoder
    with FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(3, 20, 64))
    facts = BackboneFacts("bert", "text", 64, 64, layers=2)
    assert counter.get_total_flops() == 3 * forward_cost(20, facts)


def test_what_fits_is_left_alone() -> None:
    plan = planned("methods/nft", "arrays/sequence", "task.path=short.npz")
    assert plan.notes == ()
    assert plan.recipe.embedder.name == "auto"
    assert finetune(plan).max_steps is None
    whole = planned("methods/nft", *LONG, "budget=null")
    assert (whole.notes, whole.facts.num_tokens, finetune(whole).max_steps) == ((), 181, None)


def test_first_tokens_then_steps_and_it_is_said() -> None:
    whole = planned("methods/nft", *LONG, "budget=null")
    plan = planned("methods/nft", *LONG)
    assert cost(whole) > 40 * TERA >= cost(plan) > 20 * TERA
    assert finetune(plan).epochs == finetune(whole).epochs == 12
    assert plan.recipe.embedder.name == "conv-1d"
    assert 60 <= plan.facts.num_tokens < 181  # and not 5, the next divisor
    (note,) = plan.notes
    assert f"{plan.facts.num_tokens} of 181 tokens a sample" in note
    assert "all of it: budget=null" in note
    tight = planned("methods/nft", *LONG, "budget=15")
    assert 60 <= tight.facts.num_tokens <= 64
    steps = finetune(tight).max_steps
    assert f"{tight.facts.num_tokens} of 181 tokens a sample and {steps} of " in tight.notes[0]
    assert cost(tight) <= 15 * TERA
    # One step more would be too much.
    again = [
        *LONG,
        "budget=null",
        f"embedder={{use: conv-1d, target_length: {tight.facts.num_tokens}, pad: true}}",
        f"training.max_steps={steps + 1}",
    ]
    assert cost(planned("methods/nft", *again)) > 15 * TERA  # one step more is too much


def test_epochs_come_last_and_what_cannot_be_is_said() -> None:
    plan = planned("methods/nft", *LONG, "budget=4")
    assert finetune(plan).max_steps == 10
    assert finetune(plan).epochs == 5
    assert f"{finetune(plan).epochs} of 12 epochs" in plan.notes[0]
    assert cost(plan) <= 4 * TERA
    never = planned("methods/nft", *LONG, "budget=0.001")
    assert (finetune(never).max_steps, finetune(never).epochs) == (10, 3)
    assert "and nothing else can be left out" in never.notes[0]


@pytest.mark.parametrize("method", ["pare", "orca", "mona", "lora", "scratch", "nft-doubled"])
def test_every_method_gets_the_same_tokens_and_steps(method: str) -> None:
    nft = planned("methods/nft", *LONG, "budget=8")
    other = planned(f"methods/{method}", *LONG, "budget=8")
    assert other.facts.grid == nft.facts.grid
    assert other.recipe.embedder.dump() == nft.recipe.embedder.dump()
    assert finetune(other).max_steps == finetune(nft).max_steps
    assert finetune(other).epochs == finetune(nft).epochs


def test_a_method_without_epochs_gets_the_same_tokens() -> None:
    nft = planned("methods/nft", *LONG)
    assert planned("methods/linear-probe", *LONG).facts.grid == nft.facts.grid


def test_what_has_no_encoder_has_no_cost() -> None:
    plan = planned("methods/baseline", *LONG, "budget=0.001")
    assert plan.notes == ()


def test_images_get_larger_patches() -> None:
    plan = planned("methods/nft", "arrays/grid", "task.path=images.npz")
    assert plan.recipe.embedder.name == "patch"
    side = plan.recipe.embedder.config.patch
    assert side > 14
    assert plan.facts.grid == (-(-448 // side), -(-392 // side))
    # The next smaller patch would cost too much, or the tokens are at the least number.
    assert plan.facts.num_tokens <= 64 or cost(plan) <= 40 * TERA


def test_cutting_twice_changes_nothing() -> None:
    plan = planned("methods/pare", *LONG, "budget=5")
    again, facts, notes = within_budget(plan.recipe, plan.facts)
    assert (again, facts, notes) == (plan.recipe, plan.facts, ())


def test_the_tasks_that_come_along_have_sizes_of_their_own() -> None:
    for task in ("tasks/darcy", "tasks/wdbc"):
        assert planned("methods/nft", task).recipe.budget is None


def test_steps_in_place_of_epochs_have_the_same_budget() -> None:
    """However many are wanted, in all they cost no more; few are left alone."""
    many = planned("methods/nft", *LONG, "training.steps=100000")
    stage, samples = finetune(many), many.facts.task.samples
    each = min(-(-samples["train"] // stage.batch.size), stage.max_steps or 10**9)
    passes = 3 * stage.batch.size * each * many.epochs
    passes += samples["validation"] * many.epochs + samples["test"]
    assert passes * forward_cost(many.facts.num_tokens, many.facts.backbone) <= (
        many.recipe.budget * TERA
    )
    assert any("budget" in note for note in many.notes)
    few = planned("methods/nft", *LONG, "training.steps=5")
    assert finetune(few).steps == 5
    assert few.epochs == 1


def test_the_cells_of_a_comparison_are_cut_and_say_so() -> None:
    from xmodal.comparison.grid import grid, requested

    asked = requested(registry(), ["nft", "pare"], ["long.npz"], scale="cpu", trivial=False)
    cells = grid(asked, registry(), Store(), Path("cells"))
    (note,) = {note for cell in cells for note in cell.notes}
    assert note.startswith("budget: plain fine-tuning on all of this would take about ")
    tokens = {cell.resolved["embedder"]["target_length"] for cell in cells}
    assert len(tokens) == 1
    # What the cells run is the recipe that was cut.
    again = compose_plan(cells[0].references, registry(), Store(), cells[0].overrides, "cpu")
    assert again.recipe.model_dump(mode="json")["stages"] == cells[0].resolved["stages"]
