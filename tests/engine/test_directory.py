"""Which directory a run gets: nothing of anybody's is taken, and no kill mixes two runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from xmodal import api, plugins, runs
from xmodal.data.store import Store
from xmodal.engine import checkpoint, directory
from xmodal.engine.build import Builder
from xmodal.engine.identity import RunIdentity, identity
from xmodal.engine.observe import Silent
from xmodal.engine.plan import compose_plan
from xmodal.errors import DataError, UsageError
from xmodal.files import PARTIAL, TAG
from xmodal.runs import Run
from xmodal.testing.running import assert_same, weights

from .. import forms
from ..conftest import TINY

TAGGED = TAG.format(runs.KIND)
A = RunIdentity({"recipe": {"seed": 0}}, {})
B = RunIdentity({"recipe": {"seed": 1}}, {})


ARGUMENTS = ("methods/pare", "tasks/darcy")
SETTINGS = (*TINY, "saving.every_steps=2", "saving.finished=2")


def run(seed: int, **options: Any) -> api.Outcome:
    settings = [*SETTINGS, f"seed={seed}"]
    return api.run(*ARGUMENTS, scale="smoke", overrides=settings, report=False, **options)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with seed 0 that is done and has kept its last checkpoints."""
    return run(0, directory=tmp_path_factory.mktemp("done") / "run").run


@pytest.fixture
def copy(done: Run, tmp_path: Path) -> Run:
    return Run(shutil.copytree(done.path, tmp_path / "copy"))


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """All that lies in a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


# --- what is not ours ---


def foreign(folder: Path) -> Path:
    """A folder of somebody's own, with the names of ours in it."""
    for name in ("samples/raw.bin", "final/thesis.pdf", "checkpoints/best-1/x", "report.html"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("my own")
    return folder


def home(folder: Path) -> Path:
    (folder / ".profile").parent.mkdir()
    (folder / ".profile").write_text("")
    return folder


def parent_of_runs(folder: Path) -> Path:
    directory.choose(A, "mine", folder)
    return folder


def web_app(folder: Path) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text('{"name": "my app", "icons": []}')
    return folder


def unreadable_manifest(folder: Path) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text("{")
    return folder


def linked(folder: Path) -> Path:
    foreign(folder.with_name("real"))
    folder.symlink_to(folder.with_name("real"))
    return folder


def tagged_otherwise(folder: Path) -> Path:
    folder.mkdir()
    (folder / TAG.format("comparison")).write_text("")
    return folder


def old_run(folder: Path) -> Path:
    """A run of version 0.1, which had no tag and no format."""
    folder.mkdir()
    manifest = forms.manifest(hash=A.hash, xmodal="0.1.0")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "status.json").write_text('{"state": "done"}')
    return folder


FOREIGN = (
    foreign, home, parent_of_runs, web_app, unreadable_manifest, linked, tagged_otherwise, old_run,
)  # fmt: skip


@pytest.mark.parametrize("make", FOREIGN)
@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_ours_is_refused_and_not_touched(
    make: Callable[[Path], Path], force: bool, tmp_path: Path
) -> None:
    folder = make(tmp_path / "theirs")
    before = snapshot(tmp_path)
    with pytest.raises(UsageError) as caught:
        directory.choose(A, "x", tmp_path / "runs", folder, force)
    assert str(folder) in str(caught.value)
    assert snapshot(tmp_path) == before
    if make is old_run:
        assert "is a run of xmodal 0.1.0" in str(caught.value)
        assert f"xmodal run {folder / 'resolved.yaml'}" in str(caught.value)
        with pytest.raises(UsageError, match="results of its recipes have changed since"):
            runs.continuable(runs.locate(str(folder)))


@pytest.mark.parametrize("place", ["file", "file/inside", "dangling"])
def test_what_cannot_be_a_folder(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="there is a file in its way"):
        directory.choose(A, "x", tmp_path, tmp_path / place)
    with pytest.raises(UsageError, match="there is a file in its way"):
        directory.choose(A, "x", tmp_path / place)


def test_no_run_begins_inside_of_another(copy: Run, tmp_path: Path) -> None:
    """A repeat of the outer one would delete it."""
    (tmp_path / "link").symlink_to(copy.path)
    for inner in (copy.path / "samples" / "mine", copy.path / "mine", tmp_path / "link" / "mine"):
        with pytest.raises(UsageError, match=r"lies inside of the run .*copy"):
            directory.choose(A, "x", tmp_path, inner)
        with pytest.raises(UsageError, match=r"lies inside of the run .*copy"):
            directory.choose(A, "x", inner)


