"""Atomic writes, the tags of our folders, digests of files and folders, and JSON files.

Digests of large data are remembered in the cache of the user, so that a run does not read its data
twice. What is remembered counts only while path, size, times and inode of a file are what they
were, and never for a file that was modified moments before: a second change within the same tick
of the file system's clock would not show.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from typing import Any

import psutil
from platformdirs import user_cache_dir
from safetensors import SafetensorError

from xmodal.errors import DataError, MachineError, UsageError, XModalError
from xmodal.text import shortlist, shown

PARTIAL = ".partial-"
"""The prefix of unfinished files and folders, which a killed process leaves behind."""
CACHE = "XMODAL_CACHE"
"""The environment variable that moves the cache."""
_LEFTOVER = re.compile(re.escape(PARTIAL) + r"(?P<host>.+)-(?P<pid>\d+)-[^-]+")
_DAY = 86_400
_WORTH = 2**22
"""Bytes from which reading again costs more than remembering."""
_TICK = 2 * 10**9
"""Nanoseconds: the coarsest clock of a common file system (FAT)."""
_State = tuple[int, int, int, int, int]
"""Size, times of modification and of change, inode and device of a file."""
_fresh: ContextVar[dict[str, Any] | None] = ContextVar("fresh digests", default=None)
"""The digests that count in a block of ``hashed_again``: those of the block itself."""


def cache_folder() -> Path:
    """The folder of everything that can be fetched or computed again."""
    return Path(os.environ.get(CACHE) or user_cache_dir("xmodal")).expanduser().absolute()


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The hexadecimal digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest(path) for path in files}


def contents(path: Path | Mapping[str, Path]) -> str:
    """One digest of a file, or of all names and files of a folder; empty if neither exists.

    A mapping stands for a folder that holds just these files under these names, wherever they lie.
    Digests of large data are remembered. Raises DataError for a file that cannot be read, or that
    changes meanwhile.
    """
    if isinstance(path, Path):
        if os.path.isfile(path):
            return _sums([path])[0]
        if not os.path.isdir(path):
            return ""
        path = below(path)
    names = sorted(path)
    return digest_of(dict(zip(names, _sums([path[name] for name in names]), strict=True)))


def digest_of(sums: Mapping[str, str]) -> str:
    """One digest of files with these names and digests: what ``contents`` gives for them."""
    return hashlib.sha256(json.dumps(sorted(sums.items())).encode()).hexdigest()


@contextlib.contextmanager
def hashed_again(wanted: bool = True) -> Iterator[None]:
    """A block in which ``contents`` reads all data anew, once, whatever is remembered of them."""
    token = _fresh.set({} if wanted else _fresh.get())
    try:
        yield
    finally:
        _fresh.reset(token)


def hashing_again() -> bool:
    """Whether this is within a block of ``hashed_again``."""
    return _fresh.get() is not None


def below(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> dict[str, Path]:
    """Every file below a folder by its relative path; links are followed, but not in circles."""
    found: dict[str, Path] = {}
    try:
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        for path in () if here in above else folder.iterdir():
            if path.is_dir():
                inner = below(path, (*above, here))
                found |= {f"{path.name}/{name}": file for name, file in inner.items()}
            elif path.is_file():
                found[path.name] = path
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror or error}") from None
    return found


def _sums(files: Sequence[Path]) -> list[str]:
    """The SHA-256 of files, from the cache where they are what they were."""
    begun = time.time_ns()
    states = [_state(file) for file in files]
    if sum(state[0] for state in states) < _WORTH:
        return [_read(file, state) for file, state in zip(files, states, strict=True)]
    names = [str(file.absolute()) for file in files]
    key = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    entry, fresh = cache_folder() / "digests" / f"{key[:32]}.json", _fresh.get()
    known: dict[str, Any] = read_json(entry) if fresh is None else fresh.get(key, {})
    sums: list[str] = []
    settled: dict[str, tuple[_State, str]] = {}
    for name, file, state in zip(names, files, states, strict=True):
        match known.get(name):
            case [before, str(found)] if before == list(state):
                sums.append(found)
            case _:
                sums.append(_read(file, state))
        if max(state[1:3]) + _TICK < begun:
            settled[name] = (state, sums[-1])
    written = json.dumps(settled)
    if fresh is not None:
        fresh[key] = json.loads(written)
    if settled and json.loads(written) != known:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs only time
            entry.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(entry, written, durable=False)
    return sums


def _state(file: Path) -> _State:
    """What stays equal as long as the content does, on an honest system."""
    try:
        found = file.stat()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev


def _read(file: Path, state: _State) -> str:
    """The SHA-256 of a file, which must not change while it is read."""
    try:
        found = digest(file)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from None
    if _state(file)[:2] != state[:2]:
        raise DataError(f"{file} changed while it was read; try again when it is complete")
    return found


@contextlib.contextmanager
def atomically(path: Path, *, durable: bool = True, sole: bool = False) -> Iterator[Path]:
    """A temporary path to write a file or a folder, renamed to ``path`` if the block succeeds.

    Readers see either the old content of ``path`` or all of the new content. If the block fails,
    nothing is left behind; what a killed process left beside ``path`` is removed. The temporary
    path is in a folder that only the block uses; the folder is removed at the end. Raises
    MachineError naming ``path`` if the disk is full, say.

    durable: write the content to disk before the renaming, so that it survives a power failure.
        False saves time, for content that is verified on use or that can be lost.
    sole: the caller holds a lock, so leftovers of a killed process are removed first.
    """
    with _named(path), _scratch(path, durable, sole) as folder:
        # Use a name of its own: a search for manifest.json must not find an unfinished file.
        new = folder / "new"
        yield new
        if durable:
            for inside_new in new.rglob("*"):
                _sync(inside_new)
            _sync(new)
        if path.is_dir() or (new.is_dir() and os.path.lexists(path)):
            # Replacing a folder, or a file by a folder, takes two steps. A crash in between leaves
            # both in ``folder``.
            path.replace(folder / "old")
        new.replace(path)
        if durable:
            _sync(path.parent)


@contextlib.contextmanager
def _scratch(path: Path, durable: bool, sole: bool) -> Iterator[Path]:
    if not sole:
        with scratch(path.parent, sweep=durable) as folder:
            yield folder
        return
    folder = path.with_name(PARTIAL + path.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def scratch(parent: Path, *, sweep: bool = True) -> Iterator[Path]:
    """A folder for unfinished things in ``parent``; gone at the end of the block.

    Its name says which process it belongs to. ``sweep``: first remove those of processes that were
    killed.
    """
    if sweep:
        remove_leftovers(parent)
    owner = f"{_here()}-{os.getpid()}"
    folder = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{owner}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _here() -> str:
    """Where the number of a process means that process: containers may share a host's name."""
    space = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}-{space.stat().st_ino if space.exists() else 0}"


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that have ended did not finish in a folder.

    A process of another machine counts as ended when its leftover is a day old.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            match = _LEFTOVER.fullmatch(entry.name)
            if match is None or not entry.is_dir(follow_symlinks=False):
                continue
            if match["host"] == _here():
                ended = not psutil.pid_exists(int(match["pid"]))
            else:
                ended = time.time() - entry.stat().st_mtime > _DAY
            if ended:
                shutil.rmtree(entry.path, ignore_errors=True)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let failures say which file was written: writing to an open file does not tell."""
    try:
        yield
    except (XModalError, BrokenPipeError):
        raise
    except OSError as error:
        own = error.filename is not None and PARTIAL not in str(error.filename)
        raise MachineError.of(error, error.filename if own else path) from error
    except SafetensorError as error:  # its words for a full disk
        raise MachineError(f"{path}: {error}") from error


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Create or replace a file in one step; see ``atomically``. Text is written as UTF-8.

    Raises DataError for text that cannot be, such as the name of a file that is not UTF-8.
    """
    try:
        raw = content.encode() if isinstance(content, str) else content
    except UnicodeEncodeError as error:
        near = shown(error.object[max(0, error.start - 40) : error.end + 40])
        raise DataError(f"{path} cannot hold '{near}', which is not UTF-8 text") from None
    with atomically(path, durable=durable) as new:
        new.write_bytes(raw)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


