"""Which directory a run gets, and what is written into it before it starts.

A directory is never taken from anybody: it is new, empty, or carries our tag and holds this very
run. What a run is stands in ``xmodal.engine.identity``.
"""

from __future__ import annotations

import os
import shlex
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
from xmodal.files import check_free, claim, owned, write_atomically
from xmodal.interfaces import TaskData
from xmodal.plugins import Registry
from xmodal.runs import Run
from xmodal.text import shortlist

INPUTS = "inputs"
"""What a model needs to prepare raw samples, and which samples it was trained on."""


def check(name: str, root: Path, directory: Path | None = None) -> None:
    """Raise what ``choose`` raises whatever the run is, before its data are loaded."""
    if directory is not None:
        _held(Run(directory))
    else:
        runs.check_name(name)
        _check_place(root / name)


def choose(
    identity: RunIdentity, name: str, root: Path, directory: Path | None = None, force: bool = False
) -> tuple[Run, bool]:
    """The directory for the run, and whether the run in it is already done.

    Raises UsageError if ``directory`` holds anything else than this run, or if ``name`` is not the
    name of one folder; DataError if the run in ``directory`` is damaged. Then nothing is touched.
    """
    check(name, root, directory)
    if directory is not None:
        run = Run(directory)
        known = belongs(run, identity)
        claim(directory, runs.KIND)
        return run, known and not force and _is_done(run, identity)
    if not force:
        for run in _same(root, name, identity.hash):
            return run, _is_done(run, identity)
    path = next(path for path in _new_paths(root / name, identity.hash) if not path.exists())
    claim(path, runs.KIND)
    return Run(path), False


def _is_done(run: Run, identity: RunIdentity) -> bool:
    """Whether a run is done. Raises DataError if nothing could be predicted after it."""
    try:
        checkpoint.load(run.path / INPUTS, identity.hash)
    except DataError as error:
        words = ["run", str(run.path / "resolved.yaml"), "--directory", str(run.path), "--force"]
        again = shlex.join(["xmodal", *words])
        raise DataError(f"{error}\nway out: repeat the run: {again}") from None
    return run.state == "done"


def belongs(run: Run, identity: RunIdentity) -> bool:
    """Whether a directory holds this run already; False if it holds none.

    Raises UsageError if it holds anything else, DataError if a damaged run.
    """
    manifest = _held(run)
    if manifest is not None and manifest["hash"] != identity.hash:
        differs = shortlist(identity.differences(manifest.get("ingredients", {}))) or "its hash"
        raise UsageError(
            f"{run.path} holds another run; it differs in: {differs}. Choose another directory"
        )
    return manifest is not None


def _held(run: Run) -> Mapping[str, Any] | None:
    """The manifest of the run that a directory holds; None if the directory is free.

    Raises UsageError if it is neither, or holds a run that must stay as it is; DataError if the run
    is damaged.
    """
    if os.path.isfile(run.path / "manifest.json") and (
        owned(run.path, runs.KIND) or _has_been_a_run(run)
    ):
        return runs.continuable(run).read("manifest.json")
    _check_place(run.path)
    check_free(run.path, runs.KIND)
    return None


def _has_been_a_run(run: Run) -> bool:
    """Whether a folder without our tag holds a run: of a version without tags, or a copy."""
    try:
        runs.checked(run)
    except (UsageError, DataError):
        return False
    return True


def _check_place(directory: Path) -> None:
    """Raise UsageError if a directory would be inside of another run or a file, or is not UTF-8."""
    place = directory.absolute().resolve()
    if str(place) != str(place).encode(errors="replace").decode():
        raise UsageError(
            f"{place} is not UTF-8 text, which files of weights need; choose another place"
        )
    for parent in place.parents:
        if owned(parent, runs.KIND):
            raise UsageError(f"{directory} lies inside of the run {parent}; choose another place")
        if os.path.isfile(parent):
            raise UsageError(f"{directory} cannot be a folder: there is a file in its way")


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
    try:
        # A repeat has the same; a kill between the two steps of replacing them would leave none.
        checkpoint.load(run.path / INPUTS, identity.hash)
    except DataError:
        raw = None if data.raw is None else data.raw.state()
        seen = remember(data.train, plan.facts.task.shape, plan.recipe.workers)
        checkpoint.save(run.path / INPUTS, {"raw": raw, "seen": seen.state()}, identity.hash)
    manifest: Mapping[str, Any] = {
        "format": runs.FORMAT,
        "name": name,
        "method": plan.recipe.method,
        "scale": plan.recipe.scale,
        "banner": plan.recipe.banner,
        "hash": identity.hash,
        "xmodal": __version__,
        "facts": asdict(plan.facts),
        "epochs": plan.epochs,
        "learning_rate": plan.learning_rate,
        "components": dict(identity.origins),
        "data": {"task": data.checksum},
        "classes": list(data.classes),
        "plugins": {p.plugin: p.digest or p.version for p in registry.plugins},
        "plugin_files": registry.files(),
        "ingredients": identity.content,
        "command": sys.argv,
        "processes": processes,
        **runs.environment(),
        **_gpu(),
    }
    run.write("manifest.json", manifest)


def _gpu() -> dict[str, str]:
    """The name of the GPU that is in use, if CUDA is."""
    import torch

    in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {"gpu": torch.cuda.get_device_name()} if in_use else {}
