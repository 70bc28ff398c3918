"""What the engine does for methods that use data, stages or encoder passes in other ways.

Shares of samples and of labels, unlabelled streams, the count of encoder passes, stretched
training, stages that only prepare, and terms that compare two predictions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from xmodal import api, plugins, randomness, runs
from xmodal.batch import SOURCE, TARGET, Batch, Progress, Term, Tokens, View
from xmodal.data import loader
from xmodal.data.feed import Feed
from xmodal.data.store import Store
from xmodal.engine import checkpoint
from xmodal.engine.build import Builder
from xmodal.engine.evaluate import evaluate
from xmodal.engine.loop import Training
from xmodal.engine.model import TrainingModel
from xmodal.engine.plan import compose_plan, plan
from xmodal.engine.session import RunSession
from xmodal.errors import RecipeError
from xmodal.interfaces import TaskData
from xmodal.testing.running import RecordingObserver, StopAt, assert_same, weights
from xmodal.testing.tiny import tiny_context

pytestmark = pytest.mark.slow

TRAIN, CLASSES = 40, 3
EXTRA = '''
"""Parts that need what the engine offers."""

from xmodal.batch import SOURCE, Term, View
from xmodal.hookspecs import hookimpl
from xmodal.interfaces import (
    Loss, Metric, Mixer, Settings, Stage, Target, Task, TaskData, TaskFacts, Use, default
)
from xmodal.optimize import SGD, make_optimizer
from torch.utils.data import TensorDataset
import torch


class Agree(Mixer):
    """The target's own loss, and agreement of two noisy views of samples without labels."""

    needs_unlabelled = True

    def __init__(self, config, context):
        super().__init__(config, context)
        self.generator = context.generator

    def forward(self, target, source, progress):
        views = [View(target.tokens, (Term(target.head, target.y, 1.0),))]
        if target.unlabelled is not None:
            tokens = target.unlabelled
            noise = torch.randn(tokens.x_BND.shape, generator=self.generator)
            noisy = type(tokens)(tokens.x_BND + 0.5 * noise, tokens.grid)
            views += [View(tokens, ()), View(noisy, (Term(target.head, None, 1.0, like=1),))]
        return tuple(views)


class Prepare(Stage):
    """One step an epoch that pulls the embedder's parameters towards zero."""

    evaluates = False

    class Config(Settings):
        epochs: int = 3
        train: tuple[str, ...] = ("embedder.*",)

    def steps_per_epoch(self, session):
        return 1

    def optimizer(self, named):
        return make_optimizer(SGD(lr=0.1), named)

    def steps(self, session, progress):
        for step in range(progress.step, 1):
            yield [None]

    def loss(self, session, micro, progress):
        loss = sum(p.square().sum() for p in session.model.embedder.parameters())
        return loss, {"length": loss.detach()}


@hookimpl
def xmodal_mixers():
    return {"agree": f"{__name__}:Agree"}


class Persons(Task):
    """Four samples of each of 15 persons; the first two thirds of the persons are class 0."""

    class Config(Settings):
        loss: Use[Loss] = default("cross-entropy")
        metric: Use[Metric] = default("error-rate")

    @classmethod
    def describe(cls, config, store):
        counts = {"train": 40, "validation": 12, "test": 8}
        return TaskFacts("persons", (3,), Target("classification", 2), counts, (0, 0, 0))

    def load(self, seed):
        person = torch.arange(60) // 4
        x = torch.stack([person, torch.arange(60), torch.zeros(60)], 1).float()
        y = (person % 3 == 2).long()
        parts = {"train": slice(0, 40), "validation": slice(40, 52), "test": slice(52, 60)}
        sets = {name: TensorDataset(x[rows], y[rows]) for name, rows in parts.items()}
        groups = {name: person[rows] for name, rows in parts.items()}
        return TaskData(**sets, checksum="persons", groups=groups)


@hookimpl
def xmodal_tasks():
    return {"persons": f"{__name__}:Persons"}


@hookimpl
def xmodal_stages():
    return {"prepare": f"{__name__}:Prepare"}