def test_the_tag_is_the_first_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[str] = []
    write, replace = Path.write_text, Path.replace

    def written(path: Path, *rest: Any, **more: Any) -> int:
        files.append(path.name)
        return write(path, *rest, **more)

    def named(path: Path, target: Path) -> Path:
        files.append(target.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "write_text", written)
    monkeypatch.setattr(Path, "replace", named)
    (tmp_path / "new").mkdir()
    found, _ = directory.choose(A, "x", tmp_path, tmp_path / "new")
    assert files == [TAGGED] == os.listdir(found.path)
    assert directory.choose(B, "x", tmp_path, tmp_path / "new") == (found, False)


def test_a_damaged_run_is_called_damaged(copy: Run, tmp_path: Path) -> None:
    for content in ("{", "{}", "[]", '{"hash": 3}', "\xff"):
        (copy.path / "manifest.json").write_text(content, encoding="latin-1")
        before = snapshot(copy.path)
        for force in (False, True):
            with pytest.raises(DataError, match="damaged") as caught:
                directory.choose(A, "x", tmp_path, copy.path, force)
            assert "manifest.json" in str(caught.value)
        with pytest.raises(DataError, match="damaged"):
            runs.locate(str(copy.path))
        assert snapshot(copy.path) == before
    (copy.path / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"without manifest\.json"):
        runs.locate(str(copy.path))


@pytest.mark.parametrize("name", [checkpoint.STATE, checkpoint.TENSORS, ""])
@pytest.mark.parametrize("state", ["done", "interrupted"])
def test_a_run_whose_inputs_are_damaged_is_neither_done_nor_continued(
    name: str, state: str, copy: Run
) -> None:
    copy.set_state(state)
    if name:
        (copy.path / "inputs" / name).write_bytes(b"{}")
    else:
        shutil.rmtree(copy.path / "inputs")
    before = snapshot(copy.path)
    with pytest.raises(DataError, match="damaged") as caught:
        run(0, directory=copy.path)
    assert "inputs" in str(caught.value)
    assert str(caught.value).endswith(f"--directory {copy.path} --force")
    assert snapshot(copy.path) == before


def test_a_run_that_has_lost_its_result_is_repeated(copy: Run, done: Run) -> None:
    (copy.path / "result.json").unlink()
    assert copy.state == "dead"
    again = run(0, directory=copy.path)
    assert again.fresh
    assert again.result["test"] == done.read("result.json")["test"]
    assert_same(weights(again.run), weights(done))


def test_a_place_that_is_not_utf8_is_refused_before_data_are_loaded(tmp_path: Path) -> None:
    strange = Path(os.fsdecode(bytes(tmp_path) + b"/runs\xff"))
    for places in ((strange, None), (tmp_path, strange)):
        with pytest.raises(UsageError, match="is not UTF-8 text"):
            directory.check("x", *places)
    assert not strange.exists()


def test_a_copy_without_its_tag_is_read_and_not_continued(copy: Run, tmp_path: Path) -> None:
    (copy.path / TAGGED).unlink()
    before = snapshot(copy.path)
    assert runs.locate(str(copy.path)) == copy
    own = RunIdentity(copy.read("manifest.json")["ingredients"], {})
    with pytest.raises(UsageError, match=r"is a copy of a run\. .* it lacks xmodal-run\.tag"):
        directory.choose(own, "x", tmp_path, copy.path)
    assert snapshot(copy.path) == before


def test_a_run_of_a_later_version_is_not_read(copy: Run) -> None:
    manifest = copy.read("manifest.json") | {"format": runs.FORMAT + 1, "xmodal": "9.0"}
    copy.write("manifest.json", manifest)
    with pytest.raises(DataError, match=r"was made by xmodal 9\.0"):
        runs.locate(str(copy.path))


def test_a_folder_that_only_looks_like_a_run_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run"):
        runs.locate(str(web_app(tmp_path / "app")))


def test_asking_for_a_state_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"state": "running"}')
    assert Run(tmp_path).state == "dead"
    assert os.listdir(tmp_path) == ["status.json"]


