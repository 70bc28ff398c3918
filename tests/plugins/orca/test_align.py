"""The alignment stage: its loss by hand, its gradient, its classes and its learning rate."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from xmodal.alignment import AlignmentStage
from xmodal.batch import Points, Progress, Tokens
from xmodal.data.store import Store
from xmodal.engine.loop import EpochRecord, Training
from xmodal.engine.model import TrainingModel
from xmodal.engine.session import RunSession
from xmodal.errors import RecipeError
from xmodal.interfaces import (
    BackboneFacts,
    Context,
    Distance,
    Facts,
    Settings,
    SourceFacts,
    Target,
    TaskData,
    TaskFacts,
)
from xmodal.plugins import registry
from xmodal.recipe.choice import chosen
from xmodal.settings import Use
from xmodal_orca.align import Align
from xmodal_recraft.align_features import AlignFeatures

WIDTH, TOKENS, INPUT = 5, 3, 4
IMAGES = Target("classification", 3)


class MeanDistance(Distance):
    """Half the squared distance of the means; keeps what it was given."""

    def __init__(self, config: Settings, context: Context) -> None:
        super().__init__(config, context)
        self.seen: list[Points] = []

    def fit(self, source: Points) -> None:
        self.source = source

    def __call__(self, target: Points) -> Tensor:
        self.seen.append(Points(target.x_ND.detach(), target.classes_N))
        return 0.5 * (target.x_ND.mean(0) - self.source.x_ND.mean(0)).square().sum()


class LinearEmbedder(nn.Module):
    """Four numbers to three tokens of width five."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(INPUT, TOKENS * WIDTH)

    def forward(self, x: Tensor) -> Tokens:
        return Tokens(self.projection(x).view(-1, TOKENS, WIDTH), (TOKENS,))


