"""Rivals whose libraries pin other versions than xmodal run in a Python of their own.

``xmodal rivals setup NAME`` makes one in the cache. A run exchanges arrays and plain JSON with
``worker.py`` there through a folder. The child has no telemetry and no network.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmodal.data import Store
from xmodal.errors import DataError, UsageError, did_you_mean, file_errors
from xmodal.text import shown

WORKER = Path(__file__).with_name("worker.py")
LAST_LINES = 6
WITH_TORCH = "about 6 GB with PyTorch's CUDA libraries"
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Interpreter:
    """A Python of its own: what is installed in it, and why it cannot be beside xmodal."""

    name: str
    requirements: tuple[str, ...]
    why: str
    size: str = ""

    def folder(self, store: Store) -> Path:
        """Its place in the cache."""
        return store.root / "interpreters" / self.name

    def python(self, store: Store) -> Path:
        """Its Python."""
        inside = "Scripts/python.exe" if os.name == "nt" else "bin/python"
        return self.folder(store) / inside

    def commands(self, store: Store) -> tuple[tuple[str, ...], ...]:
        """What makes it."""
        folder, python = str(self.folder(store)), str(self.python(store))
        return (
            (sys.executable, "-m", "venv", folder),
            (python, "-m", "pip", "install", *self.requirements),
        )

    def line(self, store: Store) -> str:
        """What makes it, as one line for a shell."""
        return " && ".join(shlex.join(command) for command in self.commands(store))

    def absent(self, store: Store, own: str = "") -> Iterator[str]:
        """Yield how to make it if it is not there; ``own`` is a Python that the user named."""
        if own:
            if not os.access(own, os.X_OK):
                yield f"setting python: '{own}' is not a program"
        elif not self.python(store).exists():
            size = self.size and f" ({self.size})"
            yield (
                f"needs {self.requirements[0]} in a Python of its own ({self.why}); "
                f"set it up{size}: xmodal rivals setup {self.name} --run\nor: {self.line(store)}"
            )


INTERPRETERS = {
    one.name: one
    for one in (
        Interpreter("aeon", ("aeon==1.6.0", "torch"), "it pins numpy and pandas", WITH_TORCH),
        Interpreter(
            "autogluon",
            ("autogluon.tabular[lightgbm,catboost,xgboost]==1.6.3",),
            "it pins pandas, and its models can only be pickled",
        ),
        Interpreter(
            "pytabkit",
            ("pytabkit[models]==1.7.3",),
            "its models can only be pickled",
            WITH_TORCH,
        ),
        Interpreter(
            "tabpfn", ("tabpfn==9.2.0",), "it brings a program of its own to the hub", WITH_TORCH
        ),
    )
}


def interpreter(name: str) -> Interpreter:
    """An interpreter by name. Raises UsageError."""
    if name not in INTERPRETERS:
        hint = did_you_mean(name, INTERPRETERS)
        raise UsageError(f"no interpreter '{name}'{hint}\nknown: {', '.join(INTERPRETERS)}")
    return INTERPRETERS[name]


def environment(threads: int) -> dict[str, str]:
    """The child's environment: threads; no telemetry, hub, proxy or code of other places."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "CUDA_VISIBLE"))}
    quiet = {
        # Each is what the library's own documentation says.
        "TABPFN_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "AG_CPU_COUNT": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONNOUSERSITE": "1",
    }
    counts = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"),
        str(threads),
    )
    return kept | quiet | counts


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill a child and what it has started."""
    if os.name == "nt":
        child.kill()
    else:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def call(
    python: Path | str, job: Mapping[str, Any], arrays: Arrays
) -> tuple[NDArray[Any], list[NDArray[Any]]]:
    """The predictions and the kept arrays of a job. Raises DataError with the child's last lines.

    ``python`` runs ``worker.py``, which says what it reads.
    """
    with file_errors(), tempfile.TemporaryDirectory(prefix="xmodal-rival-") as name:
        folder = Path(name)
        for key, array in arrays.items():
            np.save(folder / f"{key}.npy", array)
        (folder / "job.json").write_text(json.dumps(dict(job)), encoding="utf-8")
        command: Sequence[str] = [str(python), "-I", str(WORKER), str(folder)]
        with (folder / "log.txt").open("wb") as log:
            try:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    env=environment(int(job["threads"])),
                    start_new_session=True,  # Ctrl-C is for this process, which ends the child
                )
            except OSError as error:
                raise DataError(f"{python} cannot be run: {error.strerror}") from None
            try:
                code = child.wait()
            except BaseException:
                _end(child)
                raise
        if code or not (folder / "done.json").exists():
            text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
            lines = [line for line in text.splitlines() if line.strip()][-LAST_LINES:]
            said = "\n".join(f"    {shown(line, 300)}" for line in lines)
            raise DataError(f"{job['model']} failed in {python} (exit {code}):\n{said}")
        done = json.loads((folder / "done.json").read_text(encoding="utf-8"))
        kept = [
            np.load(folder / f"kept_{number}.npy", allow_pickle=False)
            for number in range(done["kept"])
        ]
        return np.load(folder / "prediction.npy", allow_pickle=False), kept
