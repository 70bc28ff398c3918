"""Atomic writes, digests of files, and JSON files that may be missing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from xmodal.errors import DataError

PARTIAL = ".partial-"
"""The prefix of unfinished files and folders, which a killed process leaves behind."""


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The hexadecimal digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest(path) for path in files}


def contents(path: Path) -> str:
    """One digest of a file, or of all names and files in a folder; empty if neither exists."""
    if path.is_file():
        return digest(path)
    if not path.is_dir():
        return ""
    lines = (f"{sha256} {name}\n" for name, sha256 in digests(path).items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextlib.contextmanager
def atomically(path: Path, *, durable: bool = True, sole: bool = False) -> Iterator[Path]:
    """A temporary path to write a file or a folder, renamed to ``path`` if the block succeeds.

    Readers see either the old content of ``path`` or all of the new content. If the block fails,
    nothing is left behind. The temporary path is in a folder that only the block uses; the folder
    is removed at the end.

    durable: write the content to disk before the renaming, so that it survives a power failure.
        False saves time, for content that is verified on use or that can be lost.
    sole: the caller holds a lock, so leftovers of a killed process are removed first.
    """
    if sole:
        scratch = path.with_name(PARTIAL + path.name)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
    else:
        scratch = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent))
    try:
        # Use a name of its own: a search for manifest.json must not find an unfinished file.
        new = scratch / "new"
        yield new
        if durable:
            for inside_new in new.rglob("*"):
                _sync(inside_new)
            _sync(new)
        if path.is_dir():
            # Replacing a folder takes two steps. A crash in between leaves both in ``scratch``.
            path.replace(scratch / "old")
        new.replace(path)
        if durable:
            _sync(path.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Create or replace a file in one step; see ``atomically``. Text is written as UTF-8."""
    with atomically(path, durable=durable) as new:
        new.write_bytes(content.encode() if isinstance(content, str) else content)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: Any) -> None:
    """Create or replace a JSON file in one step."""
    write_atomically(path, json.dumps(content, indent=1, sort_keys=True))


def inside(folder: Path, name: str) -> Path:
    """``folder / name``. Raises DataError for names that lead outside the folder."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if not name or parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        raise DataError(f"refusing the path '{name}': it leads outside {folder}")
    return folder.joinpath(*parts.parts)