class Body(nn.Module):
    """A backbone whose embedding has drop-out, and whose encoder must not be run."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(2, 2 * WIDTH)
        self.dropout = nn.Dropout(0.5)

    def embed(self, x: Tensor) -> Tokens:
        return Tokens(self.dropout(self.projection(x)).view(-1, 2, WIDTH), (2,))

    def embedding_parameters(self) -> list[nn.Parameter]:
        return list(self.projection.parameters())

    def forward(self, tokens: Tokens) -> Tokens:
        raise AssertionError("alignment must not run the encoder")


def labels(target: Target, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if target.kind == "classification":
        return torch.arange(count) % target.size
    y = torch.randn(count, target.size, *target.shape, generator=generator)
    return y if target.kind in ("regression", "dense") else (y > 0).float()


def session(
    y: Tensor,
    target: Target,
    source_target: Target = IMAGES,
    sources: int = 20,
    seed: int = 0,
    batch: int = 64,
) -> RunSession:
    """A run in memory of the parts above: ``len(y)`` samples with those labels."""
    generator = torch.Generator().manual_seed(17)
    torch.manual_seed(5)
    model = TrainingModel(LinearEmbedder(), Body(), None, nn.Identity(), None, nn.Identity())  # type: ignore[arg-type]
    x = torch.randn(len(y), INPUT, generator=generator)
    data = TensorDataset(x, y)
    source = torch.randn(sources, 2, generator=generator) + 2, labels(source_target, sources)
    facts = Facts(
        TaskFacts("toy", (INPUT,), target, {"train": len(y)}),
        BackboneFacts("body", "image", WIDTH, WIDTH),
        SourceFacts("toy-source", "image", source_target),
    )
    return RunSession(
        model=model,
        data=TaskData(data, data, data, "none"),
        facts=facts,
        metric=None,  # type: ignore[arg-type]
        stages=(),
        accelerator=Accelerator(cpu=True),
        source=TensorDataset(*source),
        seed=seed,
        evaluation_batch=batch,
    )


def stage(cls: type[AlignmentStage] = Align, **settings: Any) -> AlignmentStage:
    given = {"distance": Use("means", MeanDistance, Settings()), **settings}
    context = Context(
        facts=Facts(
            TaskFacts("toy", (INPUT,), IMAGES, {"train": 8}), BackboneFacts("body", "image", 5, 5)
        ),
        generator=torch.Generator().manual_seed(0),
        store=Store(),
    )
    return cls(cls.Config(**given), context)


def at(epoch: int = 0, step: int = 0) -> Progress:
    return Progress(0, epoch, 60, step, 1)


def step(align: AlignmentStage, session: RunSession, epoch: int = 0) -> list[tuple[Tensor, float]]:
    """The losses of all classes of one step, and the distances that were logged."""
    (parts,) = align.steps(session, at(epoch))
    found = []
    for part in parts:
        loss, log = align.loss(session, part, at(epoch))
        found.append((loss, float(log["distance"])))
    return found


CLASSES = torch.tensor([0, 1, 2, 1, 0, 1, 1, 2, 0, 1])


def test_the_loss_is_the_weighted_sum_of_the_distances() -> None:
    align, place = stage(), session(CLASSES, Target("classification", 3))
    align.begin(place)
    with torch.no_grad():
        source = place.model.backbone.projection(place.source.tensors[0])  # type: ignore[union-attr]
        source_mean = source.view(-1, 2, WIDTH).mean(1).mean(0)
        x = place.model.embedder(place.data.train.tensors[0]).x_BND.mean(1)  # type: ignore[attr-defined]
        expected = sum(
            share * 0.5 * (x[members].mean(0) - source_mean).square().sum()
            for share, members in (
                (0.3, [0, 4, 8]),
                (0.5, [1, 3, 5, 6, 9]),
                (0.2, [2, 7]),
            )
        )
    total = sum(loss for loss, _ in step(align, place))
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("batch", [64, 2])
def test_the_gradient_is_that_of_the_distance(batch: int) -> None:
    """Also where a class is embedded in several batches, each again for the backward pass."""
    align, place = stage(), session(CLASSES, Target("classification", 3), batch=batch)
    align.begin(place)
    parameters = list(place.model.embedder.parameters())
    for loss, _ in step(align, place):
        loss.backward()
    found = [p.grad.clone() for p in parameters if p.grad is not None]
    x = place.model.embedder(place.data.train.tensors[0]).x_BND.mean(1)  # type: ignore[attr-defined]
    parts = [[0, 4, 8], [1, 3, 5, 6, 9], [2, 7]]
    total = sum(len(part) / 10 * align.distance(Points(x[part])) for part in parts)
    expected = torch.autograd.grad(total, parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_what_the_distance_is_given() -> None:
    align, place = stage(), session(CLASSES, Target("classification", 3))
    align.begin(place)
    step(align, place)
    source = align.distance.source  # type: ignore[attr-defined]
    assert source.x_ND.shape == (20, WIDTH)
    assert not source.x_ND.requires_grad
    assert source.classes_N.tolist() == place.source.tensors[1].tolist()  # type: ignore[union-attr]
    for points in align.distance.seen:  # type: ignore[attr-defined]
        assert points.x_ND.dtype == torch.float32
        assert points.classes_N.tolist() == [0] * len(points.x_ND)


def test_the_source_is_embedded_without_drop_out_and_nothing_random_moves() -> None:
    place = session(CLASSES, Target("classification", 3))
    place.model.train()
    before = torch.get_rng_state()
    points = []
    for _ in range(2):
        align = stage()
        align.begin(place)
        points.append(align.distance.source.x_ND)  # type: ignore[attr-defined]
    assert torch.equal(*points)
    assert torch.equal(before, torch.get_rng_state())
    assert place.model.training
    assert place.model.backbone.dropout.training  # type: ignore[union-attr]


def test_the_source_is_capped_by_a_seeded_draw() -> None:
    found = []
    for seed in (0, 0, 1):
        align = stage(source_samples=7)
        align.begin(session(CLASSES, Target("classification", 3), seed=seed))
        found.append(align.distance.source)  # type: ignore[attr-defined]
    assert [len(points.x_ND) for points in found] == [7, 7, 7]
    assert torch.equal(found[0].x_ND, found[1].x_ND)
    assert not torch.equal(found[0].x_ND, found[2].x_ND)


@pytest.mark.parametrize("kind", ["dense", "multi-label", "regression"])
def test_a_source_without_classes(kind: Any) -> None:
    target = Target(kind, 2, (3, 3) if kind == "dense" else ())
    align, place = stage(), session(CLASSES, Target("classification", 3), source_target=target)
    align.begin(place)
    assert align.distance.source.classes_N is None  # type: ignore[attr-defined]
    assert len(step(align, place)) == 3


TARGETS = [
    Target("classification", 4),
    Target("multi-label", 3),
    Target("regression", 2),
    Target("dense", 1, (4, 4)),
    Target("dense", 2, (9,)),
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.kind}{len(t.shape)}")
def test_every_kind_of_label_is_cut_into_classes(target: Target) -> None:
    align, place = stage(classes=4), session(labels(target, 40), target)
    align.begin(place)
    assert 2 <= len(step(align, place)) <= 4
    sizes = sorted(len(points.x_ND) for points in align.distance.seen)  # type: ignore[attr-defined]
    assert sum(sizes) <= 40
    if target.kind == "classification":
        assert sizes == [10, 10, 10, 10]


def test_unknown_labels_belong_to_no_class() -> None:
    y = labels(Target("regression", 2), 40)
    y[:10] = float("nan")
    align, place = stage(classes=3), session(y, Target("regression", 2))
    align.begin(place)
    step(align, place)
    assert sum(len(points.x_ND) for points in align.distance.seen) <= 30  # type: ignore[attr-defined]


def test_classes_of_one_sample_are_left_out_but_count() -> None:
    y = torch.tensor([0, 0, 0, 1, 2, 2, 4])
    align, place = stage(), session(y, Target("classification", 5))
    align.begin(place)
    found = step(align, place)
    shares = sorted(loss.item() / distance for loss, distance in found)
    assert shares == pytest.approx([2 / 7, 3 / 7])


def test_nothing_to_align_is_no_error() -> None:
    align, place = stage(), session(torch.tensor([0, 1, 2]), Target("classification", 3))
    align.begin(place)
    assert step(align, place) == []
    assert "0 classes" in place.notes[-1]


class Reads(Dataset[tuple[Tensor, Tensor]]):
    """Counts which samples are read."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.reads: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads[index] += 1
        return self.x[index], self.y[index]


