"""Which directory a run gets, and what is written into it before it starts.

A directory is never taken from anybody: it is new, empty, or carries our tag and holds this very
run. What a run is stands in ``xmodal.engine.identity``.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from xmodal import runs
from xmodal._version import __version__
from xmodal.data.seen import remember
from xmodal.engine import checkpoint
from xmodal.engine.identity import RunIdentity
from xmodal.engine.plan import Plan
from xmodal.errors import DataError, UsageError
from xmodal.files import claim, owned, write_atomically
from xmodal.interfaces import TaskData
from xmodal.plugins import Registry
from xmodal.runs import Run

LONGEST_NAME = 150
_NOT_IN_A_NAME = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
# Windows opens a device under these names, whatever their extension.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def choose(
    identity: RunIdentity, name: str, root: Path, directory: Path | None = None, force: bool = False
) -> tuple[Run, bool]:
    """The directory for the run, and whether the run in it is already done.

    Raises UsageError if ``directory`` holds anything else than this run, or if ``name`` is not the
    name of one folder; DataError if the run in ``directory`` is damaged. Then nothing is touched.
    """
    if directory is not None:
        run = Run(directory)
        known = belongs(run, identity)
        _claim(directory)
        return run, known and run.state == "done" and not force
    check_name(name)
    if not force:
        for run in _same(root, name, identity.hash):
            return run, run.state == "done"
    for path in _new_paths(root / name, identity.hash):
        if not path.exists():
            _claim(path)
            return Run(path), False
    raise AssertionError  # the paths never end


def belongs(run: Run, identity: RunIdentity) -> bool:
    """Whether a directory holds this run already; False if it holds none.

    Raises UsageError if it holds another run, DataError if a damaged one.
    """
    manifest = run.path / "manifest.json"
    tagged = owned(run.path, runs.KIND)
    if not manifest.is_file() or (not tagged and not _is_old_run(run)):
        return False  # new, empty, or somebody else's: claiming it will tell
    found = runs.checked(run).read("manifest.json")
    if not tagged or run.older:
        raise UsageError(
            f"{run.path} is a run of xmodal {found.get('xmodal')}. It can be read and used, but "
            "neither continued nor repeated in place: results of its recipes have changed since. "
            f"Make a new run: xmodal run {run.path / 'resolved.yaml'}"
        )
    if found["hash"] != identity.hash:
        differs = ", ".join(identity.differences(found.get("ingredients", {}))) or "its hash"
        raise UsageError(
            f"{run.path} holds another run; it differs in: {differs}. Choose another directory"
        )
    return True


def _is_old_run(run: Run) -> bool:
    """Whether an untagged folder is a run of a version without tags."""
    try:
        runs.checked(run)
    except (UsageError, DataError):
        return False
    return True


def _claim(directory: Path) -> None:
    """Take a directory. Raises UsageError if it is not free, or inside of another run."""
    for parent in directory.absolute().resolve().parents:
        if owned(parent, runs.KIND):
            raise UsageError(f"{directory} lies inside of the run {parent}; choose another place")
    claim(directory, runs.KIND)


def check_name(name: str) -> None:
    """Raise UsageError, with the nearest valid name, unless ``name`` is that of one folder."""
    valid = valid_name(name)
    if not valid or name != valid:
        hint = f"; did you mean '{valid}'?" if valid else ""
        raise UsageError(f"--name: {name!r} is not the name of one folder{hint}")


def valid_name(text: str) -> str:
    """The nearest name for a folder, the same on every system; empty if there is none."""
    text = text.encode("utf-8", "replace").decode()
    text = _NOT_IN_A_NAME.sub("-", text).strip(" .-") if _strange(text) else text
    if _DEVICE.fullmatch(text):
        text = f"run-{text}"
    return text.encode()[:LONGEST_NAME].decode("utf-8", "ignore").rstrip(" .")


def _strange(text: str) -> bool:
    """Whether some system would not make a folder of this name, or make it elsewhere."""
    return (
        bool(_NOT_IN_A_NAME.search(text)) or text != text.strip(" ").rstrip(".") or text[:1] == "."
    )


def _new_paths(folder: Path, digest: str) -> Iterator[Path]:
    """Names for a new run: ``<UTC time>-<first 6 of the hash>``, with numbers in between."""
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
    yield folder / f"{stamp}-{digest[:6]}"
    number = 1
    while number := number + 1:  # several new runs within the same second
        yield folder / f"{stamp}-{number}-{digest[:6]}"


def _same(root: Path, name: str, digest: str) -> Iterator[Run]:
    """Runs with the same content under this name, newest first."""
    for path in sorted((root / name).glob(f"*-{digest[:6]}"), reverse=True):
        if owned(path, runs.KIND) and Run(path).read("manifest.json").get("hash") == digest:
            yield Run(path)


def describe(
    run: Run,
    plan: Plan,
    name: str,
    source_text: str,
    registry: Registry,
    identity: RunIdentity,
    data: TaskData,
    processes: int,
) -> None:
    """Write what the run is; the manifest last, for without one a directory holds no run."""
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    write_atomically(run.path / "recipe.yaml", source_text)
    resolved = StringIO()
    YAML().dump(plan.recipe.model_dump(mode="json"), resolved)
    write_atomically(run.path / "resolved.yaml", resolved.getvalue())
    raw = None if data.raw is None else data.raw.state()
    seen = remember(data.train, plan.facts.task.shape, plan.recipe.workers)
    checkpoint.save(run.path / "inputs", {"raw": raw, "seen": seen.state()}, identity.hash)
    manifest: Mapping[str, Any] = {
        "format": runs.FORMAT,
        "name": name,
        "hash": identity.hash,
        "xmodal": __version__,
        "facts": asdict(plan.facts),
        "epochs": plan.epochs,
        "learning_rate": plan.learning_rate,
        "components": dict(identity.origins),
        "data": {"task": data.checksum},
        "classes": list(data.classes),
        "plugins": {p.plugin: p.digest or p.version for p in registry.plugins},
        "ingredients": identity.content,
        "command": sys.argv,
        "processes": processes,
        **runs.environment(),
    }
    run.write("manifest.json", manifest)
