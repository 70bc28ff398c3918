"""Small filesystem steps of the store: hashing, locking, and writing that is whole or absent.

Nothing here knows about networks or archives.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from xmodal.errors import DataError

log = logging.getLogger("xmodal.data")
CACHE = "XMODAL_CACHE"


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The hexadecimal digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def contents(path: Path) -> str:
    """One digest of a file, or of all names and files of a folder; empty if there is neither."""
    if path.is_file():
        return digest(path)
    if not path.is_dir():
        return ""
    names = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
    lines = (f"{digest(path / name)} {name.as_posix()}\n" for name in names)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that readers see the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def inside(folder: Path, name: str) -> Path:
    """``folder / name``, refusing names that lead outside. Raises DataError."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if not name or parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        raise DataError(f"refusing the path '{name}': it leads outside {folder}")
    return folder.joinpath(*parts.parts)


def make_folder(folder: Path) -> None:
    """Create a folder of the cache. Raises DataError naming the variable that moves the cache."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot create the cache folder {folder}: {error.strerror}\n"
            f"way out: set {CACHE} to a folder you can write to"
        ) from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; says so when it has to wait for another one."""
    make_folder(path.parent)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=5)
    except Timeout:
        log.info("waiting for another process that is preparing %s", path.stem)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """An empty folder that becomes ``target`` when the block ends well and vanishes otherwise.

    The caller holds the lock of ``target``, so what an interrupted process left behind is removed.
    """
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(temporary)
    try:
        yield temporary
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.replace(old)
        temporary.replace(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise DataError unless ``needed`` bytes and a little more are free."""
    free = shutil.disk_usage(folder).free
    if free < needed * 1.02:
        raise DataError(
            f"{what} needs {needed / 2**20:,.0f} MiB but only {free / 2**20:,.0f} MiB are free in "
            f"{folder}\nways out: free some space, or set {CACHE} to a folder on another disk"
        )


def ways(lines: list[str]) -> str:
    """Render ways out, one a line."""
    return "\n".join(["ways out:"] + [f"  - {line}" for line in lines])
