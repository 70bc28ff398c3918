"""Atomic checkpoints without pickle: tensors in safetensors, the rest in JSON, SHA-256 of every
file.

A checkpoint is a folder. It is written under a temporary name, synced to disk and renamed, so a
folder with a final name is complete; damage after that is found by its checksums.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from xmodal.errors import DataError
from xmodal.files import PARTIAL, atomically, digest, digests
from xmodal.text import shortlist

FORMAT = 1
SUMS = "SHA256.json"
STEP, BEST = "step-", "best-"


def save(folder: Path, state: Mapping[str, Any], run: str = "") -> None:
    """Write ``state`` (nested dicts, lists, tuples, tensors, numbers, text) as the folder
    ``folder``. ``run`` is the hash of the run that it belongs to.
    """
    folder.parent.mkdir(exist_ok=True)  # not its parents: a run that was deleted stays deleted
    tensors: dict[str, Tensor] = {}
    skeleton = _split(dict(state), "", tensors)
    with atomically(folder) as new:
        new.mkdir()
        save_file(tensors, new / "tensors.safetensors", metadata={"format": "pt"})
        document = {"format": FORMAT, "run": run, "state": skeleton}
        (new / "state.json").write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
        (new / SUMS).write_text(json.dumps(digests(new), indent=1), encoding="utf-8")


def load(folder: Path, run: str | None = None) -> dict[str, Any]:
    """Read a checkpoint. Raises DataError naming the damaged file, or if it is of another run than
    that with the hash ``run``.
    """
    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        for name, expected in sums.items():
            if digest(folder / name) != expected:
                raise DataError(f"checkpoint is damaged: {folder / name}")
        document = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "tensors.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"checkpoint is damaged: {folder}: {error}") from None
    if document.get("format") != FORMAT:
        raise DataError(
            f"checkpoint {folder} has format {document.get('format')}; this version reads {FORMAT}"
        )
    if run is not None and document.get("run") != run:
        raise DataError(f"checkpoint {folder} belongs to another run")
    state: dict[str, Any] = _join(document["state"], tensors)
    return state


def complete(folder: Path, prefix: str) -> list[Path]:
    """Complete checkpoints of a folder, newest first (names end in a zero-padded number)."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.glob(prefix + "*") if (p / SUMS).is_file()), reverse=True)


def sweep(newest: Path, prefix: str, keep: int) -> None:
    """Delete all but the ``keep`` checkpoints up to ``newest``, and leftovers of broken writes.

    Checkpoints with a higher number than ``newest`` are of a course that was left, when the run
    went back to an earlier one: they are deleted, and none is kept in the place of a new one.
    """
    found = complete(newest.parent, prefix)
    kept = [path for path in found if path.name <= newest.name][:keep]
    for old in found:
        if old not in kept:
            shutil.rmtree(old, ignore_errors=True)
    for partial in newest.parent.glob(PARTIAL + "*"):
        shutil.rmtree(partial, ignore_errors=True)


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Move tensors out of a nested value, leaving their names. Floats keep their exact value."""
    if isinstance(value, Tensor):
        # safetensors refuses memory shared between entries, so every entry is a copy of its own.
        tensors[path] = value.detach().cpu().clone().contiguous()
        return {"tensor": path}
    if isinstance(value, Mapping):
        pairs = [[key, _split(item, f"{path}/{key}", tensors)] for key, item in value.items()]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        items = [_split(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"cannot save {type(value).__name__} at '{path}'; use tensors and plain values")


def _join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {key: _join(item, tensors) for key, item in inner}
    if kind == "float":
        return float(inner)
    items = [_join(item, tensors) for item in inner]
    return tuple(items) if kind == "tuple" else items


def load_exactly(module: torch.nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load weights; raises DataError listing every key that is missing or too many."""
    report = module.load_state_dict(dict(state), strict=False)
    if report.missing_keys or report.unexpected_keys:
        raise DataError(
            f"{where} does not fit this model: "
            f"missing: {shortlist(report.missing_keys) or 'none'}; "
            f"unexpected: {shortlist(report.unexpected_keys) or 'none'}"
        )
