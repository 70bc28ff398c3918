"""What a GPU does with this version: speed, bit-equality, and what happens when a step goes wrong.

    PYTHONPATH=.:plugins python benchmarks/gpu.py [--out gpu.json] [--only rate steps draw ...]

from the top of a checkout. At most 4 minutes on an H100 or H200; needs no network, because all
weights are random and all data are generated or ship with scikit-learn. Every section stands for
itself: one that fails shows its error and costs no other. The JSON file is written after each.
The package itself need not be installed, but the dependencies in ``pyproject.toml`` must be. What a
machine made for PyTorch may lack of them: pydantic (with pydantic-core, annotated-types and
typing-inspection), ruamel.yaml, POT, platformdirs, pluggy, peft, timm, typer. Where it has no
network, fetch their wheels elsewhere and install them with ``pip install --no-index --no-deps``.

    PYTHONPATH=.:plugins python benchmarks/gpu.py --device cpu --tiny

runs the same code with small models in a minute on a CPU; its times mean nothing there.

Shapes: B samples, N tokens.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
import tomllib
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from figures import Report, surroundings
from side_by_side import ByHand, alternate, captured, engine_steps
from torch import Tensor
from torch.utils.data import Subset
from torch.utils.flop_counter import FlopCounterMode

import xmodal
from xmodal import plugins, randomness
from xmodal.batch import Progress
from xmodal.data import loader
from xmodal.data.store import Store
from xmodal.engine import checkpoint
from xmodal.engine.build import Builder
from xmodal.engine.evaluate import evaluate
from xmodal.engine.loop import StepRecord, Training
from xmodal.engine.plan import compose_plan
from xmodal.engine.session import RunSession
from xmodal.errors import TrainingError
from xmodal.ops import straight_through
from xmodal_pare.draw import relaxed_subset

ROOT = Path(__file__).resolve().parents[1]
METHODS = sorted(path.stem for path in (ROOT / "recipes/methods").glob("*.yaml"))
LARGE = ("task={use: darcy, train: 64, validation: 64, test: 8, solver_grid: 85}",)
SMALL = ("task={use: darcy, train: 8, validation: 8, test: 4, resolution: 22, solver_grid: 22}",)
MIDDLE = "scheduler={use: linear, start: 0.75, stop: 0.25, unit: share, per: step}"
"""PaRe with another k in every step, half of the tokens on average."""
SOURCE = ("source={use: digits-on-photos, samples: 32}", "source_head=own")


@dataclass(frozen=True)
class Shape:
    """A backbone and what it reads; ``size`` samples a step."""

    name: str
    overrides: tuple[str, ...]
    size: int


VIT = ("embedder={use: patch, size: native, patch: 5}", "predictor={use: dense}")
SHAPES = (
    Shape("Swin-B, 3136 tokens", (*LARGE, "backbone={use: swin, pretrained: false}"), 32),
    Shape("ViT-S/14, 289 tokens", (*LARGE, "backbone={use: vit-s14, pretrained: false}", *VIT), 32),
)
PATCHES = ("embedder={use: patch, size: native}", "predictor={use: dense}")
TINY_SHAPES = (
    Shape("tiny", (*SMALL, "backbone={use: tiny, pretrained: false}", *PATCHES), 4),
    Shape("ViT, 1 layer", (*SMALL, "backbone={use: vit-s14, pretrained: false, layers: 1}",
                           "embedder={use: patch, size: native, patch: 11}",
                           "predictor={use: dense}"), 4),
)  # fmt: skip


@dataclass
class Bench:
    """What every section works with."""

    device: torch.device
    tiny: bool
    methods: Sequence[str]
    folder: Path
    report: Report
    store: Store = field(default_factory=Store)
    ends: float = 0.0
    rate: float = 0.0

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU to measure."""
        return self.device.type == "cuda"

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The models to time."""
        return TINY_SHAPES if self.tiny else SHAPES

    def goal(self, value: float) -> float | None:
        """A goal that holds for a GPU only."""
        return value if self.cuda else None

    def late(self) -> bool:
        """Whether the section's time is over."""
        return time.monotonic() > self.ends

    def session(
        self,
        recipes: Sequence[str],
        overrides: Sequence[str],
        scale: str | None = None,
        steps: int | None = None,
        change: Callable[[Tensor], None] | None = None,
    ) -> RunSession:
        """A session on the device. ``steps``: repeat the training samples for an epoch of so many.

        ``change`` may alter the training labels in place.
        """
        given = [f"device={self.device}", *(SOURCE if scale is None else ()), *overrides]
        plan = compose_plan(recipes, plugins.registry(), self.store, given, scale)
        builder = Builder(plan, self.store, lambda line: None)
        data = builder.data()
        if change is not None:
            x, y = loader.first(data.train, loader.count(data.train))
            y = y.clone()
            change(y)
            data = replace(data, train=torch.utils.data.TensorDataset(x, y))
        if steps is not None:
            stage = plan.recipe.stages[-1].config
            count = loader.count(data.train)
            order = [n % count for n in range(steps * stage.batch.size)]
            data = replace(data, train=Subset(data.train, order))
        return builder.session(data)

    def free(self) -> None:
        """Give the device's memory back."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()


# --- steps: the engine, a loop by hand, a bare graph --------------------------------------------


def teraflop(session: RunSession) -> float:
    """10^12 floating-point operations of forward and backward of a step of plain fine-tuning."""
    hand = ByHand(session)
    with FlopCounterMode(display=False) as counter:
        hand.loss().backward()
    return float(counter.get_total_flops()) / 1e12


def rate(bench: Bench) -> None:
    """The matrix products that this device really does, which shares below refer to."""
    size, dtype = (8192, torch.bfloat16) if bench.cuda else (512, torch.float32)
    a, b = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
    found = alternate({"product": lambda: a @ b}, rounds=7, block=10)
    bench.rate = 2 * size**3 / found["product"] / 1e9
    kind = str(dtype).removeprefix("torch.")
    bench.report.add(f"matrix product of {size} x {size}, {kind}", bench.rate, "TFLOP/s")


def steps(bench: Bench) -> None:
    """Time of a training step, in bf16."""
    rounds, block = (5, 6) if bench.cuda else (2, 2)
    total = (rounds + 2) * block
    for shape in bench.shapes:
        common = (*shape.overrides, f"training.batch.size={shape.size}", "training.epochs=1",
                  "precision=bf16", "deterministic=false")  # fmt: skip
        nft = (["methods/nft", "tasks/darcy"], common)
        session = bench.session(*nft, steps=total)
        work = teraflop(session)
        first: dict[str, Callable[[], object]] = {"by hand": ByHand(session).step}
        if bench.cuda:
            first["bare graph"] = ByHand(session, graphed=True).step
        first["nft"] = engine_steps(session)
        found = alternate(first, rounds, block)
        for name, ms in found.items():
            named = {"by hand": "loop by hand", "nft": "engine, NFT"}.get(name, name)
            bench.report.add(f"{shape.name}: {named}", ms, "ms")
        engine, goal = found["nft"], shape is bench.shapes[0]
        against = "engine NFT / loop by hand"
        limit = bench.goal(0.29) if goal else None
        bench.report.add(f"{shape.name}: {against}", engine / found["by hand"], at_most=limit)
        if "bare graph" in found:
            ratio = engine / found["bare graph"]
            bench.report.add(f"{shape.name}: engine NFT / bare graph", ratio, at_most=1.05)
        bench.report.add(f"{shape.name}: work of a step", work, "TFLOP")
        if bench.rate:
            share = 100 * work / (engine / 1e3) / bench.rate
            least = bench.goal(16.0) if goal else None
            what = f"{shape.name}: engine NFT, share of the matrix-product rate"
            bench.report.add(what, share, "%", at_least=least)
        del first, session
        bench.free()
        pare = bench.session(["methods/pare", "tasks/darcy"], (*common, MIDDLE),
                             steps=total)  # fmt: skip
        with randomness.determinism_kept():
            exact = bench.session(nft[0], (*common[:-1], "deterministic=true"), steps=total)
            slow = alternate({"exact": engine_steps(exact)}, rounds, block)["exact"]
        del exact
        bench.free()
        both = {"nft": engine_steps(bench.session(*nft, steps=total)), "pare": engine_steps(pare)}
        found = alternate(both, rounds, block)
        bench.report.add(f"{shape.name}: engine, PaRe", found["pare"], "ms")
        ratio = found["pare"] / found["nft"]
        what = f"{shape.name}: PaRe / NFT"
        bench.report.add(what, ratio, at_most=bench.goal(2.05))
        what = f"{shape.name}: NFT with deterministic: true / false"
        bench.report.add(what, slow / found["nft"])
        del both, pare
        bench.free()


# --- the draw -----------------------------------------------------------------------------------


def draw(bench: Bench) -> None:
    """The relaxed draw of k of N tokens with its mask, forward and backward, by itself."""
    batch, tokens = (2, 64) if bench.tiny else (32, 3136)
    generator = torch.Generator().manual_seed(0)
    keys_BN = torch.randn(batch, tokens, generator=generator).to(bench.device).requires_grad_(True)
    weight_BN = torch.randn(batch, tokens, generator=generator).to(bench.device)
    for count in (tokens // 3, tokens - 136) if bench.tiny else (1000, 3000):
        count = max(1, count)

        def once(k: int = count) -> Tensor:
            mask_BN = straight_through(relaxed_subset(keys_BN, k, 0.9), k, keys_BN.detach())
            (gradient_BN,) = torch.autograd.grad((mask_BN * weight_BN).sum(), keys_BN)
            return gradient_BN

        what = f"B={batch} N={tokens} k={count}, forward, mask and backward"
        alone = alternate({"draw": once}, rounds=7, block=20)["draw"]
        bench.report.add(f"{what}, called from Python", alone, "ms")
        if bench.cuda:
            graph = captured(once)
            inside = alternate({"draw": graph.replay}, rounds=7, block=20)["draw"]
            goal = 0.2 if count == 1000 else None
            bench.report.add(f"{what}, in a graph", inside, "ms", at_most=goal)


# --- the same numbers again ---------------------------------------------------------------------


@dataclass(frozen=True)
class Course:
    """What a training came to."""

    losses: tuple[float, ...]
    weights: Mapping[str, Tensor]
    encoded: int
    notes: tuple[str, ...]


def trained(
    session: RunSession,
    save: tuple[int, Path] | None = None,
    restored: Path | None = None,
) -> Course:
    """Train to the end. ``save``: after so many steps, into this folder, and go on."""
    state = None if restored is None else checkpoint.load(restored)
    training = Training(session, state)
    losses: list[float] = []
    for record in training.run():
        if isinstance(record, StepRecord):
            losses.append(record.loss)
            if save is not None and len(losses) == save[0]:
                checkpoint.save(save[1], training.state())
    weights = {name: value.cpu() for name, value in session.model.state_dict().items()}
    return Course(tuple(losses), weights, training.snapshot.encoded, tuple(session.notes))


def equal(one: Course, other: Course, losses: tuple[float, ...] | None = None) -> bool:
    """Whether two trainings agree in every bit of their weights, losses and counts."""
    a, b = one.weights, other.weights
    same = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    counted = one.encoded == other.encoded
    return same and counted and other.losses == (one.losses if losses is None else losses)


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest difference of two models, relative to the size of the tensor it is in."""
    found = [0.0]
    for name in one:
        a, b = one[name].double(), other[name].double()
        found.append(float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)))
    return max(found)


