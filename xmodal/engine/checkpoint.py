"""Atomic checkpoints without pickle: tensors in safetensors, the rest in JSON, SHA-256 of every
file.

A checkpoint is a folder. It is written under a temporary name, synced to disk and renamed, so a
folder with a final name is complete; damage after that is found by its checksums.
"""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from xmodal.errors import DataError, MachineError
from xmodal.files import PARTIAL, atomically, digest, digests
from xmodal.text import shortlist, shown

FORMAT = 1
SUMS, STATE, TENSORS = "SHA256.json", "state.json", "tensors.safetensors"
FILES = (STATE, TENSORS)
STEP, BEST = "step-", "best-"
_DAMAGE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
"""Errors that stay. After others (too many open files) a checkpoint is as good as before."""
_UNREAD = re.compile(r"\(os error \d+\)|unable to (open|mmap)")
"""What safetensors and torch say of such errors."""


@dataclass(frozen=True)
class Taken:
    """A state as it was at one moment: what changes afterwards does not change it.

    ``copied``: on a GPU, when the copies in ``tensors`` will be complete.
    """

    skeleton: Any
    tensors: Mapping[str, Tensor]
    copied: torch.cuda.Event | None = None


def take(state: Mapping[str, Any]) -> Taken:
    """Copy ``state`` (nested dicts, lists, tuples, tensors, numbers, text) to the CPU.

    Does not wait for a GPU: the copies are made between what it was told before and after.
    """
    tensors: dict[str, Tensor] = {}
    on_gpu: list[Tensor] = []
    skeleton = _split(dict(state), "", tensors, on_gpu)
    if not on_gpu:
        return Taken(skeleton, tensors)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(on_gpu[0].device))
    return Taken(skeleton, tensors, copied)


def write(folder: Path, taken: Taken, run: str = "") -> None:
    """Write a state as the folder ``folder``. ``run`` is the hash of the run it belongs to."""
    folder.parent.mkdir(exist_ok=True)  # not its parents: a run that was deleted stays deleted
    if taken.copied is not None:
        taken.copied.synchronize()
    with atomically(folder) as new:
        new.mkdir()
        save_file(dict(taken.tensors), new / TENSORS, metadata={"format": "pt"})
        document = {"format": FORMAT, "run": run, "state": taken.skeleton}
        (new / STATE).write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
        (new / SUMS).write_text(json.dumps(digests(new), indent=1), encoding="utf-8")


def save(folder: Path, state: Mapping[str, Any], run: str = "") -> None:
    """Write ``state`` as it is now; see ``take`` and ``write``."""
    write(folder, take(state), run)


