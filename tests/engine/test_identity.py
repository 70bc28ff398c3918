"""What belongs to the identity of a run: every ingredient changed alone, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import grimp
import numpy as np
import pytest
from PIL import Image

from xmodal import api, plugins, workbench
from xmodal.data.store import Store
from xmodal.engine.identity import ENGINE, OUTSIDE, RunIdentity, _plain, identity
from xmodal.engine.plan import compose_plan
from xmodal.errors import DataError, UsageError
from xmodal.files import contents
from xmodal.interfaces import Component, Settings
from xmodal.recipe.recipe import Recipe
from xmodal.settings import Use

PLUGIN = """
from xmodal import hookimpl
from xmodal.interfaces import Loss, Settings
from torch.nn.functional import cross_entropy

class Mine(Loss):
    class Config(Settings):
        power: int = 1

    def forward(self, prediction, y):
        from helper_of_a_test import factor
        return factor() * cross_entropy(prediction, y, reduction="none")

@hookimpl
def xmodal_losses():
    return {"mine": f"{__name__}:Mine", "unused": f"{__name__}:Mine"}
"""
OTHER = PLUGIN.replace('"mine"', '"other"').replace('"unused"', '"also-unused"')
HELPER = "from constants_of_a_test import FACTOR\n\ndef factor():\n    return FACTOR\n"
RECIPE = """
extends: [methods/orca, arrays/grid, scales/smoke]
task: {path: d.npz, loss: {use: mine, power: 1}}
source: {use: image-folder, path: im, samples: 8}
source_loss: {use: mine, power: 2}
"""
Change = Callable[[], object]


def made(*overrides: str, recipe: str = "r.yaml") -> RunIdentity:
    registry = plugins.registry(("p.py", "q.py"))
    store = Store()
    plan = compose_plan([recipe], registry, store, overrides)
    return identity(plan.recipe, registry, store)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    for name, text in {
        "p.py": PLUGIN,
        "q.py": OTHER,
        "helper_of_a_test.py": HELPER,
        "constants_of_a_test.py": "FACTOR = 1.0\n",
        "beside.py": "unrelated = 1\n",
        "r.yaml": RECIPE,
    }.items():
        (folder / name).write_text(text)
    draws = np.random.default_rng(0)
    np.savez(folder / "d.npz", x=draws.normal(size=(40, 3, 28, 28)), y=np.arange(40) % 2)
    np.savez(folder / "e.npz", x=draws.normal(size=(40, 3, 28, 28)), y=np.arange(40) % 2)
    for name in ("a/0", "a/1", "b/0", "b/1"):
        (folder / "im" / name).parent.mkdir(parents=True, exist_ok=True)
        noise = draws.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "im" / f"{name}.png")
    return folder


@pytest.fixture
def here(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, in which a test may change anything, as the working directory."""
    folder = tmp_path / "copy"
    shutil.copytree(original, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def base(original: Path) -> RunIdentity:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(original)
        return made()


FIELDS = {
    "task": "task.split=[0.5, 0.25, 0.25]",
    "source": "source.samples=7",
    "backbone": "backbone.dropout=0.5",
    "adapter": "adapter=lora",
    "embedder": "embedder.positions=false",
    "mixer": "mixer=mixup",
    "selector": "selector=random",
    "scheduler": "scheduler={use: constant, value: 5}",
    "predictor": "predictor=pooled",
    "source_predictor": "source_predictor=pooled",
    "source_head": "source_head=target",
    "source_loss": "source_loss.power=3",
    "stages": "stages.1.train=[embedder]",
    "fraction": "fraction=0.5",
    "labelled": "labelled=0.5",
    "seed": "seed=1",
    "protocol": "protocol=published",
    "precision": "precision=bf16",
    "deterministic": "deterministic=false",
}
"""A change of every field of a recipe that counts."""


def test_every_field_of_a_recipe_counts_or_is_outside() -> None:
    assert FIELDS.keys() | {"augment"} | OUTSIDE == Recipe.model_fields.keys()
    assert not (FIELDS.keys() | {"augment"}) & OUTSIDE


def test_moves_of_the_samples_count(tmp_path: Path) -> None:
    """Of a task that has some: others refuse them."""
    registry, store = plugins.registry(), Store(tmp_path)
    recipes = ("methods/nft", "tasks/darcy", "scales/smoke")
    plain, moved = (
        identity(compose_plan(recipes, registry, store, overrides).recipe, registry, store)
        for overrides in ((), ("augment=true",))
    )
    assert moved.differences(plain.content) == ["recipe.augment"]


@pytest.mark.parametrize("field", FIELDS)
def test_a_setting_of_every_field_counts(field: str, here: Path, base: RunIdentity) -> None:
    changed = made(FIELDS[field])
    assert changed.hash != base.hash
    found = {key.split(".")[1] for key in changed.differences(base.content) if "code" not in key}
    assert found == {field}


@pytest.mark.parametrize(
    ("override", "differs"),
    [
        ("task.loss.power=2", "recipe.task.loss.power"),
        ("task.metric=auroc-error", "recipe.task.metric.use"),
        ("stages.0.distance=mmd", "recipe.stages.0.distance.use"),
        ("stages.0.distance={use: sinkhorn, reg: 0.5}", "recipe.stages.0.distance.reg"),
        ("stages.1.optimizer.lr=0.5", "recipe.stages.1.optimizer.lr"),
    ],
)
def test_parts_of_parts_count(override: str, differs: str, here: Path, base: RunIdentity) -> None:
    changed = made(override)
    assert changed.hash != base.hash
    assert differs in changed.differences(base.content)


def edit(name: str, old: str, new: str) -> None:
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))


