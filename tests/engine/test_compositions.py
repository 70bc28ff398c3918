"""Every method with every kind of data and label trains; what cannot work says so in one line.

Methods are found, not listed, so a new one is covered as soon as its recipe exists. Two steps on
the tiny backbone; whether a method is right is for its own tests.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from xmodal import plugins
from xmodal.data.store import Store
from xmodal.engine.build import Builder
from xmodal.engine.evaluate import evaluate
from xmodal.engine.loop import EpochRecord, Training
from xmodal.engine.plan import plan
from xmodal.engine.session import RunSession
from xmodal.errors import DataError, RecipeError, UsageError
from xmodal.optimize import BatchSize
from xmodal.recipe.compose import compose, validate
from xmodal.recipe.lookup import all_recipes
from xmodal.recipe.yaml import read
from xmodal.settings import Use

from ..paths import ROOT

pytestmark = pytest.mark.slow

ALL = {
    found.name.removeprefix("methods/"): read(found.path).data.get("role")
    for found in all_recipes(plugins.registry())
    # Deeper ones are layers of a method for a task or a scale.
    if found.name.startswith("methods/") and found.name.count("/") == 1
}
METHODS = sorted(name for name, role in ALL.items() if role != "rival")
RIVALS = sorted(name for name, role in ALL.items() if role == "rival")
SAMPLES, SIDE, LENGTH, BATCH = 24, 16, 24, 4
INDEX = ROOT / "docs" / "methods" / "index.md"

KINDS = (
    "classes of grids",
    "classes of sequences",
    "classes of rows",
    "labels of grids",
    "numbers of sequences",
    "maps of grids",
    "series of sequences",
)

LABELS = {
    "classes": "classification",
    "labels": "multi-label",
    "numbers": "regression",
    "maps": "dense",
    "series": "dense",
}

REFUSED: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("nft", "series of sequences", ("predictor=classification",), "cannot predict dense labels"),
    ("nft", "classes of rows", ("predictor=dense",), "cannot predict classification labels"),
    ("nft", "labels of grids", ("task.loss=cross-entropy",), "does not fit multi-label labels"),
    ("nft", "classes of rows", ("embedder=patch",), "needs a grid (C, H, W)"),
    ("nft", "classes of grids", ("embedder=conv-1d",), "needs a sequence (C, L)"),
    ("nft", "classes of sequences", ("embedder=columns",), "needs a table row (F,)"),
    (
        "nft",
        "numbers of sequences",
        ("backbone={use: swin, size: tiny}",),
        "needs a 2-D token grid",
    ),
    ("baseline", "classes of rows", ("adapter=lora",), "has no linear layers"),
    ("lora", "classes of rows", ('adapter.targets=["*attn*"]',), "matches no linear layer"),
    ("pare", "classes of grids", ("source=null",), "is missing; mixer 'patch-replace' needs one"),
    ("pare", "classes of grids", ("selector=null",), "is missing; mixer 'patch-replace' needs a"),
    (
        "pare",
        "classes of rows",
        ("mixer.match=same-position",),
        "needs source and target tokens on",
    ),
    ("pare", "classes of rows", ("source=conll-2003",), "holds text, but backbone"),
    ("pare", "maps of grids", ("source_head=target",), "do not have the form of the target's"),
    ("orca", "classes of rows", ("source=null",), "is missing; stage 'align' needs one"),
)
"""What cannot be done: a method, a kind, overrides, and what the one line says."""


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small file for every kind."""
    folder, random = tmp_path_factory.mktemp("kinds"), np.random.default_rng(0)
    label_N = np.arange(SAMPLES) % 3
    grid = random.normal(size=(SAMPLES, 2, SIDE, SIDE)).astype("float32")
    sequence = random.normal(size=(SAMPLES, 2, LENGTH)).astype("float32")
    binary = (random.normal(size=(SAMPLES, 4)) > 0).astype("int64")
    # Both values of every label in every part, however these samples are split.
    binary[:12], binary[12:] = [0, 1, 0, 1], [1, 0, 1, 0]
    made = {
        "classes of grids": (grid, label_N),
        "classes of sequences": (sequence, label_N),
        "labels of grids": (grid, binary),
        "numbers of sequences": (sequence, sequence.mean(axis=2)),
        "maps of grids": (grid, grid[:, :1] ** 2),
        "series of sequences": (sequence, sequence[:, :1] ** 2),
    }
    for name, (x, y) in made.items():
        np.savez(folder / f"{name}.npz", x=x, y=y)
    table = pd.DataFrame(random.normal(size=(SAMPLES, 4)), columns=list("abcd"))
    table["colour"] = np.array(["red", "green", "blue"])[random.integers(0, 3, SAMPLES)]
    table["label"] = np.array(["x", "y", "z"])[label_N]
    table.to_csv(folder / "classes of rows.csv", index=False)
    return folder


def session_of(method: str, kind: str, files: Path, *overrides: str) -> RunSession:
    """A run of a method cut down to two steps a stage, ready to train."""
    (path,) = files.glob(f"{kind}.*")
    # The method comes last: the baseline names a backbone of its own.
    layers = ["scales/smoke", f"methods/{method}"]
    task = {"use": "arrays", "path": str(path)}
    if "rows" not in kind:
        task["form"] = kind.rpartition(" ")[2].removesuffix("s")
    recipe = validate(
        compose(
            layers,
            plugins.registry(),
            [f"task={json.dumps(task)}", *overrides],
        ),
        plugins.registry(),
    )
    store = Store()
    made = Builder(plan(_short(recipe), store), store, lambda line: None)
    return made.session(made.data())