def load(folder: Path, run: str | None = None) -> dict[str, Any]:
    """Read a checkpoint. Raises DataError naming the damaged file, or if it is of another run than
    that with the hash ``run``.
    """
    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        if not isinstance(sums, dict) or sums.keys() != set(FILES):
            raise ValueError(f"{SUMS} does not list its files")
        for name in FILES:
            if digest(folder / name) != sums[name]:
                raise DataError(f"checkpoint is damaged: {folder / name}")
        document = json.loads((folder / STATE).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
        state = _state(folder, document, tensors, run)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if (isinstance(error, OSError) and error.errno not in _DAMAGE) or _UNREAD.search(
            str(error)
        ):
            raise MachineError(f"{folder} cannot be read: {shown(error, 300)}") from None
        raise DataError(f"checkpoint is damaged: {folder}: {shown(error, 300)}") from None
    return state


def _state(
    folder: Path, document: Any, tensors: Mapping[str, Tensor], run: str | None
) -> dict[str, Any]:
    """The content of a checkpoint. Raises ValueError for damage, DataError for another format."""
    if not isinstance(document, dict):
        raise ValueError(f"{STATE} holds no object")
    found = document.get("format")
    if found != FORMAT:
        raise DataError(
            f"checkpoint {folder} has format {shown(found)}; this version reads {FORMAT}"
        )
    if run is not None and document.get("run") != run:
        raise DataError(f"checkpoint {folder} belongs to another run")
    state = _join(document.get("state"), tensors)
    if not isinstance(state, dict):
        raise ValueError(f"{STATE} holds no state")
    return state


def weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the model in a checkpoint. Raises DataError if it has none."""
    found = state.get("model")
    if isinstance(found, dict) and all(isinstance(value, Tensor) for value in found.values()):
        return found
    raise DataError("the checkpoint is damaged: it holds no weights of a model")


def complete(folder: Path, prefix: str) -> list[Path]:
    """Checkpoints of a folder, newest first (names end in a zero-padded number).

    A checkpoint has its name only when it is complete, so one that lacks a file is damaged. Raises
    DataError if the folder cannot be read.
    """
    try:
        return sorted((p for p in folder.iterdir() if p.name.startswith(prefix)), reverse=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{folder} is damaged: {error.strerror}") from None


def sweep(newest: Path, prefix: str, keep: int) -> None:
    """Delete all but the ``keep`` checkpoints up to ``newest``, and leftovers of broken writes.

    Checkpoints with a higher number than ``newest`` are of a course that was left, when the run
    went back to an earlier one: they are deleted, and none is kept in the place of a new one.
    """
    found = complete(newest.parent, prefix)
    kept = [path for path in found if path.name <= newest.name][:keep]
    for old in found:
        if old in kept:
            continue
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.unlink(missing_ok=True)
    for partial in newest.parent.glob(PARTIAL + "*"):
        shutil.rmtree(partial, ignore_errors=True)


def _split(value: Any, path: str, tensors: dict[str, Tensor], on_gpu: list[Tensor]) -> Any:
    """Move copies of tensors out of a nested value, leaving their names, and list those on a GPU.

    Floats keep their exact value.
    """
    if isinstance(value, Tensor):
        # safetensors refuses memory shared between entries, so every entry is a copy of its own.
        tensors[path] = torch.empty(
            value.shape, dtype=value.dtype, device="cpu", pin_memory=value.is_cuda
        ).copy_(value.detach(), non_blocking=value.is_cuda)
        if value.is_cuda:
            on_gpu.append(value)
        return {"tensor": path}
    if isinstance(value, Mapping):
        pairs = [
            [key, _split(item, f"{path}/{key}", tensors, on_gpu)] for key, item in value.items()
        ]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        items = [_split(item, f"{path}/{i}", tensors, on_gpu) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"cannot save {type(value).__name__} at '{path}'; use tensors and plain values")


def _join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict | list):
        return value
    match list(value.items()) if isinstance(value, dict) else []:
        case [("tensor", str(name))] if name in tensors:
            return tensors[name]
        case [("tensor", name)]:
            raise ValueError(f"there is no tensor '{name}'")
        case [("float", str(text))]:
            return float(text)
        case [("dict", list(pairs))]:
            return dict(_pair(pair, tensors) for pair in pairs)
        case [("tuple", list(items))]:
            return tuple(_join(item, tensors) for item in items)
        case [("list", list(items))]:
            return [_join(item, tensors) for item in items]
    raise ValueError(f"{STATE} has an entry of no known form: {value}")


def _pair(pair: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, Any]:
    match pair:
        case [str() | int() | float() | bool() | None as key, item]:
            return key, _join(item, tensors)
    raise ValueError(f"{STATE} has an entry of no known form: {pair}")


def load_exactly(module: torch.nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load weights; raises DataError listing every key that is missing or too many."""
    try:
        report = module.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:  # a shape differs
        first = str(error).split("\n\t")[1:2] or [str(error)]
        raise DataError(f"{where} does not fit this model: {shown(first[0], 300)}") from None
    if report.missing_keys or report.unexpected_keys:
        raise DataError(
            f"{where} does not fit this model: "
            f"missing: {shortlist(report.missing_keys) or 'none'}; "
            f"unexpected: {shortlist(report.unexpected_keys) or 'none'}"
        )