COUNTS: dict[str, tuple[Change, str]] = {
    "the file of a part within a part is edited": (
        lambda: edit("p.py", "power: int = 1", "power: int = 1  # of ten"),
        "code.loss:mine",
    ),
    "a file that it imports is edited": (
        lambda: edit("helper_of_a_test.py", "return FACTOR", "return FACTOR * 50"),
        "code.loss:mine",
    ),
    "a file that this one imports is edited": (
        lambda: edit("constants_of_a_test.py", "1.0", "50.0"),
        "code.loss:mine",
    ),
    "other data": (lambda: Path("e.npz").replace("d.npz"), "recipe.task.path.content"),
    "another image of the source": (
        lambda: Path("im/a/1.png").write_bytes(Path("im/b/1.png").read_bytes()),
        "recipe.source.path.content",
    ),
    "one more image of the source": (
        lambda: shutil.copy("im/a/1.png", "im/a/2.png"),
        "recipe.source.path.content",
    ),
    "an image of the source in another class": (
        lambda: Path("im/a/1.png").replace("im/b/2.png"),
        "recipe.source.path.content",
    ),
    "images of the source in another order": (
        lambda: Path("im/a/0.png").replace("im/a/2.png"),
        "recipe.source.path.content",
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_what_counts(name: str, here: Path, base: RunIdentity) -> None:
    change, differs = COUNTS[name]
    change()
    changed = made()
    assert changed.hash != base.hash
    assert changed.differences(base.content) == [differs]


def moved(name: str, target: str) -> str:
    Path(target).parent.mkdir(exist_ok=True)
    shutil.move(name, target)
    return target


DOES_NOT_COUNT: dict[str, Callable[[], list[str]]] = {
    "nothing": list,
    "another description": lambda: ["description=other words"],
    "another role": lambda: ["role=control"],
    "another family": lambda: ["family=image"],
    "another device": lambda: ["device=cuda:3"],
    "more workers": lambda: ["workers=2"],
    "another evaluation batch": lambda: ["evaluation_batch=3"],
    "other checkpoints": lambda: ["saving={every_steps: 1, every_minutes: 1, keep: 5}"],
    "a tracker": lambda: ["trackers=[tensorboard]"],
    "data moved and renamed": lambda: [f"task.path={moved('d.npz', 'there/f.npz')}"],
    "data under an absolute path": lambda: [f"task.path={Path('d.npz').absolute()}"],
    "images moved": lambda: [f"source.path={moved('im', 'there/pictures')}"],
    "no image beside the images": lambda: [str(Path("im/a/notes.txt").write_text("x"))][:0],
    "a plugin file moved": lambda: [moved("beside.py", "there/beside.py")][:0],
    "another file beside the plugin": lambda: [str(Path("beside.py").write_text("a = 2"))][:0],
    "another plugin file, of which nothing is used": (
        lambda: [str(Path("q.py").write_text(OTHER + "\n# edited"))][:0]
    ),
    "comments, and keys in another order": (
        lambda: [
            str(
                Path("r.yaml").write_text(
                    "# words\nsource_loss: {power: 2, use: mine}\n"
                    "source: {samples: 8, path: im, use: image-folder}  # more words\n"
                    "task: {loss: {power: 1, use: mine}, path: d.npz}\n"
                    "extends: [methods/orca, arrays/grid, scales/smoke]\n"
                )
            )
        ][:0]
    ),
    "a default that is written out": lambda: ["labelled=1.0"],
}


@pytest.mark.parametrize("name", DOES_NOT_COUNT)
def test_what_does_not_count(name: str, here: Path, base: RunIdentity) -> None:
    changed = made(*DOES_NOT_COUNT[name]())
    assert changed.differences(base.content) == []
    assert changed.hash == base.hash


class Reader(Component):
    """A part of somebody who has not heard of ``contents``."""

    kind = "source"

    class Config(Settings):
        path: str
        weights: Path | None = None
        name: str = "d.npz"


def test_paths_of_parts_that_do_not_speak_of_them_count(here: Path, base: RunIdentity) -> None:
    def named(path: str, weights: str) -> object:
        config = Reader.Config(path=path, weights=Path(weights))
        return _plain({"x": Use("reader", Reader, config)}, Store())

    first = named("d.npz", "e.npz")
    assert first == {
        "x": {
            "use": "reader",
            "path": {"content": contents(Path("d.npz"))},
            "weights": {"content": contents(Path("e.npz"))},
            "name": "d.npz",
        }
    }
    assert named("e.npz", "d.npz") != first
    assert named(moved("d.npz", "there/f"), moved("e.npz", "there/g")) == first
    assert named("an/id", "a") != named("another/id", "a")  # no files: they count as they are
    assert named("an/id", "a") != named("an/id", "b")


def test_the_checksum_of_the_loaded_data_counts(here: Path, base: RunIdentity) -> None:
    """A task may read what no setting names."""
    registry, store = plugins.registry(("p.py", "q.py")), Store()
    recipe = compose_plan(["r.yaml"], registry, store).recipe
    a, b = (identity(recipe, registry, store, data) for data in ("a", "b"))
    assert a.differences(b.content) == ["data"]
    assert len({a.hash, b.hash, base.hash}) == 3


def test_other_seeds_without_reading_anything(here: Path, base: RunIdentity) -> None:
    assert base.at(3).hash == made("seed=3").hash != base.hash
    assert base.at(0).hash == base.hash


def test_parts_of_parts_are_written_down(base: RunIdentity) -> None:
    assert base.origins["loss:mine"].startswith("p.py ")
    assert {"metric:error-rate", "distance:sinkhorn", "stage:align"} <= base.origins.keys()


BESIDE = (
    "advice", "assess", "errors", "files", "hookspecs", "plugins", "recipe", "records", "runs",
    "settings", "text", "_version",
)  # fmt: skip
"""Modules that a run needs, but that compute nothing of its result."""


def test_all_modules_that_compute_count() -> None:
    graph = grimp.build_graph("xmodal")
    found = graph.find_upstream_modules("xmodal.engine.run")
    rooms = {name.split(".")[1] for name in found} | {"engine"}
    counted = {name.removesuffix(".py") for name in ENGINE}
    assert rooms <= counted | set(BESIDE)
    # What plugins are offered to compute with counts as well, whether the engine uses it or not.
    assert {"alignment", "batch", "interfaces", "ops", "optimize", "randomness"} <= counted


def train(*overrides: str, **options: str) -> api.Outcome:
    return api.run(
        "methods/nft", "arrays/grid", scale="smoke", report=False, plugin_files=("p.py",),
        overrides=["task.path=d.npz", "task.loss=mine", *overrides], **options,
    )  # fmt: skip


@pytest.mark.slow
def test_an_edited_loss_is_trained_with_and_a_moved_file_is_not(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(here))
    first = train()
    assert first.fresh
    assert not train().fresh
    edit("constants_of_a_test.py", "1.0", "50.00")
    second = train()
    assert second.fresh
    ratio = second.run.metrics()[0]["train"]["loss"] / first.run.metrics()[0]["train"]["loss"]
    assert 20 < ratio < 100
    with pytest.raises(UsageError, match=r"holds another run; it differs in: code\.loss:mine\."):
        train(directory=str(first.run.path))
    with pytest.raises(UsageError, match=r"differs in: code\.loss:mine, recipe\.seed\."):
        train("seed=4", directory=str(first.run.path))
    workbench.open_run(first.run, ("p.py",))  # looking is allowed, whatever the code is now
    Path("d.npz").replace("kept.npz")
    shutil.copy("e.npz", "d.npz")
    with pytest.raises(DataError, match=r"have changed .* \(data, recipe\.task\.path\.content\)"):
        workbench.open_run(first.run, ("p.py",))
    Path("kept.npz").replace("d.npz")
    Path("d.npz").replace("other.npz")
    assert not train("task.path=other.npz", "device=cpu", "evaluation_batch=7").fresh
