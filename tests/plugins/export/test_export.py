"""Exports run without xmodal, agree with the model, and leave nothing behind where they do not."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import xmodal
from xmodal import api
from xmodal.data import RawForm
from xmodal.errors import DataError, MachineError, UsageError
from xmodal.inference.export import FACTS
from xmodal.inference.model import TrainedModel
from xmodal.interfaces import Exported
from xmodal_export import onnx, programs

TEXT = {
    "model_type": "roberta",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "vocab_size": 100,
}
IMAGE = {
    "model_type": "dinov2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
SWIN = {
    "model_type": "swin",
    "embed_dim": 16,
    "depths": [1, 2],
    "num_heads": [2, 2],
    "window_size": 3,
    "image_size": 24,
    "patch_size": 4,
}
CASES = {
    "lora on roberta": (TEXT, "methods/lora", "tasks/openml/car"),
    "fpt on dinov2": (IMAGE, "methods/fpt", "tasks/darcy"),
    "nft on swin": (SWIN, "methods/nft", "tasks/darcy"),
    "nft on swin, small grid": (SWIN | {"window_size": 7}, "methods/nft", "tasks/darcy"),
    "linear model": (None, "methods/baseline", "tasks/darcy"),
}
AS_PROGRAMS = ("nft on swin, small grid", "linear model")


@dataclass
class Made:
    """A run, loaded, and its export."""

    trained: TrainedModel
    folder: Path
    exported: Exported


def _run(root: Path, config: dict[str, Any] | None, *recipes: str) -> TrainedModel:
    backbone = root / "body"
    backbone.mkdir(parents=True)
    (backbone / "config.json").write_text(json.dumps(config))
    overrides = ["source=null"]
    if config is not None:
        overrides.append(f"backbone={{use: hf, name: {backbone}, pretrained: false}}")
    api.run(
        *recipes,
        scale="smoke",
        overrides=overrides,
        directory=root / "run",
        report=False,
    )
    return xmodal.load(root / "run")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """Every kind of backbone, exported to plain PyTorch."""
    root = tmp_path_factory.mktemp("exports")
    found = {}
    for number, (name, (config, *recipes)) in enumerate(CASES.items()):
        place = root / str(number)
        trained = _run(place, config, *recipes)
        exported = xmodal.export(place / "run", "hf", place / "export")
        found[name] = Made(trained, place / "export", exported)
    return found


_ALONE = """
import importlib.abc, json, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition("_")[0].partition(".")[0] == "xmodal":
            raise ImportError("xmodal is not here")

sys.meta_path.insert(0, Blocked())
import importlib.util
import numpy as np
import torch

for folder in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location("modeling", folder + "/modeling.py")
    modeling = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(modeling)
    model = modeling.load(folder)
    np.save(folder + "/found.npy", model(torch.from_numpy(np.load(folder + "/given.npy"))).numpy())
