"""What plugin authors and users may rely on, pinned: names, signatures, first losses of recipes.

A difference means a promise changed. If that is meant, write the files anew:
``XMODAL_UPDATE_GOLDEN=1 pytest tests/golden``, and say so in the change log.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from xmodal import api, plugins
from xmodal.recipe.lookup import all_recipes

from ..paths import ROOT
from ..public import PUBLIC

HERE = Path(__file__).resolve().parent
UPDATE = os.environ.get("XMODAL_UPDATE_GOLDEN") == "1"
RELATIVE = 1e-4
CAR = ("tasks/openml/car", "backbone=tiny", "source={use: digits, samples: 32}")


def compare(name: str, found: Any) -> None:
    """Compare with the stored file, numbers to a relative 1e-4; or store it."""
    file = HERE / f"{name}.json"
    if UPDATE:
        file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    stored = json.loads(file.read_text(encoding="utf-8"))
    wrong = list(differences(stored, found, name))
    assert not wrong, "\n".join(wrong)


def differences(stored: Any, found: Any, path: str) -> list[str]:
    """Where two nested values differ, one line each."""
    if isinstance(stored, dict) and isinstance(found, dict):
        lines = [f"{path}: '{key}' is gone" for key in stored.keys() - found.keys()]
        lines += [f"{path}: '{key}' is new" for key in found.keys() - stored.keys()]
        for key in stored.keys() & found.keys():
            lines += differences(stored[key], found[key], f"{path}.{key}")
        return sorted(lines)
    if isinstance(stored, list) and isinstance(found, list) and len(stored) == len(found):
        pairs = enumerate(zip(stored, found, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{path}.{i}")]
    if isinstance(stored, float) and isinstance(found, float):
        same = found == pytest.approx(stored, rel=RELATIVE)
    else:
        same = stored == found
    return [] if same else [f"{path}: was {stored!r}, is {found!r}"]


def test_differences_are_seen() -> None:
    stored = {"a": 1.0, "b": [1, 2], "c": "x"}
    assert not differences(stored, {"a": 1.00005, "b": [1, 2], "c": "x"}, "")
    assert differences(stored, {"a": 1.001, "b": [1, 2], "c": "x"}, "") == [".a: was 1.0, is 1.001"]
    assert differences(stored, {"b": [1, 3], "c": "y", "d": 0}, "") == [
        ".b.1: was 2, is 3",
        ".c: was 'x', is 'y'",
        ": 'a' is gone",
        ": 'd' is new",
    ]


def test_registered_names() -> None:
    """A name in a recipe keeps meaning what it meant: none may vanish."""
    registry = plugins.registry()
    own = {kind: [] for kind in sorted(plugins.HOOKS)}
    for (kind, name), entry in sorted(registry.entries.items()):
        if entry.distribution == "xmodal":
            own[kind].append(name)
    compare("names", own)


def test_shipped_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a folder "recipes" here would come first
    found = all_recipes(plugins.registry())
    compare("recipes", sorted(f.name for f in found if f.origin == "xmodal"))


def signature(thing: Any) -> str:
    """The signature as text, without the machine's own paths or addresses."""
    try:
        return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(thing)))
    except (TypeError, ValueError):
        return "?"


def described(thing: Any) -> Any:
    """What of a class or a function its users depend on."""
    if not inspect.isclass(thing):
        return signature(thing) if callable(thing) else type(thing).__name__
    members: dict[str, Any] = {"bases": [base.__name__ for base in thing.__bases__]}
    if dataclasses.is_dataclass(thing):
        members["fields"] = [f"{f.name}: {f.type}" for f in dataclasses.fields(thing)]
    if issubclass(thing, BaseModel):
        members["fields"] = sorted(thing.model_fields)
    for name, value in vars(thing).items():
        if name.startswith("_") and name != "__call__":
            continue
        raw = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if isinstance(raw, property):
            members[name] = "property"
        elif inspect.isfunction(raw):
            abstract = "abstract " if getattr(raw, "__isabstractmethod__", False) else ""
            members[name] = abstract + type(value).__name__ + signature(raw)
    return members


def test_public_signatures() -> None:
    api_ = {}
    for module_name in PUBLIC:
        module = importlib.import_module(module_name)
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", "") == module_name
        ]
        api_[module_name] = {n: described(getattr(module, n)) for n in sorted(names)}
    compare("api", api_)


def first_losses(recipe: str, *more: str, scale: str) -> dict[str, Any]:
    """The first losses of a run, its logged numbers and its first validation score."""
    from xmodal.data.store import Store
    from xmodal.engine.build import Builder
    from xmodal.engine.loop import Training
    from xmodal.engine.plan import plan
    from xmodal.engine.step import StepRecord
    from xmodal.recipe.compose import compose, validate

    registry = plugins.registry()
    recipes = [r for r in (recipe, *more) if "=" not in r]
    overrides = [r for r in more if "=" in r]
    layered = compose(recipes, registry, overrides, scale)
    builder = Builder(plan(validate(layered, registry), Store(), layered), Store(), lambda _: None)
    training = Training(builder.session(builder.data()))
    steps, epochs = [], []
    for record in training.run():
        if isinstance(record, StepRecord):
            numbers = {key: float(value) for key, value in record.log.items()}
            steps.append({"loss": record.loss, **numbers})
        else:
            epochs.append(record.metric)
    return {"steps": steps, "validation": epochs}


@pytest.fixture
def _one_thread() -> Any:
    """One thread: sums in another order differ in the last digits, which training magnifies."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


NO_FIELDS = {"forest", "frozen-features", "kernels"}
"""Methods that predict no fields; their own tests compare them with scikit-learn."""


def methods() -> list[Any]:
    """Every shipped method recipe but those of rivals; one is among the fast tests."""
    files = (ROOT / "recipes" / "methods").glob("*.yaml")
    names = sorted(file.stem for file in files if "role: rival\n" not in file.read_text())
    names = [name for name in names if name not in NO_FIELDS]
    return [pytest.param(n, marks=[] if n == "pare" else [pytest.mark.slow]) for n in names]


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("method", methods())
def test_first_losses_on_darcy(method: str) -> None:
    if method == "baseline":
        # Its parts are other parts, so it comes after the scale that would replace them.
        recipes = ("tasks/darcy", "scales/smoke", "scales/smoke/darcy", "methods/baseline")
        found = first_losses(*recipes, scale="paper")
    else:
        found = first_losses(f"methods/{method}", "tasks/darcy", scale="smoke")
    compare(f"losses-{method}", found)


@pytest.mark.usefixtures("_one_thread")
def test_first_losses_on_a_table() -> None:
    compare("losses-pare-car", first_losses("methods/pare", *CAR, scale="smoke"))


def test_a_loaded_model_predicts_what_was_stored(tmp_path: Path) -> None:
    """``xmodal.load`` gives the model whose test predictions the run kept."""
    from safetensors.torch import load_file

    overrides = ["seed=5"]
    outcome = api.run(
        "methods/pare", "tasks/darcy", scale="smoke", overrides=overrides, root=tmp_path
    )
    kept = load_file(outcome.run.path / "predictions.safetensors")["prediction"]
    samples = load_file(outcome.run.path / "samples" / "tensors.safetensors")
    again = api.load(outcome.run.path).forward(samples["/test/x"])
    assert torch.allclose(again, kept[: len(again)], atol=1e-6)