def test_an_epoch_reads_only_what_it_draws() -> None:
    y = labels(Target("regression", 1), 60)
    align, place = stage(classes=3, samples=5), session(y, Target("regression", 1))
    reads = Reads(*place.data.train.tensors)  # type: ignore[attr-defined]
    place.data = replace(place.data, train=reads)
    align.begin(place)
    assert set(reads.reads.values()) == {1}  # once each, for its label
    reads.reads.clear()
    (parts,) = align.steps(place, at())
    assert not reads.reads  # nothing before a class is asked for
    align.loss(place, parts[0], at())
    assert sum(reads.reads.values()) <= 5
    for part in parts[1:]:
        align.loss(place, part, at())
    assert sum(reads.reads.values()) <= 15
    assert set(reads.reads.values()) == {1}


def test_epochs_draw_other_samples_in_another_order_and_depend_on_nothing_else() -> None:
    y = torch.arange(80) % 4
    align, place = stage(samples=6), session(y, Target("classification", 4))
    align.begin(place)
    first = [loss.item() for loss, _ in step(align, place, 0)]
    second = [loss.item() for loss, _ in step(align, place, 1)]
    assert sorted(first) != sorted(second)
    fresh, place = stage(samples=6), session(y, Target("classification", 4))
    fresh.begin(place)
    assert [loss.item() for loss, _ in step(fresh, place, 1)] == second
    assert list(fresh.steps(place, at(1, step=1))) == []


