"""xmodal from Python: the same runs the command line makes."""

from __future__ import annotations

import importlib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal import plugins, runs
from xmodal.data.store import Store
from xmodal.errors import UsageError
from xmodal.files import hashed_again
from xmodal.recipe.lookup import find_recipes, looks_like_path
from xmodal.recipe.own_data import OwnData, own_data, spelled_out

_OF_A_RUN = (
    "xmodal.engine.run",
    "xmodal.report.run",
    "torch._inductor.config",  # of deterministic kernels
    "sklearn.datasets",
    "sklearn.decomposition",
    "sklearn.ensemble",
    "matplotlib.backends.backend_svg",
    "mpl_toolkits.axes_grid1",
    "h5py",
    "timm",
    "transformers.modeling_utils",
    "peft",
)
"""What takes long to import: the engine, the report, and what their parts import when needed."""

if TYPE_CHECKING:
    from xmodal.engine.observe import Observer
    from xmodal.engine.run import Outcome, RunOrder
    from xmodal.inference.model import TrainedModel
    from xmodal.interfaces import Exported


def run(
    *recipes: str,
    overrides: Sequence[str] = (),
    scale: str | None = None,
    directory: str | Path | None = None,
    root: str | Path = runs.DEFAULT_ROOT,
    name: str | None = None,
    force: bool = False,
    plugin_files: Sequence[str] = (),
    trackers: Sequence[str] = (),
    report: bool = True,
    observer: Observer | None = None,
    verify_data: bool = False,
    profile: int | None = None,
    cheap: bool = False,
) -> Outcome:
    """Run recipes (names or paths, later ones win) and return the outcome.

    A data file stands for the recipe that reads it; alone, it is learned with method ``pare``.

    An identical run that is already done is returned, not repeated, unless ``force``; one that was
    interrupted is resumed. ``trackers`` names trackers to tell beside those of the recipes.
    ``verify_data`` reads all data to tell whether they have changed, where otherwise the times and
    sizes of large files are believed. ``profile`` traces so many steps into the run directory and
    changes nothing else. ``cheap``: where a data file is named, its cheap answers are fitted then,
    as runs below ``root``, and the verdict holds the run against the best of them; not where
    several processes share the run. Raises the kinds of ``xmodal.errors.XModalError``.
    """
    from xmodal.engine.plan import compose_plan

    registry = plugins.registry(tuple(plugin_files))
    store = Store()
    called = run_name(recipes, scale) if name is None else name
    spelled, overrides = spelled_out(recipes, registry, overrides)
    if spelled != recipes:
        plugins.log.info("the recipes are: %s", shlex.join(spelled))
    made = compose_plan(spelled, registry, store, overrides, scale, trackers)
    # Imported only now: what is wrong with a recipe is said before torch is loaded.
    from xmodal.engine.run import draw, execute

    order = run_order(spelled, registry, called, directory, root, force, report, profile)
    with hashed_again(verify_data):
        alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        own = _own_file(recipes, registry, overrides) if cheap and alone else None
        if own is None:
            return execute(made, order, registry, store, observer)
        # Its page is drawn once, after the cheap answers.
        done = execute(made, replace(order, report=None), registry, store, observer)
        from xmodal.search.beside import hold

        say = plugins.log.info
        held = hold(done.run, made, own, registry, store, order.root, say)
        if order.report is not None and (held or done.fresh):
            draw(order.report, done.run, say)
        test = done.run.read("result.json")["test"]
        return replace(done, result={**done.result, "test": test})


def _own_file(
    recipes: Sequence[str], registry: plugins.Registry, overrides: Sequence[str]
) -> OwnData | None:
    """The data file among recipes."""
    found = (own_data(reference, registry, overrides) for reference in recipes)
    return next((one for one in found if one is not None), None)


def run_order(
    recipes: Sequence[str],
    registry: plugins.Registry,
    name: str,
    directory: str | Path | None = None,
    root: str | Path = runs.DEFAULT_ROOT,
    force: bool = False,
    report: bool = True,
    profile: int | None = None,
) -> RunOrder:
    """Where and how the engine is to carry out recipes; the arguments are those of ``run``."""
    from xmodal.engine.run import RunOrder

    if profile is not None and profile < 1:
        raise UsageError(f"profile is {profile}; it is how many steps to trace, at least 1")
    return RunOrder(
        name=name,
        root=Path(root).expanduser(),
        directory=None if directory is None else Path(directory).expanduser(),
        force=force,
        source_text=source_text(recipes, registry),
        report=_write_report if report else None,
        looks=report,
        profile=profile,
    )


def preload() -> None:
    """Import what runs need, so that a process that is forked afterwards begins one at once.

    Runs nothing and touches no GPU, so that this process may still be forked.
    """
    for name in _OF_A_RUN:
        importlib.import_module(name)


def _write_report(done: runs.Run) -> None:
    from xmodal.report import write_report  # drawing is slow to import

    write_report(done)


def run_name(recipes: Sequence[str], scale: str | None = None) -> str:
    """The directory name of a run: the recipes' names, and the scale; cut if it is long."""
    parts = [
        Path(r).stem
        if looks_like_path(r) or os.path.isfile(r)
        else Path(r).name
        if os.path.isdir(r)
        else r.replace("/", "-")
        for r in recipes
    ]
    return runs.valid_name("_".join(parts + ([scale] if scale else []))) or "run"


def source_text(recipes: Sequence[str], registry: plugins.Registry) -> str:
    """The text of the recipes as their author wrote them, for the run directory."""
    found = [one for recipe in recipes for one in find_recipes(recipe, registry)]
    return "\n".join(f"# {f.name}\n{f.path.read_text(encoding='utf-8')}" for f in found)


def load(
    reference: str | Path, device: str | None = None, plugin_files: Sequence[str] = ()
) -> TrainedModel:
    """The trained model of a run: a directory, or a name under ``runs`` (the newest).

    It predicts from raw samples and needs neither the training data nor the pretrained weights.
    """
    from xmodal.inference.model import load_trained

    return load_trained(reference, device, tuple(plugin_files))


def export(
    reference: str | Path,
    to: str,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    force: bool = False,
    plugin_files: Sequence[str] = (),
) -> Exported:
    """Write the trained model of a run into the new folder ``out`` with the exporter ``to``.

    ``out`` is by default beside the run: its path, with ``-`` and the name of the exporter.
    Compares what was written with the model; a failed export leaves nothing behind.
    """
    from xmodal.inference.export import default_folder, export_trained, exporter_for
    from xmodal.inference.model import load_trained

    registry = plugins.registry(tuple(plugin_files))
    registry.entry("exporter", to)
    folder = default_folder(runs.locate(str(reference)).path, to) if out is None else Path(out)
    exporter_for(to, folder, registry, settings, force)
    model = load_trained(reference, "cpu", tuple(plugin_files))
    return export_trained(model, to, folder, registry, settings, force)