# --- names ---


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("../../x", "x"),
        ("/tmp/x", "tmp-x"),
        ("a/b", "a-b"),
        ("a\\b", "a-b"),
        ("C:\\x", "C--x"),
        ("..", ""),
        (".", ""),
        ("", ""),
        (" ", ""),
        (".hidden", "hidden"),
        ("end.", "end"),
        (" x ", "x"),
        ("tab\there", "tab-here"),
        ("null\0here", "null-here"),
        ("escape\x1b[31m", "escape-[31m"),
        ("con", "run-con"),
        ("LPT1.yaml", "run-LPT1.yaml"),
        ("x" * 151, "x" * 150),
        ("é" * 76, "é" * 75),
        ("\udcff", ""),
    ],
)
def test_a_name_stays_under_its_root(name: str, nearest: str, tmp_path: Path) -> None:
    assert runs.valid_name(name) == nearest
    with pytest.raises(UsageError, match="is not the name of one folder") as caught:
        directory.choose(A, name, tmp_path / "runs")
    assert f"did you mean '{nearest}'" in str(caught.value) or not nearest
    assert snapshot(tmp_path) == {}
    if nearest:
        runs.check_name(nearest)


def test_names_of_recipes_become_names_of_folders() -> None:
    assert (
        api.run_name(["methods/pare", "tasks/openml/car"], "cpu")
        == "methods-pare_tasks-openml-car_cpu"
    )
    assert api.run_name(["./con.yaml"]) == "run-con"
    assert api.run_name(["../a/what?.yaml", "./b.yaml"]) == "what-_b"
    assert len(api.run_name([f"./{'x' * 200}.yaml"])) == 150


def test_usual_names_are_valid(tmp_path: Path) -> None:
    for name in ("pare", "methods-pare_tasks-darcy", "a b", "größe", "v1.2", "lr=1e-3", "x" * 150):
        found, _ = directory.choose(A, name, tmp_path)
        assert found.path.parent == tmp_path / name


# --- kills ---


class Killed(BaseException):
    """SIGKILL: nothing after it happens, whatever is in a ``finally``."""