def test_classes_come_in_a_random_order() -> None:
    y = torch.tensor([c for c in range(6) for _ in range(c + 2)])
    align, place = stage(), session(y, Target("classification", 6))
    align.begin(place)
    orders = set()
    for epoch in range(5):
        align.distance.seen.clear()  # type: ignore[attr-defined]
        step(align, place, epoch)
        orders.add(tuple(len(p.x_ND) for p in align.distance.seen))  # type: ignore[attr-defined]
    assert len(orders) > 1
    assert all(sorted(order) == [2, 3, 4, 5, 6, 7] for order in orders)


# --- all samples as one set ---


@pytest.mark.parametrize("batch", [64, 4])
def test_one_set_is_a_plain_distance_of_all_samples(batch: int) -> None:
    """Classes of one sample count like any other, and no point has a class."""
    y = torch.tensor([0, 0, 0, 1, 2, 2, 4])
    align, place = stage(AlignFeatures), session(y, Target("classification", 5), batch=batch)
    align.begin(place)
    ((loss, logged),) = step(align, place)
    with torch.no_grad():
        x = place.model.embedder(place.data.train.tensors[0]).x_BND.mean(1)  # type: ignore[attr-defined]
        source = place.model.backbone.projection(place.source.tensors[0])  # type: ignore[union-attr]
        apart = x.mean(0) - source.view(-1, 2, WIDTH).mean(1).mean(0)
    torch.testing.assert_close(loss.detach(), 0.5 * apart.square().sum())
    assert logged == loss.item()
    (seen,) = align.distance.seen  # type: ignore[attr-defined]
    assert seen.classes_N is align.distance.source.classes_N is None  # type: ignore[attr-defined]
    assert "one set of 7" in place.notes[-1]


def test_the_distance_of_one_set_sees_the_mean_tokens_of_few_samples_drawn_anew() -> None:
    align = stage(AlignFeatures, samples=6, source_samples=9)
    place = session(torch.arange(80) % 4, Target("classification", 4))
    align.begin(place)
    every = place.model.embedder(place.data.train.tensors[0]).x_BND.mean(1)  # type: ignore[attr-defined]
    drawn = []
    for epoch in (0, 1, 0):
        step(align, place, epoch)
        points = align.distance.seen[-1].x_ND  # type: ignore[attr-defined]
        away = (points[:, None] - every.detach()).norm(dim=2)
        assert away.min(dim=1).values.max() < 1e-5
        drawn.append(away.argmin(dim=1).tolist())
    assert all(len(set(indices)) == 6 for indices in drawn)
    assert drawn[0] == drawn[2] != drawn[1]
    assert len(align.distance.source.x_ND) == 9  # type: ignore[attr-defined]


def test_one_set_reads_no_labels() -> None:
    y = labels(Target("regression", 2), 60)
    align, place = stage(AlignFeatures, samples=5), session(y, Target("regression", 2))
    reads = Reads(*place.data.train.tensors)  # type: ignore[attr-defined]
    place.data = replace(place.data, train=reads)
    align.begin(place)
    assert not reads.reads
    step(align, place)
    assert sorted(reads.reads.values()) == [1] * 5


def test_labels_of_a_target_make_no_difference_to_one_set() -> None:
    found = []
    for y, target in (
        (CLASSES, Target("classification", 3)),
        (torch.full((10, 2), float("nan")), Target("regression", 2)),
    ):
        align, place = stage(AlignFeatures), session(y, target)
        align.begin(place)
        ((loss, _),) = step(align, place)
        found.append(loss)
    assert torch.equal(*found)


def test_recipes_of_the_first_name_keep_working() -> None:
    """One set of all samples was ``align`` with ``per_class: false``."""

    def meant(block: dict[str, Any]) -> dict[str, Any]:
        return chosen("stage", block, registry(), "here").dump()

    assert meant({"use": "align", "per_class": True, "samples": 3}) == meant(
        {"use": "align", "samples": 3}
    )
    assert "per_class" not in meant({"use": "align"})
    old = {"use": "align", "per_class": False, "classes": 10, "lr_factor": 1, "epochs": 2}
    assert meant(old) == meant({"use": "align-features", "lr_factor": 1, "epochs": 2})
    with pytest.raises(RecipeError, match="did you mean 'epochs'"):
        meant({"use": "align", "per_class": False, "epoch": 2})


