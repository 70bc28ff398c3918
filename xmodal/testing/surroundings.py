"""Contract checks of the services around a run: launchers, trackers and exporters.

Launchers run real, short processes in a temporary folder. The nodes of a cluster must see that
folder; TMPDIR sets its location.
"""

from __future__ import annotations

import io
import json
import math
import random as standard_random
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import chdir, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from xmodal import runs
from xmodal.batch import Tokens
from xmodal.data.preparation import Array, RawForm
from xmodal.errors import XModalError
from xmodal.inference.model import TrainedModel
from xmodal.interfaces import Exporter, Job, Launcher, Network, Settings, Tracked, Tracker
from xmodal.testing.tiny import (
    GRIDS,
    WIDTH,
    Given,
    TinyBackbone,
    build,
    check_class,
    expect,
    random,
    seeded,
    tiny_context,
    tiny_facts,
)

PATIENCE = 60.0
# Takes a while to end when asked, like a run that saves itself.
_LONG = """
import signal, sys, time
def save(*_):
    time.sleep(1)
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("started", flush=True)
time.sleep(600)
"""


def check_launcher(component: type[Launcher], given: Given = None) -> None:
    """A launcher runs every job once, keeps its output, survives a failing job, and stops gently.

    It does not take back a job that has begun.
    """
    name, _ = check_class(component, Launcher, given)
    with tempfile.TemporaryDirectory() as folder:
        launcher = build(component, given)
        expect(launcher.slots >= 1, f"{name}.slots must be at least 1")
        _check_ends(launcher, name, Path(folder))
        _check_stop(launcher, name, Path(folder))


def _check_ends(launcher: Launcher, name: str, folder: Path) -> None:
    jobs = [_job(folder, f"job{i}", f"print('number {i}')") for i in range(3)]
    jobs.append(_job(folder, "failing", "raise SystemExit(3)"))
    jobs[0].log.write_text("before\n", encoding="utf-8")
    launcher.submit(jobs[:2])
    launcher.submit(jobs[2:])
    words = set(launcher.unfinished().values())
    expect(words <= {"queued", "running"}, f"{name}.unfinished says {words}")
    _wait(lambda: not launcher.unfinished(), f"{name}: jobs that end stay unfinished")
    for number, job in enumerate(jobs[:-1]):
        text = job.log.read_text(encoding="utf-8")
        expect(f"number {number}" in text, f"{name}: the output of a job is not in its log")
    kept = jobs[0].log.read_text(encoding="utf-8").startswith("before\n")
    expect(kept, f"{name}: a job's output must be appended to its log")


def _check_stop(launcher: Launcher, name: str, folder: Path) -> None:
    long = _job(folder, "long", _LONG)
    launcher.submit([long])
    expect(set(launcher.unfinished()) == {"long"}, f"{name}: a running job is not listed")
    launcher.submit([long])
    _wait(lambda: long.log.exists() and "started" in long.log.read_text(), f"{name}: no start")
    _wait(lambda: launcher.unfinished() == {"long": "running"}, f"{name}: a job does not run")
    launcher.withdraw(["long", "unknown"])
    expect(launcher.unfinished() == {"long": "running"}, f"{name}.withdraw ends a running job")
    launcher.stop()
    expect(not launcher.unfinished(), f"{name}: a job goes on after stop()")
    text = long.log.read_text(encoding="utf-8")
    expect("saved" in text, f"{name}.stop() must let a job save itself, and wait for it")
    expect(text.count("started") == 1, f"{name}: a listed job must not start again")


def _job(folder: Path, name: str, code: str) -> Job:
    return Job(name, (sys.executable, "-c", code), folder / f"{name}.txt")


def _wait(done: object, message: str) -> None:
    assert callable(done)
    begun = time.monotonic()
    while not done():
        expect(time.monotonic() - begun < PATIENCE, message)
        time.sleep(0.05)


RECIPE: Mapping[str, Any] = {
    "task": {"use": "example", "path": None},
    "stages": [{"use": "example", "epochs": 2, "train": ["*"], "stretch": 1.5}],
    "deterministic": True,
}
TAGS = ("name", "task", "metric", "seed", "protocol", "role", "hash")
NUMBERS = {"train/loss": 0.5, "validation/metric": float("nan"), "step/part of/it.1": 2.0}
RESULT = {"test/metric": 0.25, "best/metric": 0.5, "steps": 12.0}


