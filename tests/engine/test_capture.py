"""Captured steps: replays give what plain steps give, and what cannot be captured is found out.

A tape stands for CUDA graphs (``tape.py``): like them, it runs no Python when it is replayed.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast
from weakref import ReferenceType, ref

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch.utils.data import TensorDataset

from xmodal import api, plugins
from xmodal.batch import Progress, Sample, Term, Tokens, View
from xmodal.data import loader
from xmodal.data.store import Store
from xmodal.engine.build import Builder
from xmodal.engine.loop import EpochRecord, Training
from xmodal.engine.plan import plan
from xmodal.engine.run import Interrupted
from xmodal.engine.session import RunSession
from xmodal.engine.step import DeviceStep, Stepper, StepRecord
from xmodal.errors import DataError, TrainingError, UsageError
from xmodal.interfaces import Stage
from xmodal.recipe.compose import compose, validate
from xmodal.recipe.yaml import read
from xmodal.steps import from_host
from xmodal.testing.running import RecordingObserver

from ..paths import ROOT
from .tape import TapeGraphs

SMALL = [
    "task.train=10",
    "training.epochs=3",
    "training.max_steps=null",
    "training.batch={size: 4, micro: 2}",
]
"""Nine steps in three epochs, of which every third has one micro-batch instead of two."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def session_of(method: str, *overrides: str, darcy: bool = True) -> RunSession:
    registry, store = plugins.registry(), Store()
    layers = [f"methods/{method}", *(["tasks/darcy"] if darcy else [])]
    small = SMALL if darcy else []
    layered = compose(layers, registry, [*small, *overrides], "smoke")
    made = Builder(plan(validate(layered, registry), store, layered), store, lambda line: None)
    return made.session(made.data())


class Uncaptured(Training):
    """Steps that ask the device nothing, but run operation by operation."""

    def _stepper(self, stage: Stage, optimizer: torch.optim.Optimizer) -> Stepper:
        made = super()._stepper(stage, optimizer)
        if isinstance(made, DeviceStep):
            made.capture = None
        return made


def trained(
    session: RunSession, graphs: TapeGraphs | None, kind: type[Training] = Training
) -> tuple[Training, list[StepRecord | EpochRecord]]:
    training = kind(session, graphs=None if graphs is None else lambda: graphs)
    return training, list(training.run())


def weights(session: RunSession) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in session.model.state_dict().items()}


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def methods() -> list[Any]:
    """Every method that trains in steps; among the fast tests are plain and mixed fine-tuning."""
    files = sorted((ROOT / "recipes" / "methods").glob("*.yaml"))
    rivals = ("dash", "fno", "perceiver-io", "unet", "wide-resnet")
    roles = {file.stem: read(file).data.get("role") for file in files}
    names = [n for n, role in roles.items() if role not in ("rival", "trivial") or n in rivals]
    fast = {"nft", "pare"}
    return [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in names]


@pytest.mark.long
@pytest.mark.parametrize("method", methods())
def test_replays_give_what_plain_steps_give(method: str) -> None:
    try:
        plain, tape = session_of(method), TapeGraphs()
    except DataError as missing:
        pytest.skip(f"a rival's library: {missing}")
    one, expected = trained(plain, None)
    captured = session_of(method)
    other, found = trained(captured, tape)
    assert [type(record) for record in found] == [type(record) for record in expected]
    for a, b in zip(found, expected, strict=True):
        if isinstance(a, EpochRecord) or isinstance(b, EpochRecord):
            continue
        assert a.progress == b.progress
        assert a.number == b.number
        assert a.lr == b.lr
        assert {"loss": a.loss, "norm": a.gradient_norm, **a.log} == pytest.approx(
            {"loss": b.loss, "norm": b.gradient_norm, **b.log}, rel=2e-4, abs=1e-6
        )
    assert other.snapshot.encoded == one.snapshot.encoded
    assert other.snapshot.total_steps == one.snapshot.total_steps
    uncaptured = session_of(method)
    trained(uncaptured, TapeGraphs(), Uncaptured)
    assert_same(weights(captured), weights(uncaptured))
    eager = [note for note in captured.notes if "without CUDA graphs" in note]
    assert bool(eager) == (method in EAGER), eager
    assert tape.replays > 0 or eager