def again(bench: Bench) -> None:
    """Every method, with micro-batches and a smaller last batch: repeated, resumed, and eagerly.

    Plain fine-tuning and PaRe also with the large backbones, in bf16. A run that is saved in the
    middle goes on as it is; a new session resumes from the file.
    """
    small = ("task.train=10", "training.epochs=2", "training.max_steps=null",
             "training.batch={size: 4, micro: 2}")  # fmt: skip
    for shape in bench.shapes:
        size = max(2, shape.size // 8)
        given = (*shape.overrides, "precision=bf16", "training.epochs=2", "training.max_steps=2",
                 f"training.batch.size={size}")  # fmt: skip
        for method in ("nft", "pare"):
            more = (MIDDLE,) if method == "pare" else ()
            _again(bench, f"{method} on {shape.name}", method, (*given, *more), None)
    for method in bench.methods:
        _again(bench, method, method, small if method != "baseline" else small[:1], "smoke")


def _again(
    bench: Bench, name: str, method: str, overrides: Sequence[str], scale: str | None
) -> None:
    if bench.late():
        bench.report.add(name, "skipped: the time is over")
        return

    def make() -> RunSession:
        return bench.session([f"methods/{method}", "tasks/darcy"], overrides, scale)

    found: dict[str, bool] = {}
    try:
        whole = trained(make())
        middle = len(whole.losses) // 2
        saved = bench.folder / f"saved-{len(bench.report.rows)}"
        repeat = trained(make(), save=(middle, saved) if middle else None)
        found["repeated"] = equal(whole, repeat)
        if middle:
            found["resumed"] = equal(whole, trained(make(), restored=saved), whole.losses[middle:])
    except Exception as error:
        found[f"{type(error).__name__}: {error}"[:200]] = False
    text = ", ".join(f"{what} {'equal' if same else 'NOT EQUAL'}" for what, same in found.items())
    bench.report.add(name, all(found.values()), text, wanted="bit-equal")
    bench.free()


# --- when something goes wrong ------------------------------------------------------------------


def wrong(bench: Bench) -> None:
    """A label that is infinite: nothing is updated, and the message names step and place."""
    good = 3
    common = ["training.epochs=1", "training.batch={size: 2, micro: null}",
              "training.schedule={warmup_epochs: 0, decay: none}"]  # fmt: skip
    recipes = ["methods/nft", "tasks/darcy"]
    session = bench.session(recipes, [*common, "training.max_steps=4"], "smoke")
    order = session.order(Progress(0, 0, 1, 0, good + 1))

    def spoil(y: Tensor) -> None:
        y[order[2 * good]] = float("inf")

    bad = bench.session(recipes, [*common, "training.max_steps=4"], "smoke", change=spoil)
    training, said = Training(bad), ""
    try:
        for _ in training.run():
            pass
    except TrainingError as error:
        said = str(error)
    few = trained(bench.session(recipes, [*common, f"training.max_steps={good}"], "smoke"))
    left = bad.model.state_dict()
    same = all(torch.equal(value, left[name].cpu()) for name, value in few.weights.items())
    bench.report.add("a bad step leaves the weights as they were", same, wanted="yes")
    named = f"epoch 1, step {good + 1}" in said
    first = (said.splitlines() or ["no message"])[0]
    bench.report.add("the message names epoch and step", named, first, wanted="yes")


# --- around the steps ---------------------------------------------------------------------------


def evaluation(bench: Bench) -> None:
    """Scoring a split, against the bare forward pass over the same samples."""
    for shape in bench.shapes:
        overrides = (*shape.overrides, "precision=bf16", "deterministic=false",
                     f"evaluation_batch={2 * shape.size}")  # fmt: skip
        session = bench.session(["methods/nft", "tasks/darcy"], overrides)
        split = session.data.validation
        count = loader.count(split)
        times = 4 if bench.cuda else 1
        dataset = Subset(split, [n % count for n in range(times * count)])
        x = loader.first(split, count)[0].to(bench.device)
        session.model.eval()

        @torch.no_grad()
        def bare(x: Tensor = x, session: RunSession = session, times: int = times) -> None:
            for _ in range(times):
                for part in x.split(session.evaluation_batch):
                    with session.autocast():
                        session.model.predict(part)

        def whole(session: RunSession = session, dataset: Any = dataset) -> None:
            evaluate(session, dataset)

        rounds = 5 if bench.cuda else 2
        found = alternate({"bare": bare, "whole": whole}, rounds, 1)
        bench.report.add(f"{shape.name}: bare forward pass, {times * count} samples",
                         found["bare"], "ms")  # fmt: skip
        ratio = found["whole"] / found["bare"]
        what = f"{shape.name}: evaluation / bare forward pass"
        bench.report.add(what, ratio, at_most=bench.goal(1.1))
        del session
        bench.free()


SECTIONS: dict[str, tuple[Callable[[Bench], None], float]] = {
    "rate": (rate, 5),
    "draw": (draw, 10),
    "steps": (steps, 80),
    "evaluation": (evaluation, 15),
    "wrong": (wrong, 10),
    "again": (again, 80),
}
"""Sections and the seconds they may take."""


def know_plugins(folder: Path) -> None:
    """Where the package is not installed: name its plugins as the installation would."""
    if list(entry_points(group="xmodal")):
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / f"xmodal-{xmodal.__version__}.dist-info"
    info.mkdir()
    head = f"Metadata-Version: 2.1\nName: xmodal\nVersion: {xmodal.__version__}\n"
    (info / "METADATA").write_text(head, encoding="utf-8")
    lines = [f"{name} = {module}" for name, module in project["entry-points"]["xmodal"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[xmodal]", *lines]), encoding="utf-8")
    sys.path.append(str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # for other processes


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run the sections; returns what they found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models, for a CPU")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    given = parser.parse_args(arguments)
    device, report, seen = torch.device(given.device), Report(), list[str]()
    about = surroundings(device)
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    begun = time.monotonic()

    def show(message: Any, category: Any, filename: str, *rest: Any, **named: Any) -> None:
        first = (str(message).splitlines() or [""])[0]
        seen.append(f"{category.__name__}: {first} ({Path(filename).name})")

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.showwarning = show
        know_plugins(Path(folder))
        bench = Bench(device, given.tiny, given.methods, Path(folder), report)
        for name in given.only:
            section, seconds = SECTIONS[name]
            report.section = name
            bench.ends = time.monotonic() + seconds * (1 if bench.cuda else 5)
            print(f"{name}: {(section.__doc__ or '').splitlines()[0]}", flush=True)
            started = time.monotonic()
            try:
                section(bench)
            except Exception as error:
                print("".join(traceback.format_exc().splitlines(keepends=True)[-6:]), flush=True)
                why = f"{type(error).__name__}: {error}"[:300]
                report.add("the whole section", False, why, wanted="no error")
            bench.free()
            print(f"  {time.monotonic() - started:.1f} s", flush=True)
            if given.out is not None:
                report.write(given.out, about)
        report.section = "warnings"
        shown = sorted(set(seen))
        told = "; ".join(shown)[:600] or "none"
        report.add("warnings of libraries", not shown, told, wanted="none")
    print(f"\n{report.table()}\n\n{time.monotonic() - begun:.0f} s")
    if given.out is not None:
        report.write(given.out, about)
    return report


if __name__ == "__main__":
    sys.exit(any(row.reached is False for row in main().rows))