def check_tracker(component: type[Tracker], given: Given = None) -> None:
    """A tracker follows a run, continues a run that was cut off, and can end at any point.

    It must not use standard output or the global random generators.
    """
    name, _ = check_class(component, Tracker, given)
    with tempfile.TemporaryDirectory() as text, chdir(text), redirect_stdout(io.StringIO()) as out:
        run = Tracked("example/run", Path(text), RECIPE, dict.fromkeys(TAGS, "example"))
        before = _generators()
        memory = _follow(component, given, run, "interrupted", None, (1, 10, 10))
        expect(_plain(memory), f"{name}.start must map text to text, not return {memory}")
        again = replace(run, memory=json.loads(json.dumps(memory)), step=10)
        continued = _follow(component, given, again, "done", RESULT, (12,))
        expect(continued == memory, f"{name} begins another run instead of continuing: {continued}")
        build(component, given).finish("failed", None)
        expect(_generators() == before, f"{name} draws from a global random generator")
        expect(not out.getvalue(), f"{name} prints: {out.getvalue()!r}")


def _follow(
    component: type[Tracker],
    given: Given,
    run: Tracked,
    state: str,
    result: Mapping[str, float] | None,
    steps: tuple[int, ...],
) -> dict[str, str]:
    tracker = build(component, given)
    every = tracker.every_steps
    expect(
        every is None or (isinstance(every, int) and every >= 1),
        f"{component.__name__}.every_steps must be at least 1, or None, not {every!r}",
    )
    try:
        memory = tracker.start(run)
        for step in steps:
            tracker.log(step, dict(NUMBERS))
    finally:
        tracker.finish(state, result)
    return dict(memory)


def _plain(memory: Mapping[Any, Any]) -> bool:
    return all(isinstance(part, str) for pair in memory.items() for part in pair)


def _generators() -> tuple[Any, ...]:
    numpy_state = np.random.get_state(legacy=True)
    drawn = [str(part) for part in numpy_state]
    return standard_random.getstate(), drawn, torch.random.get_rng_state().tolist()


SAMPLES = 3
CLOSE = 1e-3


class _Embed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Conv2d(2, WIDTH, 4, stride=4)

    def forward(self, x: Tensor) -> Tokens:
        return Tokens(self.projection(x).flatten(2).transpose(1, 2), GRIDS["grid"])


class _Head(nn.Module):
    reads_samples = False

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, outputs)

    def forward(self, features: Tokens) -> Tensor:
        prediction: Tensor = self.linear(features.x_BND.mean(dim=1))
        return prediction

    def from_samples(self, x: Tensor, index: Tensor | None = None) -> None:
        """Nothing is added to the prediction."""


class _Example(TrainedModel):
    """An untrained model of images ``[n, 16, 24, 2]``, channels last."""

    kept = SAMPLES

    def samples(self) -> Array:
        return random(self.kept, *self.raw.shape).double().numpy()


def tiny_trained(folder: Path) -> TrainedModel:
    """A classifier with random weights, whose run is in ``folder``."""
    facts = tiny_facts()
    scale = torch.tensor([2.0, 3.0], dtype=torch.float64).reshape(2, 1, 1)
    raw = RawForm((16, 24, 2), (2, 16, 24), channel=2, mean=scale, scale=scale)
    recipe = SimpleNamespace(
        precision="fp32", adapter=None, deterministic=False, evaluation_batch=SAMPLES
    )
    with seeded(0):
        backbone = TinyBackbone(Settings(), tiny_context())
        embedder, head = cast("Any", _Embed()), cast("Any", _Head(facts.task.target.size))
    network = Network(embedder, backbone, head, nn.Identity()).eval().requires_grad_(False)
    device = torch.device("cpu")
    run = runs.Run(folder)
    return _Example(network, cast("Any", recipe), facts, raw, (), run, device, lambda line: None)


def check_exporter(component: type[Exporter], given: Given = None) -> None:
    """An exporter writes files that agree with the model, and does not change the model.

    It must refuse a model that it cannot check, with an error for users, and must not use standard
    output or the random generator.
    """
    (name, _), exporter = check_class(component, Exporter, given), build(component, given)
    with tempfile.TemporaryDirectory() as text, redirect_stdout(io.StringIO()) as out:
        folder = Path(text) / "export"
        folder.mkdir()
        trained = tiny_trained(Path(text))
        x = trained.samples()
        before, state = trained.outputs(x), torch.get_rng_state()
        exported = exporter.export(trained, folder)
        expect(any(folder.iterdir()), f"{name} writes no file")
        far = not (math.isfinite(exported.difference) and 0 <= exported.difference < CLOSE)
        expect(not far, f"{name}: the export differs from the model by {exported.difference}")
        expect(
            exported.samples == SAMPLES, f"{name} checks {exported.samples} of {SAMPLES} samples"
        )
        expect(bool(exported.usage.strip()), f"{name} does not explain how to use its files")
        expect(torch.equal(trained.outputs(x), before), f"{name} changes the model")
        expect(torch.equal(torch.get_rng_state(), state), f"{name} draws random numbers")
        expect(not out.getvalue(), f"{name} prints: {out.getvalue()!r}")
        _Example.kept = 0
        try:
            exporter.export(trained, folder)
        except XModalError:
            return
        finally:
            _Example.kept = SAMPLES
        raise AssertionError(f"{name} exports a model that it has no samples to check with")
