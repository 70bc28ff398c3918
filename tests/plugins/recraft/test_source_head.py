"""The source head: its gradient penalty by hand, its cache, what trains, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from xmodal import randomness
from xmodal.batch import SOURCE, Progress
from xmodal.data import loader
from xmodal.data.store import Store
from xmodal.engine.build import Builder
from xmodal.engine.loop import Training
from xmodal.engine.plan import compose_plan
from xmodal.engine.session import RunSession
from xmodal.engine.step import StepRecord
from xmodal.errors import UsageError
from xmodal.ops import evaluating
from xmodal.plugins import registry
from xmodal.testing.tiny import random
from xmodal_recraft import source_features
from xmodal_recraft.source_head import SourceHead, gradient_penalty

pytestmark = pytest.mark.slow

RECIPES = ("methods/recraft", "tasks/openml/car")


def session(tmp_path: Path, *overrides: str, recipes: tuple[str, ...] = RECIPES) -> RunSession:
    plan = compose_plan(recipes, registry(), Store(tmp_path), overrides, "smoke")
    builder = Builder(plan, Store(tmp_path), lambda line: None)
    return builder.session(builder.data())


def train(given: RunSession, stage: int = 0) -> list[StepRecord]:
    """All steps of one stage."""
    given.stages = given.stages[stage : stage + 1]
    return [r for r in Training(given).run() if isinstance(r, StepRecord)]


def at(epoch: int, steps: int = 2) -> Progress:
    return Progress(0, epoch, 20, 0, steps)


# --- the penalty on a linear head ---


def linear(weight_KD: Tensor, z_BD: Tensor, y: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    loss_B = functional.cross_entropy(z_BD @ weight_KD.T, y, reduction="none", label_smoothing=0.1)
    return gradient_penalty(loss_B, z_BD, tau)


def by_hand(weight_KD: Tensor, z_BD: Tensor, y: Tensor, tau: float) -> Tensor:
    """grad_z l = Wᵀ(softmax(Wz) − q), q the smoothed label."""
    classes = len(weight_KD)
    q_BK = 0.9 * functional.one_hot(y, classes).double() + 0.1 / classes
    gradient_BD = ((z_BD @ weight_KD.T).softmax(1) - q_BK) @ weight_KD
    norm_B = gradient_BD.norm(dim=1)
    return torch.stack([max(torch.zeros(()), n - tau) ** 2 for n in norm_B]).sum() / len(y)


@pytest.fixture
def given() -> tuple[Tensor, Tensor, Tensor]:
    return random(3, 5).double(), random(4, 5, seed=1).double(), torch.tensor([0, 2, 1, 1])


@pytest.mark.parametrize("tau", [0.0, 0.4, 1.2])
def test_penalty_by_hand(given: tuple[Tensor, Tensor, Tensor], tau: float) -> None:
    weight, z, y = given
    penalty, norm_B = linear(weight, z.requires_grad_(), y, tau)
    expected = by_hand(weight, z.detach(), y, tau)
    assert float(penalty.detach()) == pytest.approx(float(expected), rel=1e-10, abs=1e-12)
    assert norm_B.shape == (4,)


def test_penalty_moves_the_head_as_finite_differences_say(
    given: tuple[Tensor, Tensor, Tensor],
) -> None:
    weight, z, y = given
    weight.requires_grad_()
    (gradient,) = torch.autograd.grad(linear(weight, z.requires_grad_(), y, 0.4)[0], weight)
    step = 1e-6
    for row in range(3):
        for column in range(5):
            change = torch.zeros_like(weight)
            change[row, column] = step
            up, down = (by_hand(weight.detach() + s * change, z.detach(), y, 0.4) for s in (1, -1))
            slope = float(up - down) / (2 * step)
            assert float(gradient[row, column]) == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_gentle_losses_cost_nothing(given: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, z, y = given
    weight.requires_grad_()
    penalty, norm_B = linear(weight, z.requires_grad_(), y, 100.0)
    assert float(penalty.detach()) == 0
    assert float(norm_B.detach().max()) > 0
    (gradient,) = torch.autograd.grad(penalty, weight)
    assert not gradient.any()


def test_penalty_is_finite_where_the_loss_is_flat() -> None:
    z = random(2, 3).requires_grad_()
    weight = torch.zeros(4, 3, requires_grad=True)
    penalty, _ = linear(weight, z, torch.tensor([0, 1]), 0.0)
    (gradient,) = torch.autograd.grad(penalty, weight)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("place", ["tokens", "features"])
def test_loss_against_gradients_of_single_samples(place: str, tmp_path: Path) -> None:
    """z is the tokens, all of a sample's numbers in one norm; or the mean token."""
    run = session(tmp_path, f"stages.0.lipschitz_in={place}", "stages.0.tau=0.01")
    stage, model = run.stages[0], run.model
    run.model.select_trainable(stage.train)
    stage.begin(run)
    micro = next(iter(next(iter(stage.steps(run, at(10))))))
    total, log = stage.loss(run, micro, at(10))
    index = _order(run, 10)[:4]
    x, y = next(loader.batches(run.source, [index]))  # type: ignore[arg-type]
    tokens = model.embed_source(x)
    losses, norms = [], []
    for i in range(4):
        z = tokens.x_BND[i : i + 1].detach().requires_grad_(place == "tokens")
        features = model.backbone(type(tokens)(z, tokens.grid))
        u = features.x_BND.mean(1, keepdim=True)
        if place == "features":
            u = z = u.detach().requires_grad_()
        own = model.apply_head(SOURCE, type(tokens)(u, (1, 1)))
        loss = functional.cross_entropy(own, y[i : i + 1], label_smoothing=0.1)
        (gradient,) = torch.autograd.grad(loss, z)
        losses.append(float(loss))
        norms.append(float(gradient.norm()))
    penalty = sum(max(0.0, n - 0.01) ** 2 for n in norms) / 4
    assert penalty > 0
    assert float(log["penalty"]) == pytest.approx(penalty, rel=1e-3)
    assert float(total) == pytest.approx(sum(losses) / 4 + 100 * penalty, rel=1e-3)