EAGER = {
    "mona", "mona-pare", "orca", "orca-pare", "orca-published", "pare-by-distance", "recraft",
    "recraft-pare",
}  # fmt: skip
"""Methods with a stage that cannot be captured: it measures, or its mixer asks the device."""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_layers_are_captured(precision: str) -> None:
    """The tape shows that a step with them asks the device nothing; a replay gives its numbers."""
    more = (f"precision={precision}", "backbone.dropout=0")
    plain = session_of("nft", *more)
    trained(plain, TapeGraphs(), Uncaptured)
    captured, tape = session_of("nft", *more, "activation_checkpointing=true"), TapeGraphs()
    trained(captured, tape)
    assert tape.replays > 0
    assert not [note for note in captured.notes if "without CUDA graphs" in note]
    assert_same(weights(captured), weights(plain))


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "backbone",
    [
        "{use: vit-s14, pretrained: false, layers: 1}",
        "{use: swin, size: tiny, pretrained: false}",
        "{use: timm, name: vit_tiny_patch16_224, pretrained: false}",
        "{use: minilm-l6, pretrained: false, layers: 1}",
    ],
)
def test_every_backbone_can_be_captured(backbone: str, precision: str, tmp_path: Path) -> None:
    short = ["task.train=4", "training.epochs=1", "training.batch={size: 2}"]
    sequences = "minilm" in backbone
    if sequences:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(12, 2, 24, generator=generator).numpy()
        np.savez(tmp_path / "sequences.npz", x=x, y=x.mean(2))
        short = [f"task={{use: arrays, path: {tmp_path / 'sequences.npz'}, form: sequence}}"]
        short += ["training.epochs=1", "training.batch={size: 4}", "source=null"]
    wanted = [*short, f"backbone={backbone}", f"precision={precision}"]
    session, tape = session_of("nft", *wanted, darcy=not sequences), TapeGraphs()
    trained(session, tape)
    assert tape.replays > 0
    plain = session_of("nft", *wanted, darcy=not sequences)
    trained(plain, TapeGraphs(), Uncaptured)
    assert_same(weights(session), weights(plain))


