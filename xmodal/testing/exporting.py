"""Contract check of exporters: a tiny model into a folder that is removed again."""

from __future__ import annotations

import io
import math
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from xmodal import runs
from xmodal.batch import Tokens
from xmodal.data.preparation import Array, RawForm
from xmodal.errors import XModalError
from xmodal.inference.model import TrainedModel
from xmodal.interfaces import Exporter, Network, Settings
from xmodal.testing.support import Given, build, check_config, expect, seeded
from xmodal.testing.tiny import GRIDS, WIDTH, TinyBackbone, random, tiny_context, tiny_facts

SAMPLES = 3
CLOSE = 1e-3


class _Embed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Conv2d(2, WIDTH, 4, stride=4)

    def forward(self, x: Tensor) -> Tokens:
        return Tokens(self.projection(x).flatten(2).transpose(1, 2), GRIDS["grid"])


class _Head(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, outputs)

    def forward(self, features: Tokens) -> Tensor:
        prediction: Tensor = self.linear(features.x_BND.mean(dim=1))
        return prediction


class _Example(TrainedModel):
    """A model of images ``[n, 16, 24, 2]``, channels last, that no run has trained."""

    kept = SAMPLES

    def samples(self) -> Array:
        return random(self.kept, *self.raw.shape).double().numpy()


def tiny_trained(folder: Path) -> TrainedModel:
    """A classifier with random weights whose run lies in ``folder``."""
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
    """An exporter writes files that agree with the model, and leaves the model as it was.

    It must refuse what it cannot check, with an error for users, and leave standard output and the
    random generator alone.
    """
    expect(issubclass(component, Exporter), f"{component.__name__} must derive from Exporter")
    check_config(component, given)
    name, exporter = component.__name__, build(component, given)
    with tempfile.TemporaryDirectory() as text, redirect_stdout(io.StringIO()) as out:
        folder = Path(text) / "export"
        folder.mkdir()
        trained = tiny_trained(Path(text))
        x = trained.samples()
        before, state = trained.outputs(x), torch.get_rng_state()
        exported = exporter.export(trained, folder)
        expect(any(folder.iterdir()), f"{name} writes no file")
        far = not (math.isfinite(exported.difference) and 0 <= exported.difference < CLOSE)
        expect(not far, f"{name}: what it writes is {exported.difference} away from the model")
        expect(
            exported.samples == SAMPLES, f"{name} checks {exported.samples} of {SAMPLES} samples"
        )
        expect(bool(exported.usage.strip()), f"{name} does not say how to use what it writes")
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