def _order(run: RunSession, epoch: int) -> Tensor:
    count = loader.count(run.source)  # type: ignore[arg-type]
    return randomness.permutation(count, run.seed, "source head", 0, epoch)


# --- the stage ---


def test_features_are_computed_once_and_are_those_of_the_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = session(tmp_path, "stages.0.lipschitz_in=features")
    stage: Any = run.stages[0]
    run.model.select_trainable(stage.train)
    stage.begin(run)
    kept = stage._features.kept.tensors
    assert kept[0].shape == (32, 1, 32)
    x, y = loader.first(run.source, 32)  # type: ignore[arg-type]
    with torch.no_grad(), evaluating(run.model.backbone):
        again = run.model.backbone(run.model.embed_source(x))
    assert torch.allclose(kept[0][:, 0], again.x_BND.mean(1), atol=1e-6)
    assert torch.equal(kept[1], y)

    def never(*_: object) -> None:
        raise AssertionError("the encoder runs again")

    monkeypatch.setattr(source_features, "encode", never)
    monkeypatch.setattr(run.model, "embed_source", never)
    for epoch in (0, 10):
        for step in stage.steps(run, at(epoch)):
            for micro in step:
                assert stage.loss(run, micro, at(epoch))[0].isfinite()


@pytest.mark.parametrize("place", ["tokens", "features"])
def test_without_memory_the_same_is_computed_anew(place: str, tmp_path: Path) -> None:
    runs = [
        session(tmp_path, f"stages.0.lipschitz_in={place}", "stages.0.epochs=12", *more)
        for more in ([], ["stages.0.cache_gb=0"])
    ]
    losses = [[r.loss for r in train(run)] for run in runs]
    assert len(losses[0]) == 24
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert any("computed again in every epoch" in note for note in runs[1].notes)
    assert not any("computed again" in note for note in runs[0].notes)


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    overrides = ["stages.0.epochs=11", "stages.0.batch={size: 4, micro: 2}"]
    whole, pieces = session(tmp_path, "stages.0.epochs=11"), session(tmp_path, *overrides)
    assert [r.loss for r in train(whole)] == pytest.approx(
        [r.loss for r in train(pieces)], rel=1e-5
    )


