"""A disk that fills up, a directory that goes away, checkpoints of a wrong form: what was saved
counts, and the message says what it is.
"""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from xmodal import api, runs
from xmodal.engine import checkpoint
from xmodal.engine.loop import Snapshot
from xmodal.engine.observe import Silent
from xmodal.errors import DataError, MachineError
from xmodal.files import digests
from xmodal.testing.running import StopAt, weights

from ..conftest import TINY


class Notes(Silent):
    """Keeps the notes; calls something at a record."""

    def __init__(self, at: int = -1, act: Callable[[], object] = lambda: None) -> None:
        self.left, self.act = at, act
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)

    def record(self, record: Any) -> None:
        if self.left == 0:
            self.act()
        self.left -= 1


def run(directory: Path, observer: Silent | None = None) -> api.Outcome:
    """Nine steps that save after each of them."""
    saving = ["saving.every_steps=1", "saving.keep=9"]
    return api.run(
        "methods/pare", "tasks/darcy", scale="smoke", overrides=[*TINY, *saving],
        directory=directory, report=False, observer=observer,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> api.Outcome:
    """A run that nothing stopped."""
    return run(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    folder = tmp_path_factory.mktemp("cut") / "run"
    with pytest.raises(RuntimeError, match="crash"):
        run(folder, StopAt(6))
    return runs.Run(folder)


@pytest.fixture
def cut(killed: runs.Run, tmp_path: Path) -> runs.Run:
    """A copy of a run that was killed after six records."""
    return runs.Run(shutil.copytree(killed.path, tmp_path / "run"))


def steps(run: runs.Run) -> list[Path]:
    return checkpoint.complete(run.checkpoints, checkpoint.STEP)


def same(one: runs.Run, other: runs.Run) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@contextmanager
def largest(size: int) -> Iterator[None]:
    """Files cannot grow beyond this size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.long
def test_a_full_disk_keeps_the_last_checkpoint_and_names_it(
    cut: runs.Run, whole: api.Outcome
) -> None:
    before = [path.name for path in steps(cut)]
    with largest(2000), pytest.raises(MachineError) as caught:
        run(cut.path)
    message = str(caught.value)
    assert "\n" not in message
    assert "File too large" in message
    assert f"the checkpoint {before[0]} is kept; continue with: xmodal resume {cut.path}" in message
    assert [path.name for path in steps(cut)] == before
    assert not list(cut.path.rglob(".partial*"))
    assert same(run(cut.path).run, whole.run)


def test_a_disk_that_is_full_from_the_start(tmp_path: Path) -> None:
    with largest(0), pytest.raises(MachineError, match="File too large"):
        run(tmp_path / "run")
    assert run(tmp_path / "run").fresh


@pytest.mark.parametrize("how", ["deleted", "moved", "copied", "emptied"])
def test_a_directory_that_goes_away_is_an_error_at_the_next_write(tmp_path: Path, how: str) -> None:
    folder, other = tmp_path / "run", tmp_path / "other"

    def go() -> None:
        if how == "emptied":  # as by rm -r, which a write at the same moment can keep from the rest
            (folder / "manifest.json").unlink()
            return
        shutil.move(folder, other)
        if how == "deleted":
            shutil.rmtree(other)
        elif how == "copied":
            shutil.copytree(other, folder)

    observer = Notes(2, go)
    with pytest.raises((DataError, MachineError)) as caught:
        run(folder, observer)
    assert "was deleted, moved or replaced while the run went on" in str(caught.value)
    assert observer.left == -1  # the record after it was not reached
    assert folder.exists() == (how in ("copied", "emptied"))
    if how == "copied":
        assert json.loads((folder / "status.json").read_text())["state"] == "running"


def again(folder: Path) -> None:
    """Make the checksums of a checkpoint right."""
    sums = digests(folder)
    del sums[checkpoint.SUMS]
    (folder / checkpoint.SUMS).write_text(json.dumps(sums))


def state(text: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / checkpoint.STATE).write_text(text)
        again(folder)

    return harm


def snapshot(key: str, value: Any) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        document = json.loads((folder / checkpoint.STATE).read_text())
        parts = dict(document["state"]["dict"])
        parts["snapshot"]["dict"] = [
            [name, value if name == key else old] for name, old in parts["snapshot"]["dict"]
        ]
        (folder / checkpoint.STATE).write_text(json.dumps(document))
        again(folder)

    return harm


def reshape(folder: Path) -> None:
    tensors = load_file(folder / checkpoint.TENSORS)
    name = max(tensors, key=lambda name: ("/model/" in name, tensors[name].numel()))
    tensors[name] = tensors[name].flatten()[:1].clone()
    save_file(tensors, folder / checkpoint.TENSORS)
    again(folder)


def forget(folder: Path) -> None:
    tensors = load_file(folder / checkpoint.TENSORS)
    tensors.pop(max(tensors))
    save_file(tensors, folder / checkpoint.TENSORS)
    again(folder)


def swap(content: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        shutil.rmtree(folder)
        if content == "loop":
            folder.symlink_to(folder.name)
        elif content == "folder":
            folder.mkdir()
        else:
            folder.write_text(content)

    return harm


def sums(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / checkpoint.SUMS).write_text(text) and None


HARM: dict[str, Callable[[Path], None]] = {
    "no sums": lambda folder: (folder / checkpoint.SUMS).unlink(),
    "sums of nothing": sums("{}"),
    "sums of others": sums('{"../../status.json": "x"}'),
    "sums as a list": sums("[]"),
    "sums as numbers": sums('{"state.json": 1, "tensors.safetensors": 2}'),
    "state as a list": state("[]"),
    "state without a state": state('{"format": 1}'),
    "state of nothing": state('{"format": 1, "state": {"dict": []}}'),
    "state of no known form": state('{"format": 1, "state": {"what": []}}'),
    "state that is deep": state("[" * 10**5),
    "snapshot of text": snapshot("epoch", "x"),
    "snapshot of nothing": snapshot("total_steps", None),
    "another shape": reshape,
    "a tensor too few": forget,
    "a file": swap("x"),
    "an empty folder": swap("folder"),
    "a loop": swap("loop"),
}


@pytest.mark.parametrize("harm", [pytest.param(HARM[name], id=name) for name in HARM])
def test_a_checkpoint_of_a_wrong_form_is_an_error_of_ours(
    harm: Callable[[Path], None], killed: runs.Run, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(steps(killed)[0], tmp_path / "step-1"))
    network = torch.nn.ParameterDict(dotless(checkpoint.load(folder)))

    def restore() -> None:
        state = checkpoint.load(folder)
        Snapshot.of(state.get("snapshot"))
        checkpoint.load_exactly(network, dotless(state), "the checkpoint")

    restore()
    harm(folder)
    with pytest.raises(DataError, match=r"checkpoint") as caught:
        restore()
    assert len(str(caught.value)) < 600


def dotless(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights, under names that a ParameterDict allows."""
    return {name.replace(".", "_"): t for name, t in checkpoint.weights(state).items()}


@pytest.mark.parametrize("name", [pytest.param("another shape", marks=pytest.mark.slow), "a file"])
def test_the_checkpoint_before_it_is_used_and_named(
    name: str, cut: runs.Run, whole: api.Outcome
) -> None:
    newest, before = steps(cut)[:2]
    HARM[name](newest)
    observer = Notes()
    again = run(cut.path, observer)
    (said,) = [line for line in observer.lines if newest.name in line]
    assert said.endswith(f"using the one before it: {before.name}")
    assert said in again.result["notes"]
    assert same(again.run, whole.run)


def test_where_no_checkpoint_is_whole_training_starts_again(
    cut: runs.Run, whole: api.Outcome
) -> None:
    for folder in steps(cut):
        reshape(folder)  # half of the weights may be in the model before it is noticed
    observer = Notes()
    assert same(run(cut.path, observer).run, whole.run)
    assert sum("starts again from the beginning" in line for line in observer.lines) == 6


def test_a_checkpoint_that_cannot_be_read_now_is_not_damaged(
    cut: runs.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files: going back to an earlier checkpoint would lose what the others hold."""

    folder, load = cut.path, checkpoint.load_file

    def fail(file: Path) -> Any:
        if folder not in file.parents:
            return load(file)
        raise RuntimeError("unable to open file <x> in read-only mode: Too many open files (24)")

    monkeypatch.setattr(checkpoint, "load_file", fail)
    for folder in (cut.path, cut.checkpoints):
        name = "inputs" if folder == cut.path else steps(cut)[0].name
        with pytest.raises(MachineError, match=f"{name} cannot be read"):
            run(cut.path)


def test_checkpoints_that_are_no_folder(cut: runs.Run) -> None:
    shutil.rmtree(cut.checkpoints)
    cut.checkpoints.write_text("x")
    with pytest.raises(DataError, match=f"{cut.checkpoints} is damaged: Not a directory"):
        run(cut.path)


def test_notes_made_before_a_kill_belong_to_the_result(cut: runs.Run, whole: api.Outcome) -> None:
    newest = steps(cut)[0]
    swap("x")(newest)
    told = StopAt(3)
    with pytest.raises(RuntimeError, match="crash"):
        run(cut.path, told)
    notes = run(cut.path).result["notes"]
    assert [note for note in notes if newest.name in note]
    assert [note for note in notes if newest.name not in note] == whole.result["notes"]
