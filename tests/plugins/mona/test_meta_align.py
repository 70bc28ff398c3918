"""The stage ``meta-align`` in sessions on the tiny backbone: what it computes, and what it
leaves.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from xmodal.batch import Progress, Tokens
from xmodal.data.store import Store
from xmodal.engine.build import Builder
from xmodal.engine.loop import EpochRecord, Training
from xmodal.engine.plan import compose_plan
from xmodal.engine.session import RunSession
from xmodal.errors import RecipeError, UsageError
from xmodal.plugins import registry
from xmodal_mona.meta_align import BilevelStep, MetaAlign, source_order
from xmodal_mona.paths import repeatable
from xmodal_mona.terms import alignment, positive_pairs, uniformity

pytestmark = pytest.mark.slow

CAR = ("methods/mona", "tasks/openml/car")
BATCH, SOURCE = 10, 12
MODES = ("exact", "finite-difference")
DROPOUT = "backbone={use: tiny, dropout: 0.3}"


def session(*overrides: str, recipes: tuple[str, ...] = CAR) -> RunSession:
    given = [f"training.batch={{size: {BATCH}}}", f"stages.0.source_batch={SOURCE}", *overrides]
    made = compose_plan(recipes, registry(), Store(), given, "smoke")
    builder = Builder(made, Store(), lambda line: None)
    return builder.session(builder.data())


def at(epoch: int = 1, step: int = 0) -> Progress:
    return Progress(0, epoch, 6, step, 2)


def problem(made: RunSession, epoch: int = 1, step: int = 0) -> BilevelStep:
    stage = made.stages[0]
    (found,) = next(iter(stage.steps(made, at(epoch, step))))
    return found


def backward(made: RunSession, epoch: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """The gradients of one step, by parameter name."""
    stage = made.stages[0]
    named = made.model.select_trainable(stage.train)
    made.model.zero_grad(set_to_none=True)
    made.model.train()
    torch.manual_seed(seed)
    loss, _ = stage.loss(made, problem(made, epoch), at(epoch))
    loss.backward()
    assert {n for n, p in made.model.named_parameters() if p.grad is not None} == {
        n for n, _ in named
    }
    return {n: p.grad.clone() for n, p in made.model.named_parameters() if p.grad is not None}


def flat(found: dict[str, Tensor]) -> Tensor:
    return torch.cat([found[name].flatten() for name in sorted(found)])


def second_order(*overrides: str, seed: int = 0) -> Tensor:
    """grad_e L_outer(phi'(e)) alone."""
    one, two = (
        flat(backward(session(*overrides, f"stages.0.weight={w}"), seed=seed)) for w in (1, 1001)
    )
    return (two - one) / 1000


def cosine(a: Tensor, b: Tensor) -> float:
    return float(functional.cosine_similarity(a, b, dim=0))


# --- what it computes ---


def test_gradient_is_that_of_the_objective_written_out() -> None:
    """Autograd through the virtual step itself, in one graph."""
    made = session("stages.0.weight=5", "stages.0.alpha=0.5")
    found = backward(made)
    model, step = made.model, problem(made)
    batch, (source, labels) = step.target[0], step.source
    x, y, share = batch.x, batch.y, batch.share
    assert share == 1
    backbone = model.backbone
    phi = {n: p.detach().clone().requires_grad_() for n, p in backbone.named_parameters()}
    with sdpa_kernel(SDPBackend.MATH):
        features: Tokens = functional_call(backbone, phi, (model.embedder(x),))
        inner = model.loss(model.predictor(features), y).mean()
        steps = torch.autograd.grad(inner, list(phi.values()), create_graph=True)
        adapted = {n: p - 0.5 * g for (n, p), g in zip(phi.items(), steps, strict=True)}
        read: Tokens = functional_call(backbone, adapted, (backbone.embed(source),))
    z = functional.normalize(read.x_BND.mean(dim=1), dim=1)
    outer = alignment(z, positive_pairs(labels)) + uniformity(z)
    embedder = dict(model.embedder.named_parameters())
    expected = torch.autograd.grad(5 * outer + inner, list(embedder.values()), allow_unused=True)
    plain = flat(backward(made, epoch=0))
    for (name, parameter), gradient in zip(embedder.items(), expected, strict=True):
        wanted = torch.zeros_like(parameter) if gradient is None else gradient
        torch.testing.assert_close(found[f"embedder.{name}"], wanted, rtol=1e-4, atol=1e-6)
    assert (flat(found) - plain).norm() > 0.01 * plain.norm()  # the source does say something


def test_value_is_the_objective_and_the_log_its_parts() -> None:
    made = session("stages.0.weight=3")
    stage = made.stages[0]
    made.model.select_trainable(stage.train)
    loss, log = stage.loss(made, problem(made), at())
    expected = 3 * (float(log["align"]) + float(log["uniform"])) + float(log["inner"])
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    assert 0 < float(log["gradient share"]) < 10


def test_warmup_minimises_the_target_loss_alone() -> None:
    made = session()
    step = problem(made, epoch=0)
    assert step.source is None
    found = backward(made, epoch=0)
    x, y = step.target[0].x, step.target[0].y
    made.model.zero_grad(set_to_none=True)
    made.model.loss(made.model.predict(x), y).mean().backward()
    for name, parameter in made.model.embedder.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, found[f"embedder.{name}"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("micro", [3, 5, 1])
def test_micro_batches_change_nothing(mode: str, micro: int) -> None:
    """One virtual step of the whole batch, whatever the memory allows at once."""
    given = ("stages.0.alpha=0.3", "stages.0.weight=50", f"stages.0.gradient={mode}")
    whole = flat(backward(session(*given)))
    parts = flat(backward(session(*given, f"training.batch.micro={micro}")))
    torch.testing.assert_close(parts, whole, rtol=5e-3, atol=5e-5)
    assert cosine(parts, whole) > 0.99999


@pytest.mark.parametrize("micro", ["null", "4"])
@pytest.mark.parametrize("backbone", ["backbone=tiny", DROPOUT])
def test_finite_differences_against_exact(micro: str, backbone: str) -> None:
    """With dropout they can only agree if all passes see the same masks."""
    given = (backbone, f"training.batch.micro={micro}", "stages.0.alpha=0.3")
    exact = second_order(*given)
    rough = second_order(*given, "stages.0.gradient=finite-difference")
    assert cosine(exact, rough) > 0.999
    assert float(rough.norm() / exact.norm()) == pytest.approx(1, abs=0.01)
    if backbone == DROPOUT:
        other = second_order(*given, seed=1)
        assert cosine(exact, other) < 0.99  # other masks would have been noticed


def test_trains_the_predictor_too_where_told() -> None:
    made = session("stages.0.train=[embedder.*, predictor.*]")
    found = backward(made)
    assert any(name.startswith("predictor.") and g.any() for name, g in found.items())


def test_inner_patterns_limit_the_virtual_step() -> None:
    few = backward(session("stages.0.inner=[backbone.layers.0.*]", "stages.0.weight=1000"))
    assert cosine(flat(few), flat(backward(session("stages.0.weight=1000")))) < 0.999


# --- randomness ---


def test_a_repeatable_loss_repeats_and_leaves_the_stream_alone() -> None:
    def noisy(phi: dict[str, Tensor]) -> Tensor:
        return functional.dropout(torch.ones(100), 0.5).sum() + torch.rand(())

    torch.manual_seed(0)
    loss_of = repeatable(noisy, torch.device("cpu"))
    first = loss_of({})
    after = torch.get_rng_state()
    torch.rand(5)
    elsewhere = torch.get_rng_state()
    assert torch.equal(loss_of({}), first)
    assert torch.equal(torch.get_rng_state(), elsewhere)
    torch.set_rng_state(after)
    assert not torch.equal(repeatable(noisy, torch.device("cpu"))({}), first)


def test_both_modes_draw_equally_often() -> None:
    states = []
    for mode in MODES:
        for micro in ("null", "3"):
            backward(session(DROPOUT, f"stages.0.gradient={mode}", f"training.batch.micro={micro}"))
            states.append((micro, torch.get_rng_state()))
    for micro in ("null", "3"):
        one, two = (state for name, state in states if name == micro)
        assert torch.equal(one, two)


def test_source_batches_hold_no_sample_twice() -> None:
    order = list(source_order(10, 4, 0, 6, 0, "name"))
    assert [len(index) for index in order] == [4] * 6
    for a, b in zip(order[::2], order[1::2], strict=True):
        assert len(set(torch.cat([a, b]).tolist())) == 8  # a pass: two batches, two left over
    assert not torch.equal(torch.cat(order[:2]), torch.cat(order[2:4]))
    whole = list(source_order(3, 4, 0, 2, 0, "name"))
    assert [sorted(index.tolist()) for index in whole] == [[0, 1, 2]] * 2


@pytest.mark.parametrize("first", range(7))
def test_source_batches_are_a_function_of_their_number(first: int) -> None:
    order = list(source_order(11, 4, 0, 9, 3, "name"))
    for number in (0, 1, 2):
        found = list(source_order(11, 4, first, number, 3, "name"))
        assert len(found) == number
        expected = order[first : first + number]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_steps_start_anywhere_and_read_nothing_before_they_are_asked() -> None:
    made = session("training.batch.micro=4")
    stage = made.stages[0]
    all_, late = (list(stage.steps(made, at(2, step))) for step in (0, 1))
    assert len(all_) == 2
    assert len(late) == 1
    (a,), (b,) = all_[0], late[0]  # the data of all_[0] are read only now
    (again,) = next(iter(stage.steps(made, at(2, 1))))
    assert a.source is not None
    assert b.source is not None
    assert again.source is not None
    assert torch.equal(b.source[0], again.source[0])
    assert torch.equal(b.target[0].x, again.target[0].x)
    assert not torch.equal(a.source[0], b.source[0])
    assert [batch.share for batch in a.target] == [0.4, 0.4, 0.2]


# --- what it leaves ---


@pytest.mark.parametrize("mode", MODES)
def test_only_the_embedder_changes_in_the_stage(mode: str) -> None:
    made = session(DROPOUT, f"stages.0.gradient={mode}", "stages.0.epochs=2")
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    changed: list[str] = []
    for record in Training(made).run():
        if isinstance(record, EpochRecord) and record.progress.epoch == 2:
            now = made.model.state_dict()
            changed = [name for name in before if not torch.equal(before[name], now[name])]
            assert record.metric is None
            break
    assert changed
    assert all(name.startswith("embedder.") for name in changed)
    gradients = [n for n, p in made.model.named_parameters() if p.grad is not None]
    assert all(name.startswith("embedder.") for name in gradients)


def test_running_statistics_of_the_head_stay() -> None:
    made = session()
    for part in (made.model.predictor, made.model.backbone):
        part.register_buffer("calls", torch.zeros(()))
        part.register_forward_hook(lambda module, *_: module.calls.add_(1) and None)
    backward(made)
    backward(made, epoch=0)
    assert made.model.predictor.calls.item() == made.model.backbone.calls.item() == 0
    made.model.predict(problem(made).target[0].x)
    assert made.model.predictor.calls.item() == made.model.backbone.calls.item() == 1


@pytest.mark.parametrize(
    ("mode", "micro", "passes"),
    [("exact", "null", 1), ("exact", "4", 2), ("finite-difference", "4", 3)],
)
def test_every_encoder_pass_is_counted(mode: str, micro: str, passes: int) -> None:
    made = session(
        f"stages.0.gradient={mode}",
        f"training.batch.micro={micro}",
        "stages.0.epochs=1",
        "training.max_steps=2",
    )
    training = Training(made)
    seen = []
    for record in training.run():
        if isinstance(record, EpochRecord):
            seen.append(training.snapshot.encoded)
        if len(seen) == 2:
            break
    warmup, whole = seen[0], seen[1] - seen[0]
    assert warmup == 2 * BATCH
    assert whole == 2 * (passes * BATCH + SOURCE)


# --- settings ---


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": ["*"]}, "does not train the backbone"),
        ({"train": ["norms"]}, "does not train the backbone"),
        ({"train": ["backbone.norm.*"]}, "does not train the backbone"),
        ({"train": []}, "at least 1 item"),
        ({"alpha": 0}, "greater than 0"),
        ({"weight": 0}, "greater than 0"),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"source_batch": 1}, "greater than or equal to 2"),
        ({"exponent": 0.5}, "greater than or equal to 1"),
        ({"temperature": 0}, "greater than 0"),
        ({"gradient": "first-order"}, "'exact' or 'finite-difference'"),
        ({"lamda": 1}, "unknown setting"),
    ],
)
def test_hostile_settings_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MetaAlign.Config(**given)


def test_an_inner_pattern_without_parameters_is_refused() -> None:
    made = session("stages.0.inner=[backbone.lora*]")
    with pytest.raises(UsageError, match=r"no parameter of the backbone matches .*backbone\.lora"):
        made.stages[0].begin(made)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("source=null",), "is missing; stage 'meta-align' needs one"),
        (("source=conll-2003",), "holds text, but backbone 'tiny' was trained on image"),
        (("stages=[meta-align]",), "only prepare"),
        (("backbone=identity", "embedder=flat"), "no weights for a virtual step"),
    ],
)
def test_recipes_that_cannot_work_say_why(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        compose_plan(CAR, registry(), Store(), overrides, "smoke")
    lines = " ".join(str(problem) for problem in error.value.problems)
    assert message in lines


def test_the_stage_is_as_long_as_its_two_parts() -> None:
    assert session("stages.0.warmup_epochs=4").stages[0].epochs == 4 + 1
    assert session("stages.0.warmup_epochs=0", "stages.0.epochs=2").stages[0].epochs == 2


def test_without_warmup_the_source_is_there_at_once() -> None:
    made = session("stages.0.warmup_epochs=0")
    assert problem(made, epoch=0).source is not None