@pytest.mark.parametrize("place", ["tokens", "features"])
def test_dropout_in_the_body_does_not_reach_the_features(place: str, tmp_path: Path) -> None:
    overrides = ["backbone.dropout=0.5", "stages.0.epochs=11", f"stages.0.lipschitz_in={place}"]
    one, other = (session(tmp_path, *overrides, *m) for m in ([], ["stages.0.cache_gb=0"]))
    assert [r.loss for r in train(one)] == pytest.approx([r.loss for r in train(other)], rel=1e-5)
    assert one.model.backbone.training


@pytest.mark.parametrize(
    ("stage", "prefix"), [(0, "source_predictor."), (1, "embedder."), (2, "embedder.")]
)
def test_only_what_should_train_changes(stage: int, prefix: str, tmp_path: Path) -> None:
    run = session(tmp_path, "stages.0.epochs=11", "stages.1.optimizer.lr=0.01")
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    assert train(run, stage)
    after = run.model.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed
    assert all(name.startswith(prefix) for name in changed)


def accuracy(run: RunSession) -> float:
    x, y = loader.first(run.source, 10_000)  # type: ignore[arg-type]
    with torch.no_grad():
        prediction = run.model.apply_head(SOURCE, run.model.backbone(run.model.embed_source(x)))
    return float((prediction.argmax(1) == y).float().mean())


@pytest.mark.long
def test_the_head_learns_digits_and_the_penalty_flattens_it(tmp_path: Path) -> None:
    common = ["source.samples=300", "training.max_steps=null", "training.batch={size: 50}"]
    common += ["stages.0.optimizer.lr=0.01", "stages.0.epochs=40"]
    common += ["stages.0.penalty_from=20", "stages.0.tau=0.05", "stages.0.lipschitz_in=tokens"]
    scores, steepness = [], []
    for rho in (0, 100):
        run = session(tmp_path, *common, f"stages.0.rho={rho}")
        assert accuracy(run) < 0.3
        records = train(run)
        scores.append(accuracy(run))
        steepness.append(_steepness(run))
        assert len(records) == 40 * 6
    assert scores[0] > 0.5
    assert scores[1] > 0.3
    assert steepness[1] < 0.7 * steepness[0]


def _steepness(run: RunSession) -> float:
    stage: Any = run.stages[0]
    probe = SourceHead(stage.config.model_copy(update={"rho": 1.0}), None)  # type: ignore[arg-type]
    x, y = loader.first(run.source, 100)  # type: ignore[arg-type]
    log = probe.loss(run, (x, y, 1.0), at(30))[1]
    return float(log["gradient in z"])


def test_a_shared_head_needs_its_name(tmp_path: Path) -> None:
    """Darcy's pressures and a map of figures can share a head; its parameters are the target's."""
    darcy = ("methods/recraft", "tasks/darcy")
    given = session(tmp_path, "source_head=target", recipes=darcy)
    with pytest.raises(UsageError, match=r"predictor\.\*"):
        train(given)
    named = 'stages.0.train=["predictor.*"]'
    assert train(session(tmp_path, "source_head=target", named, recipes=darcy))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("tau", -1), ("rho", -1), ("label_smoothing", 1), ("lipschitz_in", "labels"), ("epochs", 0)],
)
def test_bad_settings_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=setting):
        SourceHead.Config.model_validate({setting: value})


def test_own_loss_of_the_source_and_smoothing_differ(tmp_path: Path) -> None:
    y, prediction = torch.tensor([1, 0]), random(2, 10)
    for smoothing, amount in (("null", 0.0), ("0.1", 0.1)):
        run = session(tmp_path, f"stages.0.label_smoothing={smoothing}")
        stage: Any = run.stages[0]
        expected = functional.cross_entropy(prediction, y, reduction="none", label_smoothing=amount)
        assert torch.allclose(stage.source_loss(run, prediction, y), expected)
