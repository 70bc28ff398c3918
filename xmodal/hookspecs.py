"""Every hook that a plugin may implement: the first page for plugin authors.

A hook returns a table of contents, ``{recipe name: "package.module:Class"}``. A class is imported
only when a recipe names it, so a plugin module should import ``hookimpl`` and nothing heavy::

    from xmodal import hookimpl

    @hookimpl
    def xmodal_selectors():
        return {"top-norm": "xmodal_topnorm.selector:TopNorm"}

Publish the module under the entry-point group ``xmodal``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import pluggy

PROJECT = "xmodal"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def xmodal_embedders() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Embedders: raw target samples to tokens."""


@hookspec
def xmodal_mixers() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Mixers: target and source samples to the views that a step trains on."""


@hookspec
def xmodal_selectors() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Selectors: the k most important tokens of a sample."""


@hookspec
def xmodal_schedulers() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Schedulers: how many tokens to replace, at each point of the training."""


@hookspec
def xmodal_predictors() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Predictors: features to predictions."""


@hookspec
def xmodal_backbones() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Backbones: pretrained transformers."""


@hookspec
def xmodal_adapters() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Adapters: changes to a pretrained backbone, such as low-rank updates."""


@hookspec
def xmodal_distances() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Distances between the features of two data sets."""


@hookspec
def xmodal_stages() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Stages: phases of a run, such as fine-tuning."""


@hookspec
def xmodal_tasks() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Tasks: target data with a loss and a metric."""


@hookspec
def xmodal_sources() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Sources: labelled data of the modality that a backbone was pretrained on."""


@hookspec
def xmodal_losses() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Losses of single samples."""


@hookspec
def xmodal_metrics() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Metrics over a whole split."""


@hookspec
def xmodal_launchers() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Launchers: where the runs of a comparison are executed."""


@hookspec
def xmodal_trackers() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Trackers: programs that also get the numbers of a run."""


@hookspec
def xmodal_exporters() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Exporters: trained models in forms that other programs read."""


@hookspec
def xmodal_recipes() -> Traversable:  # type: ignore[empty-body]
    """A folder of recipes: ``importlib.resources.files("package") / "recipes"``."""


@hookspec
def xmodal_data_recipe(
    path: Path, settings: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any]] | None:
    """The recipe that reads a file or folder of the user's own, and the settings of its task.

    For ``xmodal run table.csv``: ``("arrays/row", {"path": "/home/me/table.csv"})``; None for what
    the plugin does not read. ``path`` may not exist. ``settings``: those of the task that are given
    besides. Raise ``xmodal.errors.DataError`` for data that it would read if they were right.
    """


@hookspec
def xmodal_commands(app: Any) -> None:
    """Add commands to the Typer app ``xmodal``. Import heavy modules inside the commands."""
