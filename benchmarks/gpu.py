"""What a GPU does with this version: speed, bit-equality, and what happens when a step goes wrong.

    PYTHONPATH=.:plugins python benchmarks/gpu.py [--out gpu.json] [--only rate steps draw ...]

from the top of a checkout. Made for 4 minutes on an H100 or H200; needs no network, because all
weights are random and all data are generated or ship with scikit-learn. Every section stands for
itself: one that fails shows its error and costs no other. The JSON file is written after each.
Sections with deterministic kernels run in a second process, where cuBLAS is set up for them.
The package itself need not be installed, but the dependencies in ``pyproject.toml`` must be. What a
machine made for PyTorch may lack of them: pydantic (with pydantic-core, annotated-types and
typing-inspection), ruamel.yaml, platformdirs, POT, pluggy, peft. Where it has no network, fetch
their wheels elsewhere and install them with ``pip install --no-index --no-deps``.

    PYTHONPATH=.:plugins python benchmarks/gpu.py --device cpu --tiny

runs the same code with small models in a minute and a half on a CPU; its times mean nothing there.

Shapes: B samples, N tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy
import torch
from bitwise import again, broken, wrong
from figures import Report, Row, surroundings
from side_by_side import ByHand, alternate, captured, engine_steps, finish
from torch import Tensor
from torch.utils.data import Subset
from torch.utils.flop_counter import FlopCounterMode
from workloads import METHODS, MIDDLE, ROOT, SOURCE, Bench, Shape

import xmodal
from xmodal import plugins, randomness
from xmodal.data import loader
from xmodal.engine.evaluate import evaluate
from xmodal.engine.loop import EpochRecord
from xmodal.engine.observe import Silent
from xmodal.engine.plan import compose_plan
from xmodal.engine.result import peak_memory
from xmodal.engine.run import Outcome, RunOrder, execute
from xmodal.engine.session import RunSession
from xmodal.engine.step import StepRecord
from xmodal.engine.together import Work, execute_together
from xmodal.ops import straight_through
from xmodal_pare.draw import relaxed_subset

# --- steps ---------------------------------------------------------------------------------------


def rate(bench: Bench) -> None:
    """The matrix products that this device really does, which shares below refer to."""
    size, dtype = (8192, torch.bfloat16) if bench.cuda else (512, torch.float32)
    a, b = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
    found = alternate({"product": lambda: a @ b}, rounds=7, block=10)
    bench.rate = 2 * size**3 / found["product"] / 1e9
    kind = str(dtype).removeprefix("torch.")
    bench.report.add(f"matrix product of {size} x {size}, {kind}", bench.rate, "TFLOP/s")


def steps(bench: Bench) -> None:
    """Time of a training step in bf16: the engine, a loop by hand, a bare graph; NFT and PaRe."""
    for number, shape in enumerate(bench.shapes):
        if bench.late():
            bench.report.add(shape.name, "skipped: the time is over")
            continue
        _steps(bench, shape, with_goals=bench.cuda and number == 0)
        bench.free()


def _steps(bench: Bench, shape: Shape, with_goals: bool) -> None:
    rounds, block = _rounds(bench)

    def add(what: str, *figure: Any, **goal: Any) -> None:
        bench.report.add(f"{shape.name}: {what}", *figure, **goal)

    for method in ("nft", "pare"):
        session, name = _session(bench, shape, method), method.upper().replace("PARE", "PaRe")
        work = teraflop(session)
        contenders: dict[str, Callable[[], object]] = {
            "by hand": ByHand(session).step,
            "alike": ByHand(session, alike=True).step,
            "engine": engine_steps(session),
        }
        if bench.cuda:
            contenders["bare graph"] = ByHand(session, alike=True, graphed=True).step
        found = alternate(contenders, rounds, block)
        engine, by_hand = found["engine"], found["by hand"]
        plain = with_goals and method == "nft"
        add(f"{name}, loop by hand", by_hand, "ms")
        add(f"{name}, loop by hand with the engine's kernels", found["alike"], "ms")
        add(f"{name}, engine", engine, "ms")
        add(f"{name}, engine / loop by hand", engine / by_hand, at_most=0.29 if plain else None)
        add(f"{name}, engine / loop by hand with its kernels", engine / found["alike"])
        if bench.cuda:
            add(f"{name}, bare graph with the engine's kernels", found["bare graph"], "ms")
            bare = engine / found["bare graph"]
            add(f"{name}, engine / bare graph", bare, at_most=1.05 if method == "nft" else None)
        add(f"{name}, matrix products and attention of a step", work, "TFLOP")
        if bench.rate:
            share = 100 * work / (engine / 1e3) / bench.rate
            add(f"{name}, engine, share of the matrix-product rate", share, "%",
                at_least=16.0 if plain else None)  # fmt: skip
        if bench.cuda:
            add(f"{name}, engine, GPU time by kernels", kernels(contenders["engine"], 3))
            add(f"{name} is captured", not _refused(session), _refused(session) or "yes",
                wanted="yes")  # fmt: skip
        contenders.clear()
        del session
        bench.free()  # the trainings of both methods at once would not fit
    both = {m: engine_steps(_session(bench, shape, m)) for m in ("nft", "pare")}
    found = alternate(both, rounds, block)
    add("PaRe / NFT", found["pare"] / found["nft"], at_most=bench.goal(2.05))


def _refused(session: RunSession) -> str:
    """Why steps were not captured, if they were not."""
    return "; ".join(note for note in session.notes if "CUDA graphs" in note)


def exact(bench: Bench) -> None:
    """A step with deterministic kernels, and with activation checkpointing besides.

    Beside the engine's step above, it says what deterministic kernels cost.
    """
    rounds, block = _rounds(bench)
    for shape in bench.shapes:
        found = []
        for stored in ("false", "true"):
            bench.free()
            session = _session(bench, shape, "nft", "true", f"activation_checkpointing={stored}")
            if bench.cuda:
                torch.cuda.reset_peak_memory_stats()
            with randomness.Kernels(True, session.note):
                step = alternate({"": engine_steps(session)}, rounds, block)[""]
            found.append((step, peak_memory(bench.device) / 1e9))
            notes = [note for note in session.notes if "deterministic kernel" in note]
        what = f"{shape.name}, deterministic"
        (plain, memory), (again, less) = found
        bench.report.add(f"{what}: engine, NFT", plain, "ms")
        bench.report.add(f"{what}: memory", memory, "GB")
        bench.report.add(f"{what}: activation checkpointing, time", again / plain, "times")
        bench.report.add(f"{what}: activation checkpointing, memory", less / memory, "times")
        told = "; ".join(notes) or "none"
        bench.report.add(f"{what}: kernels that are not", not notes, told, wanted="none")
        del session


def _rounds(bench: Bench) -> tuple[int, int]:
    """How often trainings take turns, and for how many steps."""
    return (5, 6) if bench.cuda else (2, 2)


def _session(
    bench: Bench, shape: Shape, method: str, deterministic: str = "false", *more: str
) -> RunSession:
    """A run in bf16 whose first epoch is long enough."""
    overrides = [*shape.overrides, f"training.batch.size={shape.size}", "training.epochs=1",
                 "precision=bf16", f"deterministic={deterministic}", *more]  # fmt: skip
    if method == "pare":
        overrides.append(MIDDLE)
    rounds, block = _rounds(bench)
    recipes = [f"methods/{method}", "tasks/darcy"]
    return bench.session(recipes, overrides, steps=(rounds + 3) * block)


def teraflop(session: RunSession) -> float:
    """10^12 floating-point operations of the forward and backward passes of a step."""
    hand = ByHand(session)
    with FlopCounterMode(display=False) as counter:
        hand.loss().backward()
    return float(counter.get_total_flops()) / 1e12


KERNELS = {
    "attention": ("flash", "fmha", "attention", "softmax"),
    "matrix products": ("gemm", "cutlass", "xmma", "nvjet", "cublas", "wgmma", "splitk"),
    "LayerNorm": ("layer_norm", "layernorm", "gammabeta"),
    "update and clip": ("multi_tensor", "adam", "lpnorm"),
    "copies, casts, rolls": ("copy", "memcpy", "memset", "roll_cuda", "catarray", "index"),
    "elementwise and sums": ("elementwise", "reduce", "triton"),
}
"""Words in the names of CUDA kernels, by what they belong to; the first that fits counts."""


def kernels(step: Callable[[], object], number: int) -> str:
    """How the GPU's time is shared out over ``number`` steps, and how much of them it is idle."""
    finish()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    try:
        with torch.profiler.profile(activities=activities) as profile:
            begun = time.perf_counter()
            for _ in range(number):
                step()
            finish()
            seconds = time.perf_counter() - begun
    except RuntimeError as error:  # a machine may forbid it
        return f"not measured: {error}"
    spent: dict[str, float] = {}
    for event in profile.key_averages():
        name = event.key.lower()
        fits = (kind for kind, words in KERNELS.items() if any(word in name for word in words))
        kind = next(fits, "others")
        spent[kind] = spent.get(kind, 0.0) + event.self_device_time_total / 1e6
    busy = sum(spent.values())
    spent["idle"] = max(0.0, seconds - busy)
    parts = sorted(spent.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {100 * value / seconds:.0f} %" for name, value in parts)


# --- the draw -----------------------------------------------------------------------------------


def draw(bench: Bench) -> None:
    """The relaxed draw of k of N tokens with its mask, forward and backward, by itself."""
    batch, tokens, counts = (2, 64, (20, 60)) if bench.tiny else (32, 3136, (1000, 3000))
    generator = torch.Generator().manual_seed(0)
    keys_BN, weight_BN = (torch.randn(batch, tokens, generator=generator) for _ in range(2))

    def once(keys_BN: Tensor, weight_BN: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """The mask, and the gradient of the keys."""
        mask_BN = straight_through(relaxed_subset(keys_BN, k, 0.9), k, keys_BN.detach())
        (gradient_BN,) = torch.autograd.grad((mask_BN * weight_BN).sum(), keys_BN)
        return mask_BN, gradient_BN

    here = keys_BN.to(bench.device).requires_grad_(True), weight_BN.to(bench.device)
    k = torch.zeros((), dtype=torch.int64, device=bench.device)
    graph = captured(lambda: once(*here, k)) if bench.cuda else None
    for count in counts:
        k.fill_(count)
        what = f"B={batch} N={tokens} k={count}, forward, mask and backward"
        alone = alternate({"": lambda: once(*here, k)}, rounds=7, block=20)[""]
        bench.report.add(f"{what}, called from Python", alone, "ms")
        if graph is not None:
            inside = alternate({"": graph.replay}, rounds=7, block=20)[""]
            goal = 0.2 if count == 1000 else None
            bench.report.add(f"{what}, in a graph", inside, "ms", at_most=goal)
        exact = once(keys_BN.double().requires_grad_(True), weight_BN.double(), k.cpu())
        (mask_BN, gradient_BN), (exact_mask_BN, exact_BN) = once(*here, k), exact
        same = torch.equal(mask_BN.cpu(), exact_mask_BN.float())
        bench.report.add(f"{what}: the mask is that of float64 on the CPU", same, wanted="yes")
        error = float((gradient_BN.cpu().double() - exact_BN).norm() / exact_BN.norm())
        bench.report.add(f"{what}: error of the gradient", error, at_most=1e-4)


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


# --- many runs, and too little memory -----------------------------------------------------------


class Times(Silent):
    """When the steps of a run were known."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def record(self, record: StepRecord | EpochRecord) -> None:
        """Keep the time of a step."""
        if isinstance(record, StepRecord):
            self.steps.append(time.perf_counter())


def together(bench: Bench) -> None:
    """Small runs that take turns on one device, against one alone: whole runs, and their steps."""
    rows, columns, epochs, many = (320, 23, 2, 2) if bench.tiny else (1600, 23, 30, 10)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns, generator=generator)
    numpy.savez(bench.folder / "table.npz", x=x.numpy(), y=(x[:, 0] > 0).long().numpy())
    text = "{use: tiny, modality: text}" if bench.tiny else "{use: minilm-l6, pretrained: false}"
    overrides = [f"task={{use: arrays, path: {bench.folder / 'table.npz'}}}", f"backbone={text}",
                 f"device={bench.device}", "training.batch.size=32", "precision=bf16"]  # fmt: skip

    def run(number: int, length: int) -> tuple[float, float]:
        """Seconds of so many whole runs of so many epochs, and of a step of each of them."""
        works, times = [], [Times() for _ in range(number)]
        for seed in range(number):
            more = [f"seed={seed}", f"training.epochs={length}"]
            plan = compose_plan(
                ["methods/nft"], plugins.registry(), bench.store, [*overrides, *more]
            )
            order = RunOrder(f"{number}-{length}-{seed}", bench.folder / "runs")
            works.append(Work(plan, order, times[seed]))
        finish()
        begun = time.perf_counter()
        for outcome in execute_together(works, plugins.registry(), bench.store):
            if isinstance(outcome, BaseException):
                raise outcome
        seconds = time.perf_counter() - begun
        # While all of them train: the first steps are captured, and one run ends first.
        since, until = max(t.steps[5] for t in times), min(t.steps[-1] for t in times)
        taken = sum(since < step <= until for t in times for step in t.steps)
        return seconds, (until - since) * number / taken

    run(1, 1)  # warms up, under a name of its own
    (one, step), (all_of_them, steps) = run(1, epochs), run(many, epochs)
    bench.report.add(f"one run of {epochs} epochs", one, "s")
    bench.report.add(f"{many} runs of {epochs} epochs", all_of_them, "s")
    bench.report.add(f"{many} runs / one", all_of_them / one, at_most=bench.goal(3.0))
    bench.report.add("a step of one run alone", 1e3 * step, "ms")
    bench.report.add(f"a step of each of {many} runs", 1e3 * steps, "ms")
    bench.report.add(f"steps alone: {many} runs / one", steps / step)


def memory(bench: Bench) -> None:
    """Too little memory for a batch: it is cut into halves, and the numbers stay."""
    shape = bench.shapes[-1]
    overrides = [*shape.overrides, f"device={bench.device}", f"training.batch.size={shape.size}",
                 "training.epochs=1", "training.max_steps=2"]  # fmt: skip

    def run(name: str) -> Outcome:
        recipes = ["methods/nft", "tasks/darcy"]
        plan = compose_plan(recipes, plugins.registry(), bench.store, [*overrides, *SOURCE])
        order = RunOrder(name, bench.folder / "runs")
        outcome = execute(plan, order, plugins.registry(), bench.store)
        bench.free()
        return outcome

    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
    enough = run("enough")
    if not bench.cuda:
        bench.report.add("a batch in halves", "skipped: only a GPU has a limit to set")
        return
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(0.7 * torch.cuda.max_memory_reserved() / total)
    try:
        little = run("too little")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    notes = [note for note in little.result["notes"] if note.startswith("out of memory with")]
    bench.report.add("a note says so", bool(notes), "; ".join(notes) or "no note", wanted="a note")
    (one,), (other,) = enough.run.metrics(), little.run.metrics()
    apart = abs(one["train"]["loss"] - other["train"]["loss"]) / one["train"]["loss"]
    bench.report.add("the loss differs by rounding, relative", apart, at_most=1e-3)


SECTIONS: dict[str, tuple[Callable[[Bench], None], float]] = {
    "rate": (rate, 5),
    "draw": (draw, 5),
    "steps": (steps, 60),
    "evaluation": (evaluation, 10),
    "exact": (exact, 20),
    "together": (together, 45),
    "memory": (memory, 10),
    "wrong": (wrong, 5),
    "broken": (broken, 10),
    "again": (again, 80),
}
"""Sections and the seconds they may take."""
EXACT = ("exact", "together", "memory", "wrong", "broken", "again")
"""Sections that want deterministic kernels: cuBLAS is set up for them before it is first used."""


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
    here, there = list(given.only), list[str]()
    if device.type == "cuda":
        here = [name for name in given.only if name not in EXACT]
        there = [name for name in given.only if name in EXACT]
    if not here:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        here, there = there, []
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
        for name in here:
            section, seconds = SECTIONS[name]
            report.section = name
            bench.ends = time.monotonic() + seconds * (1 if bench.cuda else 5)
            print(f"{name}: {(section.__doc__ or '').splitlines()[0]}", flush=True)
            started = time.monotonic()
            try:
                with randomness.Kernels(False, print):
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
        if there:
            report.rows += elsewhere(given, there, Path(folder) / "there.json")
    print(f"\n{report.table()}\n\n{time.monotonic() - begun:.0f} s")
    if given.out is not None:
        report.write(given.out, about)
    return report


def elsewhere(given: argparse.Namespace, sections: Sequence[str], out: Path) -> list[Row]:
    """The figures of sections that run in a process of their own."""
    command = [sys.executable, __file__, "--device", given.device, "--out", str(out)]
    command += ["--tiny"] * given.tiny + ["--only", *sections, "--methods", *given.methods]
    code = subprocess.run(command, check=False).returncode
    if out.exists():
        return [Row(**row) for row in json.loads(out.read_text(encoding="utf-8"))["rows"]]
    return [Row(", ".join(sections), "the process", f"ended with {code}", "figures", False)]


if __name__ == "__main__":
    sys.exit(any(row.reached is False for row in main().rows))
