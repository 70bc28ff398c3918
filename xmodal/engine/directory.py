"""Which directory a run lives in, and what is written there before it starts."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from xmodal import runs
from xmodal._version import __version__
from xmodal.engine import checkpoint
from xmodal.engine.plan import Plan
from xmodal.engine.tracking import KEPT
from xmodal.errors import UsageError
from xmodal.interfaces import TaskData
from xmodal.plugins import Registry
from xmodal.recipe.recipe import COMPONENT_FIELDS
from xmodal.settings import Use

_OF_A_PASS = (
    "manifest.json",
    "checkpoints",
    KEPT,
    "metrics.jsonl",
    "result.json",
    "report.html",
    "predictions.safetensors",
    "samples",
    "final",
)


@dataclass(frozen=True)
class RunOrder:
    """What to run and where: the run's name, its root, and whether to repeat a finished one."""

    name: str
    root: Path = runs.DEFAULT_ROOT
    directory: Path | None = None
    force: bool = False
    source_text: str = ""
    report: bool = True


def choose(order: RunOrder, digest: str) -> tuple[runs.Run, bool]:
    """The directory to run in, and whether the run in it is already done."""
    if order.directory is not None:
        order.directory.mkdir(parents=True, exist_ok=True)
        run = runs.Run(order.directory)
        known = run.read("manifest.json").get("hash")
        if known is not None and known != digest:
            raise UsageError(
                f"{run.path} holds another run (its recipe, data or component versions differ); "
                "choose another directory"
            )
        return run, run.state == "done" and not order.force
    if not order.force:
        for run in runs.same(order.root, order.name, digest):
            return run, run.state == "done"
    path = runs.new_path(order.root, order.name, digest)
    path.mkdir(parents=True, exist_ok=True)
    return runs.Run(path), False


def clear(run: runs.Run) -> None:
    """Remove what an earlier pass over a run that is repeated has left, its result included.

    Nothing of it may be taken for the new one's: neither weights nor what trackers were told.
    """
    run.set_state("running")  # from here on the directory holds nothing that is done
    for name in _OF_A_PASS:
        path = run.path / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def versions(plan: Plan, registry: Registry) -> dict[str, str]:
    """Distribution and version of every component of a plan."""
    uses: list[Use[Any]] = [getattr(plan.recipe, key) for key in COMPONENT_FIELDS]
    entries = [
        registry.entry(use.component.kind, use.name)
        for use in [*uses, *plan.recipe.stages]
        if use is not None
    ]
    return {f"{entry.kind}:{entry.name}": entry.origin for entry in entries}


def describe(
    run: runs.Run,
    plan: Plan,
    order: RunOrder,
    registry: Registry,
    resolved: Mapping[str, Any],
    digest: str,
    data: TaskData,
) -> None:
    """Write what the run is before it starts."""
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    (run.path / "recipe.yaml").write_text(order.source_text, encoding="utf-8")
    yaml = YAML()
    with (run.path / "resolved.yaml").open("w", encoding="utf-8") as stream:
        yaml.dump(dict(resolved), stream)
    manifest = {
        "name": order.name,
        "hash": digest,
        "xmodal": __version__,
        "facts": asdict(plan.facts),
        "components": versions(plan, registry),
        "data": {"task": data.checksum},
        "classes": list(data.classes),
        "plugins": {p.plugin: p.digest or p.version for p in registry.plugins},
        "command": sys.argv,
        **runs.environment(),
    }
    raw = None if data.raw is None else data.raw.state()
    checkpoint.save(run.path / "inputs", {"raw": raw})
    run.write("manifest.json", manifest)