@pytest.mark.parametrize(("lr", "expected"), [(1e-4, 1e-3), (1e-3, 1e-2), (2e-3, 2e-3), (0.1, 0.1)])
def test_small_learning_rates_are_multiplied(lr: float, expected: float) -> None:
    align = stage(optimizer={"use": "sgd", "lr": lr})
    made = align.optimizer([("embedder.w", nn.Parameter(torch.zeros(2)))])
    assert made.param_groups[0]["lr"] == pytest.approx(expected)


def test_the_rate_falls_after_the_published_epochs() -> None:
    align = stage(optimizer={"use": "sgd", "lr": 1e-3}, lr_factor=1)
    optimizer = align.optimizer([("embedder.w", nn.Parameter(torch.zeros(2)))])
    schedule = align.schedule(optimizer, 1)
    rates = []
    for _ in range(62):
        rates.append(optimizer.param_groups[0]["lr"] / 1e-3)
        optimizer.step()
        schedule.step()
    # The number of milestones strictly passed: epoch 20 still has the first rate, 21 the second.
    expected = [1.0] * 21 + [0.2] * 20 + [0.04] * 20 + [0.008]
    assert rates == pytest.approx(expected)


def test_training_lowers_the_distance_and_touches_the_embedder_alone() -> None:
    place = session(CLASSES, Target("classification", 3))
    align = stage(epochs=30, optimizer={"use": "adamw", "lr": 1e-3})
    place.stages = (align,)
    before = {name: p.clone() for name, p in place.model.named_parameters()}
    training = Training(place)
    records = [r for r in training.run() if isinstance(r, EpochRecord)]
    losses = [r.train["loss"] for r in records]
    assert losses[-1] < 0.5 * losses[0]
    assert all(r.metric is None for r in records)
    assert training.snapshot.encoded == 0
    changed = {n for n, p in place.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"embedder.projection.weight", "embedder.projection.bias"}


def test_sinkhorn_takes_the_steps_of_otdd() -> None:
    """With one target class a step the label distances of OTDD are constants (the default)."""
    found = []
    for distance in ("otdd", "sinkhorn", "l2"):
        place = session(CLASSES, Target("classification", 3), sources=30)
        settings = {"tolerance": 1e-6} if distance != "l2" else {}
        place.stages = (
            stage(
                epochs=10,
                distance={"use": distance, **settings},
                optimizer={"use": "sgd", "lr": 1e-2, "momentum": 0},
                lr_factor=1,
            ),
        )
        start = [p.detach().clone() for p in place.model.embedder.parameters()]
        for _ in Training(place).run():
            pass
        ends = zip(place.model.embedder.parameters(), start, strict=True)
        found.append(torch.cat([(end - begin).detach().flatten() for end, begin in ends]))
    otdd, sinkhorn, other = found
    assert (otdd - sinkhorn).norm() < 1e-3 * otdd.norm()
    assert (otdd - other).norm() > 0.1 * otdd.norm()


def test_no_epochs_leave_the_stage_out() -> None:
    place = session(CLASSES, Target("classification", 3))
    place.source = None
    place.stages = (stage(epochs=0),)
    assert list(Training(place).run()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 1},
        {"source_samples": 0},
        {"classes": 0},
        {"epochs": -1},
        {"lr_factor": 0},
        {"decay": {"factor": 1.5}},
        {"decay": {"after": [-1]}},
    ],
)
def test_hostile_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        stage(**wrong)


def test_a_body_without_tokens_of_its_own_is_refused() -> None:
    facts = Facts(TaskFacts("toy", (4,), IMAGES, {}), BackboneFacts("identity", "any", 0, 0))
    (line,) = Align.problems(stage().config, facts)
    assert "its own embedding" in line