TAG = "xmodal-{}.tag"
"""The first file in every folder of ours, named after the kind of the folder (``run``)."""
_TAG_TEXT = "xmodal writes, replaces and deletes files in this folder.\n"


def claim(folder: Path, kind: str, known_by: str = "") -> None:
    """Make ``folder`` one of ours, or find that it is: a tag is the first file that is written.

    Raises what ``check_free`` raises, and then touches nothing.
    """
    check_free(folder, kind, known_by)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not owned(folder, kind):
            (folder / TAG.format(kind)).write_text(_TAG_TEXT, encoding="utf-8")
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{folder} cannot be a folder: there is a file in its way") from None
    except OSError as error:
        raise MachineError.of(error, folder) from error


def check_free(folder: Path, kind: str, known_by: str = "") -> None:
    """Raise UsageError unless ``folder`` is new, empty, or one of ours of this kind.

    ``known_by`` names a file by which folders of versions without tags are recognised.
    """
    try:
        if owned(folder, kind) or (known_by and (folder / known_by).is_file()):
            return
        there = folder.exists() or folder.is_symlink()
        here = sorted(path.name for path in folder.iterdir()) if there else []
    except (NotADirectoryError, FileNotFoundError):  # the latter is a link to nothing
        raise UsageError(f"{folder} cannot be a folder: there is a file in its way") from None
    except OSError as error:
        raise MachineError.of(error, folder) from error
    if here:
        raise UsageError(
            f"{folder} is not empty and was not made by xmodal for this ({kind}); it has "
            f"{shortlist(here)}. Nothing was changed; name a new or an empty folder"
        )


def owned(folder: Path, kind: str) -> bool:
    """Whether ``folder`` carries the tag of a kind."""
    return os.path.isfile(folder / TAG.format(kind))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: Any) -> None:
    """Create or replace a JSON file in one step."""
    write_atomically(path, as_json(content, indent=1, sort_keys=True))


def as_json(content: Any, **options: Any) -> str:
    """The JSON text of plain values; ``options`` are those of ``json.dumps``.

    JSON has neither NaN nor infinities: a number that is none is null. What is not UTF-8 in a name
    of a file is escaped.
    """
    return json.dumps(_jsonable(content), allow_nan=False, **options)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_jsonable(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def inside(folder: Path, name: str) -> Path:
    """``folder / name``. Raises DataError for names that lead outside the folder."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if not name or parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        raise DataError(f"refusing the path '{name}': it leads outside {folder}")
    return folder.joinpath(*parts.parts)