'''


@pytest.fixture(scope="module")
def extra(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("plugin") / "extra.py"
    file.write_text(EXTRA)
    return str(file)


def write_data(folder: Path, change: Callable[[np.ndarray], None] | None = None) -> Path:
    """A small classification problem with files of its own for every part."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for name, count in (("train", TRAIN), ("validation", 9), ("test", 12)):
        y = np.arange(count) % CLASSES
        x = random.normal(size=(count, 2, 12)).astype("float32") + y[:, None, None]
        if name == "train" and change is not None:
            change(y)
        np.savez(folder / f"{name}.npz", x=x, y=y)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def settings(folder: Path) -> list[str]:
    files = {part: str(folder / f"{part}.npz") for part in ("train", "validation", "test")}
    return [f"task={json.dumps({'use': 'arrays', **files})}", "training.max_steps=null"]


def builder(folder: Path, *overrides: str, method: str = "nft", extra: str = "") -> Builder:
    registry = plugins.registry((extra,) if extra else ())
    made = compose_plan(
        [f"methods/{method}"], registry, Store(), [*settings(folder), *overrides], "smoke"
    )
    return Builder(made, Store(), lambda line: None)


def data(folder: Path, *overrides: str) -> TaskData:
    return builder(folder, *overrides).data()


def run(
    folder: Path, root: Path, *overrides: str, method: str = "nft", extra: str = "", **more: Any
) -> runs.Run:
    return api.run(
        f"methods/{method}",
        scale="smoke",
        overrides=[*settings(folder), *overrides],
        root=root,
        report=more.pop("report", False),
        plugin_files=(extra,) if extra else (),
        **more,
    ).run


def rows(dataset: Any) -> list[tuple[float, ...]]:
    """Samples as something that can be compared and looked up."""
    x = torch.cat([x for x, _ in loader.in_order(dataset, 64)])
    return [tuple(row) for row in x.flatten(1).tolist()]


# --- shares of samples and labels ---


def test_smaller_shares_are_subsets_and_keep_the_order(folder: Path) -> None:
    whole = rows(data(folder).train)
    assert len(whole) == TRAIN
    previous: set[Any] = set()
    for fraction, count in ((0.01, 1), (0.25, 10), (0.5, 20), (1.0, 40)):
        used = rows(data(folder, f"fraction={fraction}").train)
        assert len(used) == count
        assert previous <= set(used)
        assert used == [row for row in whole if row in set(used)]
        previous = set(used)


def test_shares_keep_the_proportions_of_classes(folder: Path) -> None:
    whole = np.bincount(loader.labels(data(folder).train).numpy(), minlength=CLASSES)
    for fraction in (0.1, 0.3, 0.5):
        part = loader.labels(data(folder, f"fraction={fraction}").train).numpy()
        counts = np.bincount(part, minlength=CLASSES)
        assert (counts > 0).all()
        assert (np.abs(counts - whole * fraction) <= 1).all()


def test_every_method_gets_the_same_share(folder: Path) -> None:
    shares = []
    for method in ("nft", "pare", "mixup", "orca"):
        made = builder(folder, "fraction=0.3", method=method)
        shares.append(rows(made.data().train))
    assert all(share == shares[0] for share in shares)


def test_limits_of_a_method_are_those_of_its_share() -> None:
    """Satellite trains on 800,000 series, MiniRocket on 100,000 at most: a tenth is few enough."""
    recipes = ["methods/minirocket", "tasks/satellite"]
    with pytest.raises(RecipeError, match=r"at most 100.000 training samples, not 800.000"):
        compose_plan(recipes, plugins.registry(), Store())
    made = compose_plan(recipes, plugins.registry(), Store(), ["fraction=0.1"])
    assert made.facts.task.samples["train"] == 800_000


@pytest.mark.parametrize(("protocol", "total"), [("clean", 40), ("published", 52)])
def test_shares_keep_persons_whole(extra: str, protocol: str, total: int) -> None:
    registry = plugins.registry((extra,))
    previous: set[float] = set()
    for fraction in (0.3, 0.5):
        overrides = ["task=persons", f"fraction={fraction}", f"protocol={protocol}"]
        made = compose_plan(["methods/nft"], registry, Store(), overrides, "smoke")
        data = Builder(made, Store(), lambda line: None).data()
        x_NF = torch.tensor(rows(data.train))
        persons, counts = x_NF[:, 0].unique(return_counts=True)
        assert (counts == 4).all()
        assert previous < set(persons.tolist())
        assert abs(len(x_NF) - total * fraction) <= 2
        # Persons of both classes, in the proportions of the whole: two to one.
        assert abs((persons % 3 == 2).sum() - len(persons) / 3) <= 1
        assert torch.equal(data.groups["train"], x_NF[:, 0].long())
        previous = set(persons.tolist())


def test_another_seed_takes_other_samples(folder: Path) -> None:
    share = [set(rows(data(folder, "fraction=0.5", f"seed={s}").train)) for s in (0, 0, 1)]
    assert share[0] == share[1] != share[2]


@pytest.mark.parametrize(("fraction", "labelled"), [(1.0, 0.25), (0.5, 0.5), (0.5, 0.01)])
def test_labelled_and_hidden_samples_are_the_used_ones(
    folder: Path, fraction: float, labelled: float
) -> None:
    made = data(folder, f"fraction={fraction}", f"labelled={labelled}")
    used = data(folder, f"fraction={fraction}")
    seen, hidden = rows(made.train), rows(made.unlabelled)
    assert len(seen) == max(1, round(TRAIN * fraction * labelled))
    assert not set(seen) & set(hidden)
    assert set(seen) | set(hidden) == set(rows(used.train))
    assert used.unlabelled is None


def test_more_labels_keep_the_ones_there_were(folder: Path) -> None:
    few, more = (set(rows(data(folder, f"labelled={s}").train)) for s in (0.2, 0.6))
    assert few < more


def test_evaluation_does_not_depend_on_shares(folder: Path) -> None:
    whole, part = data(folder), data(folder, "fraction=0.2", "labelled=0.5")
    for split in ("validation", "test"):
        a, b = getattr(whole, split), getattr(part, split)
        assert rows(a) == rows(b)
        assert torch.equal(loader.labels(a), loader.labels(b))


def test_a_share_is_said(folder: Path) -> None:
    made = builder(folder, "fraction=0.5", "labelled=0.5")
    made.data()
    assert "training on 10 of 40 samples with labels, 10 without" in made.notes


@pytest.mark.parametrize("wrong", ["fraction=0", "fraction=1.5", "labelled=0", "labelled=-1"])
def test_shares_outside_their_range_are_refused(folder: Path, wrong: str) -> None:
    with pytest.raises(RecipeError, match=wrong.partition("=")[0]):
        data(folder, wrong)


def test_class_weights_count_labelled_samples_only(folder: Path) -> None:
    made = builder(
        folder, "task.loss={use: cross-entropy, balanced: true}", "labelled=0.3", "seed=1"
    )
    held = made.data()
    y = loader.labels(held.train)
    count_K = torch.bincount(y, minlength=CLASSES)
    assert len(y) == 12
    assert len(set(count_K.tolist())) > 1, "an even draw would prove nothing"
    expected_K = len(y) / (CLASSES * count_K)
    torch.testing.assert_close(made.session(held).model.loss.weight_K, expected_K)


@pytest.mark.slow
def test_hidden_labels_never_reach_the_training(folder: Path, tmp_path: Path, extra: str) -> None:
    """Wrong hidden labels change nothing; one wrong label that is seen changes the weights."""
    seen = int(TRAIN * 0.4)
    order = randomness.permutation(TRAIN, 0, "share").numpy()

    def spoil(which: np.ndarray) -> Callable[[np.ndarray], None]:
        def change(y: np.ndarray) -> None:
            y[which] = (y[which] + 1) % CLASSES

        return change

    ends = []
    for number, which in enumerate((order[:0], order[seen:], order[:1])):
        here = write_data(tmp_path / str(number), spoil(which))
        overrides = ("mixer=agree", "labelled=0.4")
        ends.append(weights(run(here, tmp_path / "runs", *overrides, extra=extra)))
    assert_same(ends[0], ends[1])
    assert any(not torch.equal(ends[0][name], ends[2][name]) for name in ends[0])


# --- the order ---


@pytest.mark.parametrize("method", ["orca", "recraft", "mona"])
def test_stages_that_prepare_leave_the_order_alone(folder: Path, method: str) -> None:
    """Seeds pair methods: each epoch of fine-tuning sees the samples as plain fine-tuning does."""

    def orders(name: str) -> list[list[int]]:
        source = "source={use: digits, samples: 16}"
        held = session(folder, source, method=name)
        last = len(held.stages) - 1
        return [held.order(Progress(last, epoch, 3, 0, 1)).tolist() for epoch in range(3)]

    plain = orders("nft")
    assert len({tuple(order) for order in plain}) == 3
    assert orders(method) == plain


def test_a_stage_that_prepares_has_an_order_of_its_own(folder: Path) -> None:
    held = session(folder, "source={use: digits, samples: 16}", method="mona")
    assert len(held.stages) == 2
    first, second = (held.order(Progress(stage, 0, 1, 0, 1)).tolist() for stage in (0, 1))
    assert sorted(first) == sorted(second)
    assert first != second


# --- the unlabelled stream ---


def session(folder: Path, *overrides: str, **more: Any) -> RunSession:
    made = builder(folder, *overrides, **more)
    return made.session(made.data())


def stream(session: RunSession, sizes: list[int], drawn: int) -> list[Batch]:
    """Batches of those sizes, whichever labelled samples they hold."""
    places = drawn + torch.arange(sum(sizes))
    return list(
        session.micro_batches(session.data.train, [torch.arange(size) for size in sizes], places)
    )


def test_unlabelled_samples_come_in_a_seeded_stream_of_their_own(folder: Path, extra: str) -> None:
    overrides = ("mixer=agree", "labelled=0.4")
    held = session(folder, *overrides, extra=extra)
    hidden = rows(held.data.unlabelled)
    whole = [b.unlabelled for b in stream(held, [4, 4, 4, 4, 4, 4], 0)]
    drawn = torch.cat(whole).flatten(1).tolist()  # type: ignore[arg-type]
    # 24 samples are hidden: one pass over them meets each of them once.
    assert len(hidden) == 24
    assert sorted(map(tuple, drawn)) == sorted(hidden)
    again = [b.unlabelled for b in stream(session(folder, *overrides, extra=extra), [4] * 6, 0)]
    other = session(folder, *overrides, "seed=1", extra=extra)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))  # type: ignore[arg-type]
    assert not torch.equal(whole[0], stream(other, [4], 0)[0].unlabelled)  # type: ignore[arg-type]
    # A resumed run asks from the middle, and micro-batches of another size see the same samples.
    late = stream(held, [8, 4], 12)
    assert torch.equal(late[0].unlabelled, torch.cat(whole[3:5]))  # type: ignore[arg-type]
    assert torch.equal(late[1].unlabelled, whole[5])  # type: ignore[arg-type]


def test_who_does_not_ask_gets_no_unlabelled_samples(folder: Path, extra: str) -> None:
    plain = session(folder, "labelled=0.4")
    assert all(b.unlabelled is None for b in stream(plain, [4], 0))
    all_labelled = session(folder, "mixer=agree", extra=extra)
    assert all(b.unlabelled is None for b in stream(all_labelled, [4], 0))


@pytest.mark.slow
def test_training_on_unlabelled_samples_resumes_bit_equal(
    folder: Path, tmp_path: Path, extra: str
) -> None:
    overrides = ("mixer=agree", "labelled=0.4", "saving.every_steps=1", "training.epochs=3")
    whole = run(folder, tmp_path / "whole", *overrides, extra=extra)
    with pytest.raises(RuntimeError, match="crash"):
        run(folder, tmp_path / "cut", *overrides, extra=extra, observer=StopAt(6))
    resumed = run(folder, tmp_path / "cut", *overrides, extra=extra)
    assert_same(weights(whole), weights(resumed))
    log = whole.metrics()[0]["train"]
    assert log["view2/target agreement"] > 0


# --- the way to the device ---


def test_however_samples_reach_the_device_a_run_is_the_same(folder: Path, extra: str) -> None:
    """Directly, kept on the device, read ahead, or some of each; mixed with two more streams."""
    found = []
    for budget in (None, 0, 2**11, 2**30):
        overrides = ("mixer=agree", "labelled=0.4", "training.epochs=2")
        held = session(folder, *overrides, extra=extra)
        held.feed = Feed(held.device, budget)
        timed = {"seconds": 0, "speed": None}
        records = [{**vars(record), **timed} for record in Training(held).run()]
        score = vars(evaluate(held, held.data.test, keep=True))
        tensors = {"prediction": score.pop("predictions"), **held.model.state_dict()}
        found.append((records, score, tensors))
    for records, score, tensors in found[1:]:
        assert (records, score) == found[0][:2]
        assert_same(tensors, found[0][2])


def test_a_task_may_hand_out_parts_of_one_data_set(folder: Path) -> None:
    """They become tensors once; a split that stands for another stays that."""
    made = builder(folder)
    whole = made.data().train
    task = made.parts["task"]
    part, rest = Subset(whole, range(30)), Subset(whole, range(30, TRAIN))
    given = TaskData(part, rest, rest, "checksum")
    made.wrap = {"task": lambda kind: type("Given", (kind,), {"load": lambda *_: given})}
    data = made.data()
    assert isinstance(data.train, TensorDataset)
    assert data.test is data.validation
    assert rows(data.train) + rows(data.test) == rows(whole)
    assert task is not made.parts["task"]


# --- encoder passes ---


def encoded(run_: runs.Run) -> int:
    return int(run_.read("result.json")["encoded_samples"])


@pytest.mark.slow
def test_encoder_passes_are_counted(folder: Path, tmp_path: Path) -> None:
    """NFT: one a sample. PaRe: two while k > 0. The matched control has as many as PaRe."""
    epochs = ("training.epochs=4", "source={use: digits, samples: 16}")
    nft = run(folder, tmp_path, *epochs)
    assert encoded(nft) == 4 * TRAIN
    k = ("scheduler={use: constant, value: 3}",)
    pare = run(folder, tmp_path, *epochs, *k, method="pare")
    assert encoded(pare) == 2 * 4 * TRAIN
    assert encoded(run(folder, tmp_path, *epochs, method="nft-compute-matched")) == encoded(pare)
    # k = 3, 3, 0, 0: the second half of the training takes one pass.
    half = ("scheduler={use: piecewise, steps: [[0, 3], [0.5, 0]]}",)
    assert encoded(run(folder, tmp_path, *epochs, *half, method="pare")) == 3 * 2 * TRAIN


def test_what_has_no_encoder_encodes_nothing(folder: Path, tmp_path: Path) -> None:
    """The baseline's features go through the backbone that changes nothing."""
    result = run(folder, tmp_path, method="baseline").read("result.json")
    assert result["encoded_samples"] is None


@pytest.mark.slow
def test_micro_batches_and_resuming_leave_the_count_alone(folder: Path, tmp_path: Path) -> None:
    small = ("training.batch={size: 8, micro: 3}", "saving.every_steps=1")
    with pytest.raises(RuntimeError, match="crash"):
        run(folder, tmp_path, *small, observer=StopAt(3))
    assert encoded(run(folder, tmp_path, *small)) == 2 * TRAIN


# --- stretch ---


@pytest.mark.slow
def test_stretch_multiplies_epochs_warm_up_and_decay(folder: Path, tmp_path: Path) -> None:
    """The matched control is plain fine-tuning with everything counted in epochs doubled."""
    plan_of = ("training.epochs=2", "training.schedule={warmup_epochs: 1, decay_epochs: 3}")
    doubled = ("training.epochs=4", "training.schedule={warmup_epochs: 2, decay_epochs: 6}")
    matched = run(folder, tmp_path, *plan_of, method="nft-compute-matched")
    by_hand = run(folder, tmp_path, *doubled)
    assert len(matched.metrics()) == 4
    assert_same(weights(matched), weights(by_hand))
    rates = [[line["train"]["lr"] for line in r.metrics()] for r in (matched, by_hand)]
    assert rates[0] == rates[1]
    assert max(rates[0]) == rates[0][2] > rates[0][3]


@pytest.mark.slow
def test_a_stretch_may_shorten_but_leaves_an_epoch(folder: Path, tmp_path: Path) -> None:
    short = run(folder, tmp_path, "training.epochs=3", "stages.0.stretch=0.1")
    assert len(short.metrics()) == 1
    with pytest.raises(RecipeError, match="stretch"):
        data(folder, "stages.0.stretch=0")


# --- stages that only prepare ---

STAGES = 'stages=[{use: prepare, epochs: 3}, {use: finetune, train: ["*"]}]'


@pytest.mark.long
def test_a_stage_that_prepares_is_not_scored(folder: Path, tmp_path: Path, extra: str) -> None:
    done = run(folder, tmp_path, STAGES, extra=extra, report=True)
    lines = done.metrics()
    assert [line["stage"] for line in lines] == [0, 0, 0, 1, 1]
    assert [line["validation"]["metric"] is None for line in lines] == [True] * 3 + [False] * 2
    assert [line["validation"]["loss"] is None for line in lines] == [True] * 3 + [False] * 2
    assert not any(line["best"] for line in lines[:3])
    assert lines[3]["best"]
    assert lines[0]["train"]["length"] > lines[2]["train"]["length"]
    assert done.read("result.json")["validation"]["at"][0] == 1
    # Nothing went through the encoder but the samples of the two epochs that follow.
    assert encoded(done) == 2 * TRAIN
    page = (done.path / "report.html").read_text(encoding="utf-8")
    assert "length" in page
    assert "Training loss" in page


@pytest.mark.slow
@pytest.mark.parametrize("records", [0, 1, 2, 4, 6, 9])
def test_a_run_with_such_a_stage_resumes_bit_equal(
    records: int, folder: Path, tmp_path: Path, extra: str
) -> None:
    """Stopped in the stage that prepares, at the border, and after it."""
    often = (STAGES, "saving.every_steps=1")
    whole = run(folder, tmp_path / "whole", *often, extra=extra)
    with pytest.raises(RuntimeError, match="crash"):
        run(folder, tmp_path / "cut", *often, extra=extra, observer=StopAt(records))
    resumed = run(folder, tmp_path / "cut", *often, extra=extra)
    assert_same(weights(whole), weights(resumed))
    kept = [[line["validation"] for line in r.metrics()] for r in (whole, resumed)]
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_a_best_model_comes_from_a_scored_stage_even_if_it_is_first(
    folder: Path, tmp_path: Path, extra: str
) -> None:
    """The last stage only prepares something; the best model is from before."""
    turned = 'stages=[{use: finetune, train: ["*"], epochs: 2}, {use: prepare}]'
    done = run(folder, tmp_path, turned, extra=extra)
    assert done.read("result.json")["validation"]["at"][0] == 0
    best = checkpoint.load(checkpoint.complete(done.checkpoints, "best-")[0])["model"]
    end = weights(done)
    assert any(not torch.equal(best[name], end[name]) for name in end)


def test_a_recipe_that_only_prepares_is_refused(folder: Path, extra: str) -> None:
    recipe = builder(folder, STAGES, extra=extra).recipe
    alone = recipe.model_copy(update={"stages": recipe.stages[:1]})
    with pytest.raises(RecipeError, match="only prepare; at least one must be scored"):
        plan(alone, Store())


# --- terms that compare predictions ---


class Fixed(nn.Module):
    """A mixer, backbone and head of almost nothing, so that a loss can be worked out by hand."""

    def __init__(self, views: Callable[[Tensor], tuple[View, ...]]) -> None:
        super().__init__()
        self.views = views

    def forward(self, target: Any, source: Any, progress: Progress) -> tuple[View, ...]:
        return self.views(target.tokens.x_BND)


class Through(nn.Module):
    def forward(self, tokens: Tokens) -> Tokens:
        return tokens

    def embedding_parameters(self) -> tuple[()]:
        return ()


class Embed(nn.Module):
    def forward(self, x: Tensor) -> Tokens:
        return Tokens(x[:, None, None], (1,))


class Read(nn.Module):
    reads_samples = False

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, features: Tokens) -> Tensor:
        return self.scale * features.x_BND[:, 0]


def loss_named(name: str, **given: Any) -> Any:
    kind: Any = plugins.registry().load("loss", name)
    return kind(kind.Config(**given), tiny_context())


def by_hand_model(views: Callable[[Tensor], tuple[View, ...]]) -> Any:
    parts: list[Any] = [Embed(), Through(), Fixed(views), Read(), loss_named("mse"), nn.Identity()]
    return TrainingModel(*parts)


def test_a_term_compares_with_another_view_without_gradient_to_it() -> None:
    x, y = torch.tensor([1.0, 3.0]), torch.tensor([[0.0], [2.0]])

    def views(x_BND: Tensor) -> tuple[View, ...]:
        plain, moved = Tokens(x_BND, (1,)), Tokens(x_BND + 1, (1,))
        return (
            View(plain, (Term(TARGET, y, 1.0),)),
            View(moved, (Term(TARGET, None, 0.5, like=0),)),
        )

    model = by_hand_model(views)
    loss, log = model(Batch(x, y), Progress(0, 0, 1, 0, 1))
    # Head 2x: mean((2 - 0)^2, (6 - 2)^2) = 10; agreement mean((4 - 2)^2, (8 - 6)^2) = 4.
    assert loss.item() == pytest.approx(10 + 0.5 * 4)
    assert set(log) == {"view0/target", "view1/target agreement"}
    assert float(log["view1/target agreement"]) == pytest.approx(4)
    loss.backward()
    # d/ds of mean((s x - y)^2) is 2 mean(x (s x - y)) = 14; of 0.5 mean((s (x + 1) - c)^2) with c
    # held fixed, mean((x + 1) (s (x + 1) - c)) = (2 * 2 + 4 * 2) / 2 = 6. Were c not held, 2.
    assert float(model.predictor.scale.grad) == pytest.approx(14 + 6)


def test_a_view_that_only_serves_as_a_comparison_is_not_a_term() -> None:
    def views(x_BND: Tensor) -> tuple[View, ...]:
        other = View(Tokens(x_BND + 1, (1,)), (Term(TARGET, None, 1.0, like=1),))
        return other, View(Tokens(x_BND, (1,)), ())

    x = torch.tensor([1.0, 3.0])
    loss, log = by_hand_model(views)(Batch(x, x[:, None]), Progress(0, 0, 1, 0, 1))
    assert loss.item() == pytest.approx(4)
    assert list(log) == ["view0/target agreement"]


def test_equal_predictions_agree_and_weight_zero_costs_nothing() -> None:
    def views(x_BND: Tensor) -> tuple[View, ...]:
        same = Tokens(x_BND, (1,))
        nothing = Term(SOURCE, None, 0.0, like=0)  # there is no such head here
        return View(same, ()), View(same, (Term(TARGET, None, 1.0, like=0), nothing))

    x = torch.tensor([1.0, 3.0])
    loss, log = by_hand_model(views)(Batch(x, x[:, None]), Progress(0, 0, 1, 0, 1))
    assert loss.item() == 0
    assert list(log) == ["view1/target agreement"]


# --- the encoder's count does not disturb what it counts ---


@pytest.mark.slow
def test_losses_are_those_of_a_run_without_the_other_features(folder: Path, tmp_path: Path) -> None:
    """Defaults change nothing: shares of 1 and a stretch of 1 are no shares and no stretch."""
    losses = []
    for overrides in ((), ("fraction=1.0", "labelled=1.0", "stages.0.stretch=1.0")):
        seen = RecordingObserver()
        run(folder, tmp_path / str(len(losses)), *overrides, observer=seen)
        losses.append(seen.losses)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2 * TRAIN / 4
