"""A run is a directory: its layout, its status, its lock, and how to find it again.

recipe.yaml resolved.yaml manifest.json status.json metrics.jsonl log.txt trackers.json
checkpoints/ result.json predictions.safetensors validation.safetensors samples/ report.html
report.md figures/
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shlex
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Event, Thread
from typing import Any

from filelock import FileLock, Timeout

from xmodal.errors import DataError, MachineError, UsageError, did_you_mean, file_errors
from xmodal.files import TAG, as_json, owned, read_json, write_atomically
from xmodal.records import parsed, parsed_lines
from xmodal.text import shortlist, shown

DEFAULT_ROOT = Path("runs")
TRACKERS = "trackers.json"
METRICS, NOTES = "metrics.jsonl", "notes.jsonl"
PREDICTIONS, VALIDATED = "predictions.safetensors", "validation.safetensors"
"""What was predicted for the test samples, and for those of validation, with their labels."""
JOB = "XMODAL_JOB"
"""Environment variable with a job name that stays the same when a cluster restarts the job."""
BEATS, BEAT, SILENCE = ".heartbeat", 20.0, 180.0
"""A live process touches this file every 20 s; other machines count it as dead after 180 s."""
STALE_READS = 3
LONGEST_NAME = 150
_NOT_IN_A_NAME = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
# Windows opens a device under these names, whatever their extension.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
LIBRARIES = ("torch", "transformers", "timm", "accelerate", "numpy", "scikit-learn")

ENSEMBLE = "ensemble.json"
"""The file that makes a folder an ensemble: its members are runs."""
SEARCH = "fit.json"
"""The record of a search; its ``model`` is the path of the chosen run from there."""
KIND = "run"
"""The kind of folder that a run directory is; see ``xmodal.files.claim``."""
FORMAT = 2
"""Of a run directory. Results of another format were computed otherwise, under the same names."""

# What one pass of a run writes, in the order in which a repeat removes it. A repeat that is killed
# in between leaves a state that is right: no result without its run, no checkpoint without the
# lines before it. The manifest stays: it says whose directory this is.
_OF_A_PASS = (
    "result.json",
    "checkpoints",
    TRACKERS,
    METRICS,
    NOTES,
    "report.html",
    "report.md",
    "figures",
    PREDICTIONS,
    VALIDATED,
    "samples",
    "final",
    "profile",
)


Place = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Run:
    """A run directory."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the run, or an empty mapping if it does not exist yet.

        Raises DataError if it is not of the form in ``xmodal.records``.
        """
        text = _text(self.path / name)
        return {} if text is None else parsed(text, self.path / name)

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Replace a JSON file of the run atomically."""
        write_atomically(self.path / name, as_json(content, indent=1) + "\n")

    @property
    def state(self) -> str:
        """empty, running, done, interrupted, stopped, failed, or dead.

        Dead is what runs without a process, or was done and has lost its result.
        """
        state = str(self.read("status.json").get("state", "empty"))
        if state == "done" and not (self.path / "result.json").exists():
            return "dead"
        return "dead" if state == "running" and not self.locked() else state

    def set_state(self, state: str, **details: Any) -> None:
        """Record the state of the run."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "heartbeat": now}
        if job := os.environ.get(JOB):
            owner["job"] = job
        self.write("status.json", {"state": state, **owner, **details})

    def to_continue(self) -> str:
        """The command that resumes the run, from any working directory."""
        files: list[str] = []
        with suppress(DataError):  # a damaged manifest is reported by the command
            files = self.read("manifest.json").get("plugin_files", [])
        options = [word for file in files for word in ("--plugin", file)]
        return shlex.join(["xmodal", "resume", str(self.path.absolute()), *options])

    def locked(self) -> bool:
        """Whether a live process holds the run, here or on another machine."""
        if not (self.path / ".lock").exists():  # asking leaves nothing where no run is
            return self._alive_elsewhere()
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            return self._alive_elsewhere()  # who may not write here may still read
        lock.release()
        return self._alive_elsewhere()

    def _alive_elsewhere(self) -> bool:
        """Whether a process on another machine has recently shown that it is alive.

        Not every shared file system passes locks between machines.
        """
        owner = self.read("status.json")
        if owner.get("state") != "running" or owner.get("host") == socket.gethostname():
            return False
        if owner.get("job") and owner["job"] == os.environ.get(JOB):
            return False  # an earlier process of this job, which the cluster knows has ended
        try:
            return time.time() - (self.path / BEATS).stat().st_mtime < SILENCE
        except OSError:
            return False

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run. Raises UsageError if a live process already has the lock."""
        lock = FileLock(self.path / ".lock")
        try:
            # A process that only checks the lock holds it for a moment.
            lock.acquire(timeout=1)
        except Timeout:
            raise self._held() from None
        try:
            if self._alive_elsewhere():
                raise self._held()
            with self._beating():
                yield
        finally:
            lock.release()

    def _held(self) -> UsageError:
        owner = self.read("status.json")
        return UsageError(
            f"{self.path} is being run by process {owner.get('pid')} on {owner.get('host')} "
            f"(last saved at {owner.get('heartbeat')}); wait for it or stop it. "
            f"If its machine died, the run is free after {SILENCE / 60:.0f} minutes"
        )

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Show other machines that this process is alive."""
        over = Event()

        def beat() -> None:
            while not over.wait(BEAT):
                with suppress(OSError):
                    (self.path / BEATS).touch()

        (self.path / BEATS).touch()
        thread = Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(1.0)  # not forever: the file system may hang

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of ``metrics.jsonl``, except a line cut off by a crash."""
        return self._read_lines(METRICS)

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``."""
        self._append_line(METRICS, line)

    def rewind_metrics(self, stage: int, epoch: int) -> list[dict[str, Any]]:
        """Drop the lines from this epoch on, which will be written again; return the others."""
        kept = [line for line in self.metrics() if (line["stage"], line["epoch"]) < (stage, epoch)]
        write_atomically(self.path / METRICS, _lines(kept))
        return kept

    @property
    def older(self) -> bool:
        """Whether an earlier version made the run, whose results are not those of this one."""
        manifest = self.read("manifest.json")
        return bool(manifest) and manifest.get("format") != FORMAT

    @property
    def digest(self) -> str | None:
        """The hash that the checkpoints of the run carry; None if they carry none."""
        return None if self.older else str(self.read("manifest.json").get("hash"))

    def notes(self) -> list[str]:
        """What the user was told while the run went on, in the processes before this one too."""
        return self._read_lines(NOTES)

    def write_notes(self, notes: Sequence[str]) -> None:
        """Replace all notes."""
        write_atomically(self.path / NOTES, _lines(notes))

    def append_note(self, note: str) -> None:
        """Add a note, which a process that is killed at once would not lose."""
        self._append_line(NOTES, note)

    def _read_lines(self, name: str) -> list[Any]:
        text = _text(self.path / name)
        return [] if text is None else parsed_lines(text, self.path / name)

    def _append_line(self, name: str, value: Any) -> None:
        with file_errors(self.path / name), (self.path / name).open("a", encoding="utf-8") as out:
            out.write(_lines([value]))

    def place(self) -> Place:
        """What tells the directory, with its manifest, from another one of the same name."""
        found = [path.stat() for path in (self.path, self.path / "manifest.json")]
        return tuple((one.st_dev, one.st_ino) for one in found)

    def check_place(self, before: Place) -> None:
        """Raise DataError if the directory is not the one whose ``place`` was ``before``."""
        try:
            same = self.place() == before
        except OSError:
            same = False
        if not same:
            raise DataError(
                f"{self.path} was deleted, moved or replaced while the run went on, so nothing can "
                "be saved in it; the run has stopped"
            )

    def clear(self) -> None:
        """Remove everything that an earlier pass left, before the run is repeated.

        The new pass must not mistake old weights or old tracker state for its own.
        """
        self.set_state("running")  # from here on, the directory holds no finished run
        for name in _OF_A_PASS:
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _lines(values: Iterable[Any]) -> str:
    return "".join(as_json(value) + "\n" for value in values)


def _text(file: Path) -> str | None:
    """The text of a file that another machine may be replacing; None if there is none.

    On a network file system, a file that was replaced after it was opened is stale: open it again.
    """
    for attempt in range(STALE_READS + 1):
        try:
            return file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            raise DataError(f"{file} is damaged: it is not text in UTF-8") from None
        except OSError as error:
            if error.errno != errno.ESTALE or attempt == STALE_READS:
                raise MachineError.of(error, file) from None
    return None


def check_name(name: str) -> None:
    """Raise UsageError, with the nearest valid name, unless ``name`` is that of one folder."""
    valid = valid_name(name)
    if not valid or name != valid:
        hint = f"; did you mean '{valid}'?" if valid else ""
        raise UsageError(f"--name: {name!r} is not the name of one folder{hint}")


def valid_name(text: str) -> str:
    """The nearest name for a folder, the same on every system; empty if there is none."""
    text = text.encode("utf-8", "replace").decode()
    text = _NOT_IN_A_NAME.sub("-", text).strip(" .-") if _strange(text) else text
    if _DEVICE.fullmatch(text):
        text = f"run-{text}"
    return text.encode()[:LONGEST_NAME].decode("utf-8", "ignore").rstrip(" .")


def _strange(text: str) -> bool:
    """Whether some system would not make a folder of this name, or make it elsewhere."""
    return (
        bool(_NOT_IN_A_NAME.search(text)) or text != text.strip(" ").rstrip(".") or text[:1] == "."
    )


def locate(reference: str, root: Path = DEFAULT_ROOT) -> Run:
    """Find a run by its directory, or the newest run with a name under ``root``.

    The folder of a search stands for the model that it chose, which may be an ensemble of runs.
    """
    path = Path(reference)
    for folder in (path, root / reference):
        if (chosen := read_json(folder / SEARCH).get("model")) is not None:
            folder = folder / str(chosen)
        if os.path.isfile(folder / ENSEMBLE):
            return Run(folder)
        if owned(folder, KIND) or os.path.isfile(folder / "manifest.json"):
            return checked(Run(folder))
        found = folder.glob("*/manifest.json") if os.path.isdir(folder) else ()
        inside = sorted(p.parent for p in found)
        if inside:
            return checked(Run(inside[-1]))
    known = sorted(str(p.parent.relative_to(root)) for p in root.glob("*/*/manifest.json"))
    names = {Path(k).parts[0] for k in known} | set(known)
    raise UsageError(
        f"no run '{shown(reference, 200)}'{did_you_mean(reference, names)}"
        + (
            f"\nruns under {root}: {shortlist(reversed(known))}"
            if known
            else f"\n{root} has no runs"
        )
    )


def checked(run: Run) -> Run:
    """``run``, if this version can read it. Raises UsageError if it is no run at all, DataError if
    it is damaged or of a later version.
    """
    if (run.path / ENSEMBLE).is_file():
        raise UsageError(f"{run.path} is an ensemble of runs; name one of those beside it")
    try:
        manifest = run.read("manifest.json")
    except DataError:
        if owned(run.path, KIND):
            raise
        raise UsageError(
            f"{run.path} is not a run: its manifest.json is not one of xmodal"
        ) from None
    if not manifest:
        raise DataError(
            f"{run.path} is a run without manifest.json: it was killed before it began, or is "
            "damaged; repeat its command to begin it, or delete it"
        )
    if manifest.get("format", 1) > FORMAT:
        raise DataError(
            f"{run.path} was made by xmodal {manifest.get('xmodal')}, whose runs this version "
            "cannot read; upgrade xmodal"
        )
    return run


def continuable(run: Run) -> Run:
    """``run``, if this version may go on writing into it. Raises what ``checked`` raises, and
    UsageError if an earlier version made the run, or if its tag is gone.
    """
    if checked(run).older:
        made = f"{run.path} is a run of xmodal {run.read('manifest.json').get('xmodal')}"
        why = "results of its recipes have changed since"
    elif not owned(run.path, KIND):
        made, why = f"{run.path} is a copy of a run", f"it lacks {TAG.format(KIND)}"
    else:
        return run
    raise UsageError(
        f"{made}. It can be read and used, but neither continued nor repeated in place: {why}. "
        f"Make a new run: xmodal run {run.path / 'resolved.yaml'}"
    )


def environment() -> dict[str, Any]:
    """Package versions and the machine, for the manifest."""
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            libraries[name] = "missing"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "processor": processor(),
        "libraries": libraries,
    }


def processor() -> str:
    """What the processor is called, as far as the system says."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