assert not any(name.startswith("xmodal") for name in sys.modules)
"""


@pytest.mark.slow
def test_exports_run_without_xmodal(made: dict[str, Made], tmp_path: Path) -> None:
    for one in made.values():
        x = programs.real_samples(one.trained)
        np.save(one.folder / "given.npy", x.numpy())
    script = tmp_path / "alone.py"
    script.write_text(_ALONE)
    folders = [str(one.folder) for one in made.values()]
    done = subprocess.run(
        [sys.executable, str(script), *folders],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, one in made.items():
        wanted = one.trained.outputs(np.load(one.folder / "given.npy")).numpy()
        apart = np.abs(np.load(one.folder / "found.npy") - wanted).max()
        assert apart <= 1e-5 * max(1, np.abs(wanted).max()), name


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in AS_PROGRAMS])
def test_transformers_loads_the_adapted_body(made: dict[str, Made], name: str) -> None:
    from transformers import AutoModel

    one = made[name]
    backbone, info = AutoModel.from_pretrained(one.folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert backbone.config.model_type == (CASES[name][0] or {})["model_type"]
    own = dict(programs.plain(one.trained).backbone.named_parameters())
    loaded = dict(backbone.named_parameters())
    matched = sum(1 for value in own.values() if any(_same(value, v) for v in loaded.values()))
    # The prefix of an image backbone travels with the embedder.
    assert matched == len(own) - any("prefix" in key for key in own)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


@pytest.mark.slow
def test_backbones_that_no_library_runs_rightly_are_programs(made: dict[str, Made]) -> None:
    for name in CASES:
        files = {path.name for path in made[name].folder.iterdir()}
        assert ("body.pt2" in files) == (name in AS_PROGRAMS), name
        assert ("config.json" in files) != (name in AS_PROGRAMS), name
    notes = " ".join(made["nft on swin, small grid"].exported.notes)
    assert "transformers cannot run this backbone" in notes


@pytest.mark.slow
def test_low_rank_updates_are_merged(made: dict[str, Made]) -> None:
    one = made["lora on roberta"]
    kept = load_file(one.folder / "model.safetensors")
    assert not any("lora" in key or "base_layer" in key for key in kept)
    layer = one.trained.model.backbone.get_submodule("body.model.encoder.layer.0.output.dense")
    update = layer.get_delta_weight("default")
    merged = kept["encoder.layer.0.output.dense.weight"]
    assert update.abs().max() > 0
    assert torch.allclose(merged, layer.get_base_layer().weight + update, atol=1e-7)
    # The loaded model is as it was.
    assert any("lora_A" in name for name, _ in one.trained.model.named_parameters())
    assert "merged" in (one.folder / "README.md").read_text()


@pytest.mark.slow
def test_the_card_says_what_the_model_reads_and_where_it_is_from(made: dict[str, Made]) -> None:
    one = made["lora on roberta"]
    text = (one.folder / "README.md").read_text()
    facts = json.loads((one.folder / FACTS).read_text())
    result = one.trained.run.read("result.json")
    for part in (
        "`x`: `[n, 6]`",
        "| safety | 0 = low, 1 = med, 2 = high |",
        "A number that is none of a category's codes counts as missing, like NaN.",
        "Classes: 0 = unacc, 1 = acc, 2 = good, 3 = vgood.",
        str(result["test"]["metric"]),
        str(one.trained.run.read("manifest.json")["hash"]),
        "licence",
        "dtype=torch.float64",
    ):
        assert part in text, part
    assert facts["classes"] == list(one.trained.classes)
    assert facts["input"]["categories"]["doors"] == ["2", "3", "4", "5more"]
    assert facts["test"] == result["test"]
    assert facts["difference"] == one.exported.difference


@pytest.mark.slow
def test_onnx_agrees_for_any_batch(made: dict[str, Made], tmp_path: Path) -> None:
    import onnxruntime

    one = made["lora on roberta"]
    done = xmodal.export(one.trained.run.path, "onnx", tmp_path / "onnx")
    assert done.difference < 1e-5
    assert done.samples == 4
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    table = np.concatenate([one.trained.samples()] * 3)
    table[1, 2] = np.nan
    for count in (1, 7, 12):
        (y,) = session.run(["y"], {"x": table[:count]})
        assert np.allclose(y, one.trained.outputs(table[:count]), atol=1e-5)
    # No code of a category, also between two of them, counts as missing.
    strange = table[[1] * 5]
    strange[:, 2] = [np.nan, 0.5, -0.5, -1, 4]
    (y,) = session.run(["y"], {"x": strange})
    assert (y == y[0]).all()


# --- what goes wrong ---


@pytest.mark.slow
def test_what_does_not_agree_leaves_nothing(
    made: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made["linear model"].trained

    def wrong(module: nn.Module, x: torch.Tensor) -> Any:
        return real(_Doubled(module), x)

    real = programs.traced
    monkeypatch.setattr(programs, "traced", wrong)
    with pytest.raises(DataError, match="does not agree with the trained model: largest"):
        xmodal.export(model.run.path, "hf", tmp_path / "out")
    assert not list(tmp_path.iterdir())


class _Doubled(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Wrong on purpose."""
        return 2 * self.module(x)


def test_difference_is_the_largest_and_wrong_shapes_never_agree() -> None:
    x = torch.arange(4.0)[:, None]
    raw = RawForm(tuple(x.shape[1:]), tuple(x.shape[1:]))
    assert programs.difference(lambda x: x, lambda x: x + 0.5, x, raw) == (0.5, 3.0)
    assert programs.difference(lambda x: x, lambda x: x[:, 0], x, raw)[0] == float("inf")
    assert programs.difference(lambda x: x, lambda x: x * float("nan"), x, raw)[0] == float("inf")
    tiny = dataclasses.replace(raw, label_mean=torch.zeros(1), label_scale=torch.full((1,), 1e-9))
    apart = programs.difference(lambda x: x * 1e-9, lambda x: x * 1e-9 + 5e-10, x, tiny)
    assert apart == (pytest.approx(0.5), pytest.approx(3.0))
    programs.agree(0.5, 10.0, 0.05, "it")
    for apart in (0.51, float("inf"), float("nan")):
        with pytest.raises(DataError, match="it does not agree"):
            programs.agree(apart, 10.0, 0.05, "it")