@pytest.mark.parametrize(
    "given",
    [
        ("nft", "training.optimizer={use: sgd}"),
        ("nft-ema",),
        # It draws on the host, and stops between two forms of step.
        pytest.param(("pare", "backbone.dropout=0.3"), marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_is_bit_equal(given: tuple[str, ...]) -> None:
    whole = session_of(*given)
    trained(whole, TapeGraphs())
    half = session_of(*given)
    training = Training(half, graphs=TapeGraphs)
    steps, run = 0, training.run()
    while steps < 5:
        next(run)
        steps = training.snapshot.total_steps
    state = training.state()
    taken = training.snapshot.total_steps
    assert training.snapshot.sums or training.snapshot.step == 0
    run.close()
    other = session_of(*given)
    resumed = Training(other, state, graphs=TapeGraphs)
    numbers = [r.number for r in resumed.run() if isinstance(r, StepRecord)]
    assert numbers == list(range(taken + 1, 10))
    assert_same(weights(other), weights(whole))


def _strength(session: RunSession, epoch: int) -> None:
    session.model.mixer.strength = 1.0 + epoch


def _targets(session: RunSession, epoch: int) -> None:
    session.model.mixer.strength = torch.full((), 1.0 + epoch, dtype=torch.float64)


def _no_dropout(session: RunSession, epoch: int) -> None:
    session.model.backbone.train(epoch == 0)


def _unfrozen(session: RunSession, epoch: int) -> None:
    session.model.backbone.requires_grad_(epoch > 0)


@pytest.mark.parametrize(
    ("change", "captures"), [(_strength, 6), (_targets, 6), (_no_dropout, 4), (_unfrozen, 4)]
)
def test_what_a_stage_changes_between_epochs_is_captured_anew(change: Any, captures: int) -> None:
    def session() -> RunSession:
        def forward(mixer: Any, target: Sample, progress: Progress, own: Any) -> Any:
            return view(target, mixer.strength)

        made = with_mixer(forward, strength=1.0)
        (stage,) = made.stages
        kept = stage.steps

        def steps(session: RunSession, progress: Progress) -> Any:
            change(session, progress.epoch)
            yield from kept(session, progress)

        vars(stage)["steps"] = steps
        return made

    captured, plain, tape = session(), session(), TapeGraphs()
    trained(captured, tape)
    trained(plain, TapeGraphs(), Uncaptured)
    assert_same(weights(captured), weights(plain))
    assert (tape.captures, tape.replays) == (captures, 9)  # two shapes of step


@pytest.mark.parametrize("method", ["nft", "nft-ema"])
def test_a_bad_step_changes_nothing_and_is_named_later(method: str) -> None:
    session = session_of(method)
    x, y = loader.first(session.data.train, 10)
    session.data = replace(session.data, train=TensorDataset(x, y))
    training = Training(session, graphs=TapeGraphs)
    run = training.run()
    while not isinstance(next(run), EpochRecord):
        pass
    order = session.order(Progress(0, 1, 3, 0, 3))
    x[order[4]] = float("nan")  # the second step of the second epoch
    assert isinstance(training.stepper, DeviceStep)
    kept = training.stepper.take

    before: dict[int, dict[str, Tensor]] = {}

    def now() -> dict[str, Tensor]:
        averages = {} if training.averages is None else training.averages.state()
        return {**weights(session), **{f"average {n}": t.clone() for n, t in averages.items()}}

    def take(micros: Any, at: Progress, number: int) -> int:
        before[number] = now()
        return kept(micros, at, number)

    training.stepper.take = take  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"loss is nan at stage 0, epoch 2, step 2.*\n.*noth"):
        list(run)
    assert sorted(before) == [4, 5, 6]  # the sixth was on its way already
    assert_same(before[6], before[5])
    assert_same(now(), before[5])
    with pytest.raises(AssertionError):
        assert_same(before[5], before[4])


def test_a_gradient_that_is_not_finite_is_named() -> None:
    session = session_of("nft")
    training = Training(session, graphs=TapeGraphs)
    name, parameter = next(
        (n, p) for n, p in session.model.named_parameters() if n.startswith("predictor")
    )
    parameter.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(TrainingError, match=f"gradient is not finite.*step 1, first in: {name}"):
        list(training.run())


def test_warming_up_and_capturing_leave_no_trace() -> None:
    session = session_of("nft", "backbone.dropout=0.5")
    training = Training(session, graphs=TapeGraphs)
    seen: list[tuple[dict[str, Tensor], Any, Any]] = []

    class Watched(TapeGraphs):
        def capture(self, compute: Any) -> Any:
            made = super().capture(compute)

            def replay() -> None:
                state = training.optimizer.state_dict()  # type: ignore[union-attr]
                seen.append((weights(session), session.random_state(), deepcopy(state)))
                made[0]()

            return replay, made[1]

    training.graphs = Watched
    start, streams = weights(session), session.random_state()
    next(training.run())
    model, random, optimizer = seen[0]
    assert_same(model, start)
    assert repr(random) == repr(streams)
    assert all(float(state["step"]) == 0 for state in optimizer["state"].values())
    assert all(not state["exp_avg"].any() for state in optimizer["state"].values())


def test_what_watches_the_warm_up_does_not_watch_the_capture() -> None:
    """Torch takes other kernels for some operations while a dispatch mode is on."""
    modes: list[int] = []

    class Looking(TapeGraphs):
        def capture(self, compute: Any) -> Any:
            modes.append(_len_torch_dispatch_stack())
            return super().capture(compute)

    trained(session_of("nft"), Looking())
    assert modes
    assert not any(modes)


# --- what cannot be captured, or could be by mistake ---


def with_mixer(forward: Any, **attributes: Any) -> RunSession:
    session = session_of("nft")
    mixer = session.model.mixer
    for name, value in attributes.items():
        if isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter):
            mixer.register_buffer(name, value)
        else:
            setattr(mixer, name, value)
    own = session.generators["mixer"] = torch.Generator().manual_seed(0)
    mixer.forward = lambda target, source, progress: forward(  # type: ignore[method-assign]
        mixer, target, progress, own
    )
    return session


def view(target: Sample, weight: float | Tensor) -> tuple[View, ...]:
    return (View(target.tokens, (Term(target.head, target.y, weight),)),)


def reads_progress(mixer: Any, target: Sample, progress: Progress, own: Any) -> Any:
    return view(target, 1.0 + progress.epoch)


def draws(mixer: Any, target: Sample, progress: Progress, own: Any) -> Any:
    drawn = torch.rand(len(target.y), generator=own).mean()
    return view(target, drawn.to(torch.float64))


def counts(mixer: Any, target: Sample, progress: Progress, own: Any) -> Any:
    mixer.seen += 1
    return view(target, float(mixer.seen))


def replaces_a_buffer(mixer: Any, target: Sample, progress: Progress, own: Any) -> Any:
    mixer.mean = 0.5 * mixer.mean + 1.0
    return view(target, mixer.mean)


def asks(mixer: Any, target: Sample, progress: Progress, own: Any) -> Any:
    return view(target, 2.0 if target.tokens.x_BND.detach().mean().item() > 0 else 1.0)


def chooses(mixer: Any, target: Sample, progress: Progress, own: Any) -> Any:
    x = target.tokens.x_BND
    return view(target, x[x > 0].mean().double())


def makes(mixer: Any, target: Sample, progress: Progress, own: Any) -> Any:
    return view(target, torch.tensor(2.0))


def changes_its_questions(mixer: Any, target: Sample, progress: Progress, own: Any) -> Any:
    mixer.turn = [*mixer.turn, 1]
    for _ in mixer.turn:
        weight = from_host(lambda at: {"weight": torch.tensor(2.0)}, progress, target.y.device)
    return view(target, weight["weight"])


def replaces_a_parameter(mixer: Any, target: Sample, progress: Progress, own: Any) -> Any:
    mixer.mean = torch.nn.Parameter(0.5 * mixer.mean.detach() + 1.0, requires_grad=False)
    return view(target, mixer.mean * 1)


def lists(mixer: Any, target: Sample, progress: Progress, own: Any) -> Any:
    mixer.seen.append(1)
    return view(target, float(len(mixer.seen)))


def keeps_a_number(mixer: Any, target: Sample, progress: Progress, own: Any) -> Any:
    mixer.seen["mean"] = 1 + 0.5 * mixer.seen.get("mean", 0.0)
    return view(target, mixer.seen["mean"])


def keeps_a_tensor(mixer: Any, target: Sample, progress: Progress, own: Any) -> Any:
    mixer.seen[0] = 0.5 * mixer.seen[0] + target.tokens.x_BND.detach().mean()
    return view(target, mixer.seen[0].double())


class _Counter:
    def __init__(self) -> None:
        self.count = 0


def holds_an_object(mixer: Any, target: Sample, progress: Progress, own: Any) -> Any:
    mixer.seen.count += 1
    return view(target, float(mixer.seen.count))


def draws_by_itself(mixer: Any, target: Sample, progress: Progress, own: Any) -> Any:
    return view(target, float(mixer.seen.random()))


def counts_out_of_sight(mixer: Any, target: Sample, progress: Progress, own: Any) -> Any:
    return view(target, float(next(mixer.seen)))


@pytest.mark.parametrize(
    ("forward", "attributes", "why"),
    [
        (lists, {"seen": list}, "changes len(mixer.seen) in every step"),
        (keeps_a_number, {"seen": dict}, "changes mixer.seen['mean'] in every step"),
        (keeps_a_tensor, {"seen": lambda: [torch.ones(())]}, "changes mixer.seen[0] in every"),
        (holds_an_object, {"seen": _Counter}, "changes mixer.seen.count in every step"),
        (draws_by_itself, {"seen": lambda: np.random.default_rng(0)}, "changes mixer.seen in ev"),
        (counts_out_of_sight, {"seen": partial(count, 1)}, "numbers that Python code changes"),
        (reads_progress, {}, "reads progress.epoch outside of from_host"),
        (draws, {}, "draws random numbers outside of from_host"),
        (counts, {"seen": 0}, "changes mixer.seen in every step"),
        (replaces_a_buffer, {"mean": torch.zeros(())}, "replaces its tensor mixer.mean"),
        (
            replaces_a_parameter,
            {"mean": torch.nn.Parameter(torch.zeros(()), requires_grad=False)},
            "replaces its tensor mixer.mean",
        ),
        (asks, {}, "asks the device for numbers (_local_scalar_dense)"),
        (chooses, {}, "chooses by a mask"),
        (makes, {}, "makes a tensor of Python numbers"),
        (changes_its_questions, {"turn": []}, "asks from_host differently from time to time"),
    ],
)
def test_what_a_replay_would_miss_is_found_out(
    forward: Any, attributes: dict[str, Any], why: str
) -> None:
    session = with_mixer(forward, **made(attributes))
    tape = TapeGraphs()
    trained(session, tape)
    (note,) = [note for note in session.notes if "CUDA graphs" in note]
    assert why in note
    assert tape.replays == 0
    if forward is not counts_out_of_sight:  # the warm-up counted too
        plain = with_mixer(forward, **made(attributes))
        trained(plain, TapeGraphs(), Uncaptured)
        assert_same(weights(session), weights(plain))


def made(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of which those that can be called have been made anew."""
    return {k: deepcopy(v) if not callable(v) else v() for k, v in attributes.items()}


def one_cycle(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, 3 * steps + 1)


def decay(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    class Schedule(torch.optim.lr_scheduler.LambdaLR):
        def step(self, epoch: Any = None) -> None:
            super().step(epoch)
            for group in self.optimizer.param_groups:
                group["weight_decay"] = 5.0 * self.last_epoch

    return Schedule(optimizer, lambda step: 1.0)


def limits() -> Any:
    values = count(1)
    return lambda: 1e-3 * next(values)


def doubled(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.data.mul_(1.01)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda stage: {"schedule": one_cycle}, "changes betas of parameter group 0 between steps"),
        (lambda stage: {"schedule": decay}, "changes weight_decay of parameter group 0 between"),
        (lambda stage: {"clip": limits()}, "changes the clip between steps"),
        (lambda stage: {"optimizer": hooked(stage)}, "calls hooks of its optimizer"),
        (lambda stage: {"optimizer": lambda named: Halting([p for _, p in named])}, "AdamW or SGD"),
    ],
)
def test_an_update_that_changes_is_not_replayed(change: Any, why: str) -> None:
    """Only the learning rate may differ from step to step in a captured update."""
    found = []
    for kind, graphs in ((Training, TapeGraphs()), (Uncaptured, TapeGraphs()), (Training, None)):
        session = session_of("nft")
        vars(session.stages[0]).update(change(session.stages[0]))
        trained(session, graphs, kind)
        found.append(session)
    notes = [note for note in found[0].notes if "CUDA graphs" in note]
    assert len(notes) == bool(why)
    assert all(why in note for note in notes)
    assert_same(weights(found[0]), weights(found[1]))
    for name, value in weights(found[2]).items():
        assert torch.allclose(weights(found[0])[name], value, rtol=1e-3, atol=1e-4), name


class Halting(torch.optim.AdamW):
    """Updates at every second step."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=1e-3, fused=True)
        self.steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        return super().step(closure) if self.steps % 2 else None


def hooked(stage: Stage) -> Any:
    made = stage.optimizer

    def optimizer(named: Any) -> Any:
        it = made(named)
        assert it is not None
        it.register_step_post_hook(doubled)
        return it

    return optimizer


@pytest.mark.parametrize("graphs", [None, TapeGraphs()])
def test_an_optimizer_that_computes_the_loss_itself_is_refused(graphs: TapeGraphs | None) -> None:
    session = session_of("nft")
    vars(session.stages[0])["optimizer"] = lambda named: torch.optim.LBFGS([p for _, p in named])
    with pytest.raises(UsageError, match="stage 0 cannot use LBFGS"):
        trained(session, graphs)


def test_no_late_number_is_lost_to_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that are saved while their numbers are on the way are told before the run ends."""
    monkeypatch.setattr("xmodal.engine.run.Training", partial(Training, graphs=TapeGraphs))

    class Stops(RecordingObserver):
        def record(self, record: Any) -> None:
            super().record(record)
            if len(self.steps) == 1:
                signal.raise_signal(signal.SIGTERM)

    def run(observer: RecordingObserver) -> list[int]:
        overrides = ["task.train=20", "training.epochs=1", "training.batch={size: 2}"]
        with suppress(Interrupted):
            api.run(
                *("methods/nft", "tasks/darcy"),
                scale="smoke",
                overrides=[*overrides, "training.max_steps=null"],
                root=tmp_path,
                report=False,
                observer=observer,
            )
        return [step.number for step in observer.steps]

    cut, rest = run(Stops()), run(RecordingObserver())
    assert 1 < len(cut) < 10
    assert cut + rest == list(range(1, 11))


def test_nothing_of_a_failed_capture_is_left_in_memory() -> None:
    """It would be a step's memory besides its own, and hold its gradients to another stream."""
    passes: list[ReferenceType[Tensor]] = []
    left: list[int] = []

    def forward(mixer: Any, target: Sample, progress: Progress, own: torch.Generator) -> Any:
        left.append(sum(kept() is not None for kept in passes))
        made = target.tokens.x_BND * 1
        passes.append(ref(made))
        return asks(mixer, replace(target, tokens=Tokens(made, target.tokens.grid)), progress, own)

    session = with_mixer(forward)
    _, steps = trained(session, TapeGraphs())
    assert [note for note in session.notes if "without CUDA graphs" in note]
    assert len(steps) == 12
    assert len(left) == 3 + 3 * 5  # two micro-batches of a warm-up, one that is refused, all others
    assert left[3] == 0


def test_a_step_with_too_many_forms_is_captured_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal.engine.capture.MOST_FORMS", 2)

    def forward(mixer: Any, target: Sample, progress: Progress, own: Any) -> Any:
        made = from_host(lambda at: {"number": at.epoch + at.step}, progress, target.y.device)
        return view(target, 1.0 + made["number"])

    captured, plain, tape = with_mixer(forward), with_mixer(forward), TapeGraphs()
    trained(captured, tape)
    trained(plain, TapeGraphs(), Uncaptured)
    assert (tape.captures, tape.replays) == (2, 2)
    (note,) = [note for note in captured.notes if "CUDA graphs" in note]
    assert "has more than 2 forms" in note
    assert_same(weights(captured), weights(plain))


def test_a_parameter_that_follows_another_one_takes_no_step_more() -> None:
    """The weights of a teacher are often frozen parameters, moved in the forward pass."""

    def session() -> RunSession:
        def forward(mixer: Any, target: Sample, progress: Progress, own: Any) -> Any:
            with torch.no_grad():
                mixer.teacher[0].mul_(0.5).add_(weight.view(-1)[0])
            return view(target, mixer.teacher.sum())

        teacher = torch.nn.Parameter(torch.ones(2), requires_grad=False)
        made = with_mixer(forward, teacher=teacher)
        weight = next(made.model.embedder.parameters())
        return made

    captured, plain, tape = session(), session(), TapeGraphs()
    trained(captured, tape)
    trained(plain, TapeGraphs(), Uncaptured)
    assert tape.replays == 9
    assert_same(weights(captured), weights(plain))


def test_a_number_that_only_some_micro_batches_have_on_the_device_is_one_number() -> None:
    def forward(mixer: Any, target: Sample, progress: Progress, own: torch.Generator) -> Any:
        def make(at: Progress) -> dict[str, Any]:
            k = int(torch.randint(3, (), generator=own))
            return {"k": 0 if k == 0 else torch.tensor(k)}  # at an end, the step is another

        drawn = from_host(make, progress, target.y.device)
        (one,) = view(target, 1.0)
        return (replace(one, log=drawn),)

    session, plain = with_mixer(forward), with_mixer(forward)
    _, found = trained(session, TapeGraphs())
    _, expected = trained(plain, None)
    numbers = [[r.log["k"] for r in rs if isinstance(r, StepRecord)] for rs in (found, expected)]
    assert numbers[0] == numbers[1]
    assert {0.5, 1.0} & set(numbers[0])


def test_a_mixer_that_declares_its_inputs_is_captured_by_form() -> None:
    made: list[tuple[int, int]] = []

    def forward(mixer: Any, target: Sample, progress: Progress, own: torch.Generator) -> Any:
        def make(at: Progress) -> dict[str, Any]:
            made.append((at.epoch, at.step))
            drawn = torch.rand((), generator=own, dtype=torch.float64)
            return {"twice": at.epoch > 0, "weight": drawn}

        inputs = from_host(make, progress, target.y.device)
        (one,) = view(target, inputs["weight"])
        one = replace(one, log={"weight": inputs["weight"]})
        return (one, one) if inputs["twice"] else (one,)

    session, tape = with_mixer(forward), TapeGraphs()
    training, records = trained(session, tape)
    # Two shapes of step, each with one view and with two.
    assert (tape.captures, tape.replays) == (4, 9)
    assert made == [(e, s) for e in range(3) for s in (0, 0, 1, 1, 2)]  # once a micro-batch
    assert training.snapshot.encoded == 10 + 2 * 20
    plain = with_mixer(forward)
    _, expected = trained(plain, None)
    for a, b in zip(records, expected, strict=True):
        if isinstance(a, StepRecord):
            assert a.log == pytest.approx(cast(StepRecord, b).log, rel=1e-5)