class KillAt:
    """Ends the process at its n-th change of the file system, which does not happen any more."""

    def __init__(self, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n, self.count = n, 0
        places = {
            Path: ("replace", "unlink", "write_text", "write_bytes", "mkdir", "rmdir", "touch"),
            os: ("unlink", "rmdir", "mkdir"),
        }
        for owner, names in places.items():
            for name in names:
                monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def perhaps(*arguments: Any, **more: Any) -> Any:
            self.count += 1
            if self.count >= self.n:
                raise Killed
            return change(*arguments, **more)

        return perhaps

    @property
    def ended(self) -> bool:
        return self.count >= self.n


def killed_everywhere(prepare: Callable[[], object], begin: Callable[[], object]) -> Iterator[int]:
    """Prepare, begin, and be killed at the first change; then again at the second, and so on."""
    for n in range(1, 500):
        prepare()
        with pytest.MonkeyPatch.context() as patch:
            kill = KillAt(n, patch)
            with suppress(Killed):
                begin()
        if not kill.ended:
            return
        yield n
    raise AssertionError("it does not end")


@dataclass(frozen=True)
class Parts:
    """What a run is described with."""

    identity: RunIdentity
    arguments: tuple[Any, ...]

    def describe(self, run: Run) -> None:
        directory.describe(run, *self.arguments)

    @classmethod
    def of(cls, seed: int) -> Parts:
        registry, store = plugins.registry(), Store()
        settings = (*SETTINGS, f"seed={seed}")
        plan = compose_plan(ARGUMENTS, registry, store, settings, "smoke")
        data = Builder(plan, store, lambda line: None).data()
        own = identity(plan.recipe, registry, store, data.checksum)
        return cls(own, (plan, "x", "# recipe", registry, own, data, 1))


def test_a_kill_anywhere_in_a_repeat_leaves_the_run_or_less_of_it(
    done: Run, tmp_path: Path
) -> None:
    path, own, other = tmp_path / "copy", Parts.of(0), Parts.of(1)
    assert own.identity.hash == done.digest
    left = Run(path)

    def prepare() -> None:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(done.path, path)

    def repeat() -> None:
        left.clear()
        own.describe(left)

    kept = lost = 0
    for _ in killed_everywhere(prepare, repeat):
        with pytest.raises(UsageError, match=r"holds another run; it differs in: recipe\.seed"):
            directory.choose(other.identity, "x", tmp_path, path, True)
        found, is_done = directory.choose(own.identity, "x", tmp_path, path)
        assert found == left
        assert is_done == (left.state == "done")
        if is_done:  # then all of it is there
            assert left.read("result.json") == done.read("result.json")
        steps = checkpoint.complete(left.checkpoints, checkpoint.STEP)
        for folder in steps:
            # As long as a checkpoint is there and can be read, so is the history before it.
            with suppress(DataError):
                state = checkpoint.load(folder, own.identity.hash)["snapshot"]
                lines = [line["epoch"] for line in left.metrics()]
                assert lines[: state["epoch"]] == list(range(state["epoch"]))
        kept += bool(steps)
        lost += not steps
    assert kept > 2
    assert lost > 10


def test_a_kill_anywhere_before_a_first_run_leaves_no_run(tmp_path: Path) -> None:
    """The next run that takes the directory finds nothing of the first, whatever run it is."""
    path, first, second = tmp_path / "new", Parts.of(0), Parts.of(1)

    def begin(parts: Parts) -> None:
        run, _ = directory.choose(parts.identity, "x", tmp_path, path)
        run.clear()
        parts.describe(run)

    places = 0
    for _ in killed_everywhere(
        lambda: shutil.rmtree(path, ignore_errors=True), lambda: begin(first)
    ):
        places += 1
        if (path / "manifest.json").exists():  # the last thing that is written
            with pytest.raises(UsageError, match="holds another run"):
                begin(second)
            continue
        begin(second)
        assert Run(path).read("manifest.json")["hash"] == second.identity.hash
        assert "seed: 1" in (path / "resolved.yaml").read_text()
        checkpoint.load(path / "inputs", second.identity.hash)
        left = {name for name in os.listdir(path) if not name.startswith(PARTIAL)}
        assert left == {
            TAGGED, "recipe.yaml", "resolved.yaml", "manifest.json", "status.json", "inputs",
            "checkpoints",
        }  # fmt: skip
    assert places > 15


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 4, 9, 16, 25, 60, 140])
def test_a_killed_repeat_ends_as_if_nothing_had_been(n: int, copy: Run, done: Run) -> None:
    with pytest.MonkeyPatch.context() as patch:
        KillAt(n, patch)
        with pytest.raises(Killed):
            run(0, directory=copy.path, force=True)
    with pytest.raises(UsageError, match="holds another run"):
        run(1, directory=copy.path, force=True)
    again = run(0, directory=copy.path)
    assert_same(weights(done), weights(again.run))
    assert again.result["test"] == done.read("result.json")["test"]
    assert [line["epoch"] for line in again.run.metrics()] == [0, 1, 2]


@pytest.fixture(scope="module")
def seed_1(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(1, directory=tmp_path_factory.mktemp("seed 1") / "run").run


def test_the_checkpoints_of_another_run_are_not_resumed(copy: Run, done: Run, seed_1: Run) -> None:
    """As when a repeat of version 0.1 was killed after it had deleted the manifest."""
    (copy.path / "manifest.json").unlink()
    found = run(1, directory=copy.path)
    assert_same(weights(found.run), weights(seed_1))
    assert found.result["test"] == seed_1.read("result.json")["test"]
    assert found.run.metrics()[0]["train"] == seed_1.metrics()[0]["train"]


def test_a_checkpoint_says_whose_it_is(done: Run, seed_1: Run, tmp_path: Path) -> None:
    copy = Run(shutil.copytree(seed_1.path, tmp_path / "copy"))
    copy.set_state("interrupted")
    (copy.path / "result.json").unlink()
    shutil.rmtree(copy.checkpoints)
    shutil.copytree(done.checkpoints, copy.checkpoints)
    notes = RecordingNotes()
    found = run(1, directory=copy.path, observer=notes)
    assert found.fresh
    assert sum("belongs to another run" in line for line in notes.lines) == 2
    assert_same(weights(found.run), weights(seed_1))
    folder = checkpoint.complete(done.checkpoints, checkpoint.STEP)[0]
    with pytest.raises(DataError, match="belongs to another run"):
        checkpoint.load(folder, seed_1.digest)


class RecordingNotes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)
