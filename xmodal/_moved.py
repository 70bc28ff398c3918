"""Modules under their old names: importing one warns and gives the contents of the new module.

``xmodal/__init__`` installs the finder, which the import system asks only for names that it has not
found otherwise. How long old names stay is in docs/compatibility.md.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES = {
    "xmodal.compare": "xmodal.comparison",
    "xmodal.compare.assemble": "xmodal.comparison.table",
    "xmodal.compare.cells": "xmodal.comparison.grid",
    "xmodal.compare.fairness": "xmodal.comparison.fairness",
    "xmodal.compare.queue": "xmodal.comparison.queue",
    "xmodal.compare.ranks": "xmodal.comparison.ranks",
    "xmodal.compare.request": "xmodal.comparison.grid",
    "xmodal.compare.results": "xmodal.comparison.verdicts",
    "xmodal.compare.running": "xmodal.comparison.run",
    "xmodal.compare.scores": "xmodal.comparison.error_table",
    "xmodal.compare.statistics": "xmodal.comparison.statistics",
    "xmodal.compare.suites": "xmodal.comparison.grid",
    "xmodal.compare.table": "xmodal.comparison.table",
    "xmodal.compare.tables": "xmodal.comparison.spreadsheets",
    "xmodal.compare.verdicts": "xmodal.comparison.verdicts",
    "xmodal.data.archives": "xmodal.data.download",
    "xmodal.data.files": "xmodal.files",
    "xmodal.data.given": "xmodal.data.in_memory",
    "xmodal.data.kinds": "xmodal.data.labels",
    "xmodal.data.names": "xmodal.data.preparation",
    "xmodal.data.raw": "xmodal.data.preparation",
    "xmodal.data.reading": "xmodal.data.readers",
    "xmodal.data.writing": "xmodal.data.readers",
    "xmodal.engine.execute": "xmodal.engine.run",
    "xmodal.engine.processes": "xmodal.engine.distributed",
    "xmodal.engine.randomness": "xmodal.randomness",
    "xmodal.exporting": "xmodal.inference.export",
    "xmodal.recipe.explain": "xmodal.recipe.messages",
    "xmodal.recipe.layers": "xmodal.recipe.compose",
    "xmodal.recipe.library": "xmodal.recipe.lookup",
    "xmodal.recipe.model": "xmodal.recipe.recipe",
    "xmodal.recipe.use": "xmodal.settings",
    "xmodal.registry": "xmodal.plugins",
    "xmodal.report.compare_report": "xmodal.report.compare",
    "xmodal.report.run_report": "xmodal.report.run",
    "xmodal.testing.exporting": "xmodal.testing.surroundings",
    "xmodal.testing.launching": "xmodal.testing.surroundings",
    "xmodal.testing.measuring": "xmodal.testing.scoring",
    "xmodal.testing.support": "xmodal.testing.tiny",
    "xmodal.testing.tracking": "xmodal.testing.surroundings",
    "xmodal.trained": "xmodal.inference.model",
}
NAMES = {
    "xmodal.compare.scores": {"Scores": "ErrorTable"},
    "xmodal.compare.table": {"Table": "ComparisonTable"},
    "xmodal.compare.assemble": {"Table": "ComparisonTable"},
    "xmodal.compare.suites": {"find": "find_suite"},
    "xmodal.data.given": {"Labels": "CodedLabels"},
    "xmodal.data.reading": {"Samples": "SampleReader"},
    "xmodal.recipe.library": {"Found": "RecipeFile", "find": "find_recipe"},
    "xmodal.trained": {"Trained": "TrainedModel", "load": "load_trained"},
}
"""Objects that have another name in the new module."""


class Moved(ModuleType):
    """A module under its old name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for these
            raise AttributeError(name)
        new = importlib.import_module(MODULES[self.__name__])
        return getattr(new, NAMES.get(self.__name__, {}).get(name, name))

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """The package ``xmodal.compare``, once imported, hides the function; so it is callable."""
        from xmodal.comparison.run import compare

        return compare(*arguments, **options)


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        known = fullname in MODULES
        return (
            ModuleSpec(fullname, self, is_package=fullname == "xmodal.compare") if known else None
        )

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Moved(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        renamed = "".join(f", {old} is {new}" for old, new in NAMES.get(name, {}).items())
        text = f"the module {name} is now {MODULES[name]}{renamed}"
        warnings.warn(text, DeprecationWarning, stacklevel=2)


def install() -> None:
    """Make old names importable."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