def _short(recipe: Any) -> Any:
    wanted = {"epochs": 2, "max_steps": 1, "stretch": 1.0, "batch": BatchSize(size=BATCH)}
    stages = []
    for stage in recipe.stages:
        known = {k: v for k, v in wanted.items() if k in type(stage.config).model_fields}
        stages.append(Use(stage.name, stage.component, stage.config.model_copy(update=known)))
    return recipe.model_copy(update={"stages": tuple(stages)})


def combinations() -> list[Any]:
    """Every method with every kind; among the fast tests is one kind a method, in turn."""
    return [
        pytest.param(method, kind, marks=[pytest.mark.slow] if (m + k) % len(KINDS) else [])
        for m, method in enumerate(METHODS)
        for k, kind in enumerate(KINDS)
    ]


def predicts(method: str, kind: str) -> bool:
    """Whether a method is for such labels: cheap answers may name the kinds that they predict."""
    suits = read(ROOT / "recipes" / "methods" / f"{method}.yaml").data.get("suits", ())
    named = {*suits} & {*LABELS.values()}
    return not named or LABELS[kind.split()[0]] in named


@pytest.mark.parametrize(("method", "kind"), combinations())
def test_every_method_trains_on_every_kind(method: str, kind: str, files: Path) -> None:
    if method != "nearest" and not predicts(method, kind):
        with pytest.raises(RecipeError, match="cannot predict"):
            session_of(method, kind, files)
        return
    if (method, kind) == ("kernels", "classes of rows"):
        with pytest.raises(RecipeError, match="kernels are for series"):
            session_of(method, kind, files)
        return
    session = session_of(method, kind, files)
    training = Training(session)
    losses, passes, before, scores = [], [], 0, []
    for record in training.run():
        if isinstance(record, EpochRecord):
            scores.append(record.metric)
            continue
        losses.append(record.loss)
        if record.progress.stage == len(session.stages) - 1:
            passes.append((training.snapshot.encoded - before) / BATCH)
        before = training.snapshot.encoded
    assert all(math.isfinite(loss) for loss in losses)
    assert scores[-1] is not None
    assert math.isfinite(scores[-1])
    assert max(passes, default=0) == documented_passes()[method]
    score = evaluate(session, session.data.test, keep=True)
    assert math.isfinite(score.metric)
    assert math.isfinite(score.loss)
    assert score.predictions is not None
    assert score.predictions.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rival", RIVALS)
def test_every_rival_trains_or_says_why_not(rival: str, kind: str, files: Path) -> None:
    few = ("predictor.trials=2",) if rival.endswith("-tuned") else ()
    try:
        session = session_of(rival, kind, files, *few)
    except (DataError, UsageError) as error:
        reason = error
    else:
        reason = None
    if isinstance(reason, DataError):
        pytest.skip(f"a rival's library: {reason}")
    if reason is not None:
        # A tuned recipe has the predictor of the other.
        assert re.search(rf"\b{rival.removesuffix('-tuned')}\b", str(reason))
        return
    losses = [r.loss for r in Training(session).run() if not isinstance(r, EpochRecord)]
    assert all(math.isfinite(loss) for loss in losses)
    assert math.isfinite(evaluate(session, session.data.test).metric)


def test_every_rival_is_on_the_page_of_rivals() -> None:
    page = (ROOT / "docs" / "rivals.md").read_text()
    assert [name for name in RIVALS if f"`{name}`" not in page] == []


def documented_passes() -> dict[str, int]:
    """Encoder passes a sample, by the table of methods."""
    rows = re.findall(r"^\| \[([\w-]+)\]\(\1\.md\) \|[^|]*\| (\d)", INDEX.read_text(), re.M)
    return {method: int(passes) for method, passes in rows}


def test_the_table_of_methods_is_complete() -> None:
    assert set(METHODS) <= documented_passes().keys() <= ALL.keys()


@pytest.mark.parametrize(("method", "kind", "overrides", "words"), REFUSED)
def test_what_cannot_work_is_refused_in_one_line(
    method: str, kind: str, overrides: tuple[str, ...], words: str, files: Path
) -> None:
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        session_of(method, kind, files, *overrides)
    if isinstance(caught.value, RecipeError):
        (problem,) = caught.value.problems
        assert words in problem.message
    assert any(words in line for line in str(caught.value).splitlines())


# --- controls are what they say, whichever task and scale ---


def resolved(*layers: str, scale: str | None = None) -> Any:
    found = plugins.registry()
    return validate(compose(layers, found, scale=scale), found)


@pytest.mark.parametrize("scale", [None, "cpu", "smoke"])
@pytest.mark.parametrize("task", ["darcy", "psicov", "openml/car"])
def test_controls_differ_from_nft_in_one_thing(task: str, scale: str | None) -> None:
    plain = resolved("methods/nft", f"tasks/{task}", scale=scale).model_dump(mode="json")
    told = ("description", "role", "method")  # to readers; they change nothing

    def differences(method: str) -> dict[str, Any]:
        other = resolved(f"methods/{method}", f"tasks/{task}", scale=scale).model_dump(mode="json")
        return {k: v for k, v in other.items() if v != plain[k] and k not in told}

    stage = plain["stages"][0]
    trains = ["embedder.*", "predictor.*"]
    assert differences("nft-random") == {"embedder": {**plain["embedder"], "init": "random"}}
    assert differences("frozen") == {"stages": [{**stage, "train": trains}]}
    assert differences("nft-compute-matched") == {"stages": [{**stage, "stretch": 2.0}]}
    low_rank = differences("lora")
    assert low_rank.pop("adapter")["use"] == "lora"
    assert low_rank == {"stages": [{**stage, "train": [*trains, "*lora_*"]}]}
    assert plain["embedder"]["init"] == "source"