@pytest.mark.long
def test_trees_cannot_be_traced(tmp_path: Path) -> None:
    trained = _run(tmp_path / "trees", None, "methods/baseline", "tasks/openml/car")
    with pytest.raises(DataError, match=r"cannot be exported to 'hf': .*predictor 'sklearn'") as e:
        xmodal.export(trained.run.path, "hf", tmp_path / "out")
    assert "\n" not in str(e.value)
    assert f"xmodal predict {trained.run.path} FILE" in str(e.value)
    assert not (tmp_path / "out").exists()
    # Without a folder it would lie beside the run; what lies there is not touched.
    beside = trained.run.path.with_name(f"{trained.run.path.name}-hf")
    beside.mkdir()
    (beside / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=rf"--out {re.escape(str(beside))} exists"):
        xmodal.export(trained.run.path, "hf")


@pytest.mark.slow
def test_missing_packages_are_named(
    made: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if "script" in name else name)
    with pytest.raises(UsageError, match=r"needs onnxscript: pip install 'xmodal\[onnx\]'"):
        xmodal.export(made["linear model"].trained.run.path, "onnx", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_folders_of_others_are_never_replaced(made: dict[str, Made], tmp_path: Path) -> None:
    one = made["linear model"]
    run = one.trained.run.path
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    for force in (False, True):
        with pytest.raises(UsageError, match="exists and is no export; name a new folder"):
            xmodal.export(run, "hf", tmp_path / "mine", force=force)
    with pytest.raises(UsageError, match="--force replaces it"):
        xmodal.export(run, "hf", one.folder)
    out = tmp_path / "out"
    xmodal.export(run, "hf", out)
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("words")
    with pytest.raises(UsageError, match=r"not of the export: notes/mine\.txt\. Nothing was"):
        xmodal.export(run, "hf", out, force=True)
    assert (out / "notes" / "mine.txt").read_text() == "words"
    shutil.rmtree(out / "notes")
    before = (out / "xmodal.json").stat().st_ino
    xmodal.export(run, "hf", out, force=True)
    assert (out / "xmodal.json").stat().st_ino != before
    (tmp_path / "mine" / "xmodal.json").write_text('{"editor": "settings"}')
    with pytest.raises(UsageError, match="exists and is no export; name a new folder"):
        xmodal.export(run, "hf", tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "words"
    with pytest.raises(UsageError, match="unknown exporter 'onx'; did you mean 'onnx'"):
        xmodal.export(run, "onx", tmp_path / "new")


@pytest.mark.long
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-200, 0.0), (20.0, 1.7e9)])
def test_units_that_single_precision_cannot_hold(
    tmp_path: Path, scale: float, offset: float
) -> None:
    """Samples and labels: the graph reads and gives double precision, and gives what is right."""
    import onnxruntime

    x = np.random.default_rng(0).normal(size=(40, 2, 20))
    moved = x * scale + offset
    np.savez(tmp_path / "d.npz", x=moved, y=moved[:, 0, 0])
    api.run(
        "methods/nft",
        "arrays/sequence",
        overrides=[f"task.path={tmp_path / 'd.npz'}", "task.kind=regression", "device=cpu"],
        scale="smoke",
        directory=tmp_path / "run",
        report=False,
    )
    xmodal.export(tmp_path / "run", "onnx", tmp_path / "export")
    session = onnxruntime.InferenceSession(str(tmp_path / "export" / onnx.FILE))
    (given,) = session.get_inputs()
    assert given.type == ("tensor(float)" if scale == 1 else "tensor(double)")
    dtype = np.float32 if scale == 1 else np.float64
    (found,) = session.run(None, {given.name: moved.astype(dtype)})
    assert found.dtype == np.float64
    wanted = xmodal.load(tmp_path / "run").predict(moved).reshape(found.shape)
    assert len(np.unique(found)) == len(np.unique(wanted)) == 40
    np.testing.assert_allclose((found - offset) / scale, (wanted - offset) / scale, atol=1e-4)


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_leaves_nothing(made: dict[str, Made], tmp_path: Path) -> None:
    """Torch would end the process if it wrote the file itself."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(MachineError, match="out: File too large"):
            xmodal.export(made["linear model"].trained.run.path, "hf", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
