"""Files that are whole or absent, digests of files, and JSON files that may be missing."""

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
"""How the names of unfinished files and folders start. A process that is killed leaves them."""


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The hexadecimal digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest(path) for path in files}


def contents(path: Path) -> str:
    """One digest of a file, or of all names and files of a folder; empty if there is neither."""
    if path.is_file():
        return digest(path)
    if not path.is_dir():
        return ""
    lines = (f"{sha256} {name}\n" for name, sha256 in digests(path).items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextlib.contextmanager
def atomically(path: Path, *, durable: bool = True, sole: bool = False) -> Iterator[Path]:
    """A place to write a file or a folder, which becomes ``path`` when the block ends well.

    Readers see what was at ``path`` before, or all of the new content. If the block fails, nothing
    is left behind. The folder around the place is the block's own and vanishes with it.

    durable: the content is on the disk before it gets its name, so that it survives a power
        failure. Without it a caller saves time on what is checked when it is used, or not missed.
    sole: the caller holds a lock, so leftovers of a killed process are removed first.
    """
    if sole:
        scratch = path.with_name(PARTIAL + path.name)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
    else:
        scratch = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent))
    try:
        # Named unlike any file of ours: a search for manifest.json must not find an unfinished one.
        new = scratch / "new"
        yield new
        if durable:
            for inside_new in new.rglob("*"):
                _sync(inside_new)
            _sync(new)
        if path.is_dir():
            # A folder is replaced in two steps. A crash between them leaves both in ``scratch``.
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
    """A JSON object, or an empty one where the file is missing or damaged."""
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
