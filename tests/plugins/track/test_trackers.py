"""Trackers: what each keeps is read back and is what the run's own record says, also after a crash.

One tiny run is followed by all of them, cut off in the middle of an epoch, and resumed.
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from xmodal import api, plugins, runs
from xmodal.cli.run import show
from xmodal.comparison.grid import Request, Suite, grid
from xmodal.data.store import Store
from xmodal.engine import checkpoint, tracking
from xmodal.engine.observe import Silent
from xmodal.engine.plan import compose_plan
from xmodal.engine.run import Outcome
from xmodal.engine.step import StepRecord
from xmodal.errors import RecipeError
from xmodal.interfaces import Context, Settings, Tracked, Tracker
from xmodal.recipe.compose import compose
from xmodal.testing.contract import check_tracker
from xmodal.testing.tiny import tiny_context

from ...conftest import TINY

ALL = ("tensorboard", "mlflow", "wandb")
PACKAGES = ("tensorboard", "mlflow", "wandb")
COMMON = [o for o in TINY if not o.startswith("selector")]
Points = dict[str, list[tuple[int, float]]]


class Watch(Silent):
    """Keeps notes and the numbers of steps; raises from inside the loop after so many records."""

    def __init__(self, records: int = 1000) -> None:
        self.left = records
        self.notes: list[str] = []
        self.steps: Points = defaultdict(list)

    def note(self, line: str) -> None:
        self.notes.append(line)

    def record(self, record: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("crash")
        if isinstance(record, StepRecord):
            at = record.progress
            step = at.epoch * at.steps + at.step + 1
            numbers = {"loss": record.loss, **record.log, "lr": record.lr}
            for name, value in {**numbers, "gradient_norm": record.gradient_norm}.items():
                self.steps[f"step/{name}"].append((step, value))


def run(root: Path, watch: Watch | None = None, trackers: Any = (), **options: Any) -> Outcome:
    """Nine steps in three epochs, a checkpoint after each epoch."""
    return api.run(
        "methods/nft",
        "tasks/darcy",
        scale="smoke",
        overrides=[*COMMON, f"trackers={json.dumps(list(trackers))}"],
        root=root,
        report=False,
        observer=watch,
        **options,
    )


def every_step(root: Path) -> list[dict[str, Any]]:
    uri = {"mlflow": {"tracking_uri": str(root / "mlruns")}}
    return [{"use": name, "every_steps": 1, **uri.get(name, {})} for name in ALL]


@dataclass(frozen=True)
class Followed:
    """The run that was followed, and the same run without trackers."""

    root: Path
    tracked: Outcome
    plain: Outcome
    steps: Points
    notes: list[str]
    services: list[list[str]]


def services() -> list[str]:
    """Processes that W&B has started from here and that still live."""
    children = psutil.Process().children(recursive=True)
    alive = [p for p in children if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    return [p.name() for p in alive if "wandb" in p.name()]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Followed:
    """Three steps, epoch, two steps, crash; then resumed from the checkpoint after the epoch."""
    root, whole = tmp_path_factory.mktemp("tracked"), Watch()
    plain = run(root / "plain", whole)
    left, watch = [], Watch()
    with pytest.raises(RuntimeError, match="crash"):
        run(root / "runs", Watch(6), every_step(root))
    left.append(services())
    tracked = run(root / "runs", watch, every_step(root))
    left.append(services())
    return Followed(root, tracked, plain, whole.steps, watch.notes, left)


# --- reading back ---


def read_tensorboard(followed: Followed) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = followed.tracked.run.path / "tensorboard"
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def read_mlflow(followed: Followed) -> Points:
    client, found = mlflow_run(followed)
    return {
        name: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
    }


def mlflow_run(followed: Followed) -> tuple[Any, Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(followed.root / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("darcy")
    (found,) = client.search_runs([experiment.experiment_id])
    return client, found


def read_wandb(followed: Followed) -> Points:
    points: Points = defaultdict(list)
    for record in wandb_records(followed):
        if record.WhichOneof("record_type") == "history":
            row = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
            for name, value in row.items():
                if "/" in name:
                    points[name].append((row["step"], value))
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                name = item.key or item.nested_key[0]
                if name in FINAL:
                    points[name] = [(9, json.loads(item.value_json))]
    return points


def wandb_records(followed: Followed) -> Iterator[Any]:
    """The records of all pieces of a run, oldest piece first."""
    from wandb.proto import wandb_internal_pb2

    for file in sorted((followed.tracked.run.path / "wandb").glob("offline-run-*/*.wandb")):
        for data in leveldb_log(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            yield record


def leveldb_log(content: bytes) -> Iterator[bytes]:
    """Records of a file in LevelDB's log format, in blocks of 32 KiB, after 7 bytes of W&B's own.

    Each fragment: checksum (4 bytes), length (2), kind (1: full, 2: first, 3: middle, 4: last).
    """
    assert content.startswith(b":W&B")
    stream, block, record = io.BytesIO(content), 32768, b""
    stream.seek(7)
    while True:
        room = block - stream.tell() % block
        if room < 7:
            stream.seek(room, io.SEEK_CUR)
        head = stream.read(7)
        if len(head) < 7:
            return
        _, length, kind = struct.unpack("<IHB", head)
        record += stream.read(length)
        if kind in (1, 4):
            yield record
            record = b""


READ = {"tensorboard": read_tensorboard, "mlflow": read_mlflow, "wandb": read_wandb}
FINAL = ("test/metric", "test/loss", "best/metric", "parameters/total", "memory_bytes")


# --- the numbers ---


def epochs(run_: runs.Run) -> Points:
    """What ``metrics.jsonl`` says, under the names trackers are told."""
    points: Points = defaultdict(list)
    for line in run_.metrics():
        numbers = {f"train/{k}": v for k, v in line["train"].items()}
        numbers |= {f"validation/{k}": v for k, v in line["validation"].items()}
        numbers |= {"epoch/number": line["epoch"] + 1, "epoch/stage": line["stage"]}
        for name, value in numbers.items():
            points[name].append((line["total_steps"], value))
    return points


@pytest.mark.long
@pytest.mark.parametrize("name", ALL)
def test_a_tracker_holds_every_number_once(name: str, followed: Followed) -> None:
    """Steps 4 and 5 were told before the crash and came again after it."""
    found = READ[name](followed)
    expected = {**followed.steps, **epochs(followed.tracked.run)}
    assert [step for step, _ in expected["step/loss"]] == list(range(1, 10))
    assert len(expected["validation/metric"]) == 3
    for key, points in expected.items():
        assert [step for step, _ in found[key]] == [step for step, _ in points], key
        # TensorBoard keeps float32.
        values = [value for _, value in points]
        assert [value for _, value in found[key]] == pytest.approx(values, rel=1e-6, abs=1e-12), key
    extra = {key.partition("/")[0] for key in found.keys() - expected.keys()}
    assert extra <= {"epoch", "test", "best", "parameters", "seconds", "memory_bytes"} | {
        "steps",
        "encoded_samples",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_tracker_holds_the_result(name: str, followed: Followed) -> None:
    result, found = followed.tracked.result, READ[name](followed)
    expected = {
        "test/metric": result["test"]["metric"],
        "test/loss": result["test"]["loss"],
        "best/metric": result["validation"]["metric"],
        "parameters/total": result["parameters"]["total"],
        "memory_bytes": result["memory_bytes"],
    }
    assert expected.keys() == set(FINAL)
    for key, value in expected.items():
        ((step, kept),) = found[key]
        assert step == 9
        assert kept == pytest.approx(value, rel=1e-6)


@pytest.mark.slow
def test_tensorboard_has_recipe_and_hyperparameters(followed: Followed) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    events = EventAccumulator(str(followed.tracked.run.path / "tensorboard")).Reload()
    assert "recipe/text_summary" in events.Tags()["tensors"]
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    assert start.hparams["stages.0.use"].string_value == "finetune"
    assert start.hparams["seed"].number_value == 0


@pytest.mark.slow
def test_mlflow_has_one_run_with_tags_and_parameters(followed: Followed) -> None:
    _, found = mlflow_run(followed)
    assert found.info.status == "FINISHED"
    assert found.data.params["stages.0.epochs"] == "3"
    assert found.data.params["backbone.use"] == "tiny"
    manifest = followed.tracked.run.read("manifest.json")
    assert found.data.tags["hash"] == manifest["hash"]
    assert found.data.tags["name"] == manifest["name"]
    assert (found.data.tags["seed"], found.data.tags["protocol"]) == ("0", "clean")
    assert found.info.run_name == "nft on darcy, smoke, seed 0"


@pytest.mark.long
def test_mlflow_gets_the_report_and_says_how_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    outcome = api.run(
        "methods/majority", "tasks/wdbc", scale="smoke", trackers=["mlflow"], root="runs"
    )
    memory = outcome.run.read("trackers.json")["mlflow"]["memory"]
    store = (tmp_path / "mlruns").as_uri()
    assert memory["look"] == f"MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {store}"
    client = MlflowClient(tracking_uri=store)
    folder = client.download_artifacts(memory["run"], "report.html", str(tmp_path))
    assert Path(folder).read_bytes() == (outcome.run.path / "report.html").read_bytes()
    show(outcome.run.path, outcome.result, True, False)
    assert memory["look"] in capsys.readouterr().err


def test_a_report_that_cannot_be_uploaded_is_a_note(tmp_path: Path) -> None:
    """Artifacts of the experiment are to lie below a file, where no folder can be."""
    from mlflow.tracking import MlflowClient

    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "file").write_text("in the way")
    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    client.create_experiment("darcy", artifact_location=(tmp_path / "file" / "here").as_uri())
    notes: list[str] = []
    component: Any = plugins.registry().load("tracker", "mlflow")
    settings = component.Config(tracking_uri=str(tmp_path / "mlruns"))
    tracker = component(settings, Context.outside(Store(), "mlflow", note=notes.append))
    (tmp_path / "report.html").write_text("page")
    memory = tracker.start(Tracked("a", tmp_path, {}, {"name": "a", "task": "darcy"}))
    tracker.finish("done", None)
    assert client.get_run(memory["run"]).info.status == "FINISHED"
    assert [note.partition(":")[0] for note in notes] == ["mlflow"]
    assert "the report could not be uploaded" in notes[0]


@pytest.mark.slow
def test_wandb_continues_one_run(followed: Followed) -> None:
    begun = [r.run for r in wandb_records(followed) if r.WhichOneof("record_type") == "run"]
    assert len({r.run_id for r in begun}) == 1
    assert {r.run_group for r in begun} == {"darcy"}
    config = {i.key: json.loads(i.value_json) for i in begun[0].config.update}
    assert config["stages"][0]["epochs"] == 3
    kinds = [r.WhichOneof("record_type") for r in wandb_records(followed)]
    assert "stats" not in kinds
    ended = [r.exit.exit_code for r in wandb_records(followed) if r.HasField("exit")]
    assert ended == [1, 0]
    metadata = list(followed.tracked.run.path.glob("wandb/*/files/*"))
    assert not [f.name for f in metadata if f.name not in ("config.yaml", "wandb-summary.json")]


# --- the run ---


@pytest.mark.slow
def test_a_tracked_run_is_the_same_run(followed: Followed) -> None:
    tracked, plain = followed.tracked, followed.plain
    assert tracked.run.read("manifest.json")["hash"] == plain.run.read("manifest.json")["hash"]
    assert epochs(tracked.run) == epochs(plain.run)
    assert tracked.result["test"] == plain.result["test"]
    one, other = (checkpoint.load(o.run.path / "final")["model"] for o in (tracked, plain))
    assert all(bool((one[name] == other[name]).all()) for name in one)


@pytest.mark.slow
def test_nothing_is_left_behind(followed: Followed) -> None:
    assert followed.services == [[], []]
    assert not [line for line in followed.notes if "tracker" in line]
    kept = followed.tracked.run.read("trackers.json")
    assert {name: kept[name]["done"] for name in ALL} == dict.fromkeys(ALL, True)
    assert all(kept[name]["told"] == [9, 0, 3] for name in ALL)
    for file in followed.tracked.run.path.rglob("*"):
        if file.is_file():
            assert file.suffix not in (".pkl", ".pickle", ".pt", ".pth")
            assert file.read_bytes()[:1] != b"\x80", f"{file} looks like a pickle"


@pytest.mark.slow
def test_one_that_joins_late_is_told_all_epochs_and_is_quiet(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "runs", Watch(6))
    capfd.readouterr()
    trackers = [{**use, "every_steps": None} for use in every_step(tmp_path)]
    outcome = run(tmp_path / "runs", Watch(), trackers)
    assert capfd.readouterr() == ("", "")
    late = Followed(tmp_path, outcome, outcome, {}, [], [])
    for name in ALL:
        found = READ[name](late)
        assert [step for step, _ in found["validation/metric"]] == [3, 6, 9]
        assert "step/loss" not in found


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_number_told_but_not_noted_down_is_not_doubled(name: str, tmp_path: Path) -> None:
    """A kill between the two: step 2 was told, but ``trackers.json`` says 1."""
    settings = {"tracking_uri": str(tmp_path / "mlruns")} if name == "mlflow" else {}
    component: Any = plugins.registry().load("tracker", name)
    run_ = Tracked("example/run", tmp_path, {}, {"name": "example", "task": "darcy"})
    memory = None
    for steps in ((1, 2), (2, 3)):
        tracker = component(component.Config(**settings), tiny_context())
        memory = tracker.start(replace(run_, memory=memory, step=steps[0] - 1))
        for step in steps:
            tracker.log(step, {"step/loss": step / 2})
        tracker.finish("interrupted", None)
    outcome: Any = SimpleNamespace(run=runs.Run(tmp_path))
    found = READ[name](Followed(tmp_path, outcome, outcome, {}, [], []))
    assert found == {"step/loss": [(1, 0.5), (2, 1.0), (3, 1.5)]}


# --- trackers that fail ---

BROKEN = '''
import time

from pydantic import Field

from xmodal import hookimpl
from xmodal.interfaces import Context, Settings, Tracker


class Fails(Tracker):
    """Fails somewhere."""

    class Config(Settings):
        """Settings."""

        every_steps: int = Field(1, description="Steps.")

    where = ""
    finished = []

    def fail(self, where):
        if self.where == where:
            raise ValueError(f"broken in {where}")

    def __init__(self, config, context=None):
        super().__init__(config, context)
        self.fail("init")

    def start(self, run):
        self.fail("start")
        return {}

    def log(self, step, numbers):
        self.fail("log")
        if self.where == "hang":
            time.sleep(600)

    def finish(self, state, result):
        Fails.finished.append((self.where, state, result is None))
        self.fail("finish")


@hookimpl
def xmodal_trackers():
    return {f"fails-{w}": f"{__name__}:{w.title()}" for w in PLACES}


PLACES = ("init", "start", "log", "finish", "hang", "never")
for _place in PLACES:
    globals()[_place.title()] = type(_place.title(), (Fails,), {"where": _place})
'''


@pytest.mark.slow
def test_a_broken_tracker_costs_a_note_and_nothing_else(
    followed: Followed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, watch = tmp_path / "broken.py", Watch()
    file.write_text(BROKEN)
    monkeypatch.setattr(tracking, "PATIENCE", 0.5)
    names = [f"fails-{w}" for w in ("init", "start", "log", "finish", "hang", "never")]
    outcome = run(tmp_path / "runs", watch, names, plugin_files=[str(file)])
    assert outcome.run.state == "done"
    assert outcome.result["test"] == followed.plain.result["test"]
    off = [line for line in watch.notes if line.startswith("tracker ")]
    said = {line.split("'")[1].removeprefix("fails-"): line.partition(": ")[2] for line in off}
    assert len(off) == len(said) == 5
    assert said["hang"] == "it did not finish within 0 s"
    for where in ("init", "start", "log", "finish"):
        assert said[where] == f"ValueError: broken in {where}"
    fails = plugins.registry((str(file),)).load("tracker", "fails-never").__mro__[1]
    ended = {where: (state, without) for where, state, without in fails.finished}
    # Also those that failed are told to end, but not a result as if they had seen it all.
    assert ended == {
        "start": ("done", True),
        "log": ("done", True),
        "finish": ("done", False),
        "never": ("done", False),
    }
    kept = outcome.run.read("trackers.json")
    assert [name for name in names if kept.get(name, {}).get("done")] == ["fails-never"]


class Slow(Tracker):
    """Takes its time."""

    class Config(Settings):
        """Settings."""

        every_steps: int = 1

    def start(self, run: Tracked) -> dict[str, str]:
        """Wait."""
        time.sleep(0.3)
        return {}

    def log(self, step: int, numbers: Any) -> None:
        """Nothing."""

    def finish(self, state: str, result: Any) -> None:
        """Nothing."""


def test_one_that_falls_behind_is_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "BEHIND", 5)
    told = Tracked("example/run", tmp_path, {}, {})
    kept = tracking._Kept(runs.Run(tmp_path), lambda line: None)
    channel = tracking._Channel("slow", Slow(Slow.Config(), tiny_context()), kept, told)
    begun = time.monotonic()
    for step in range(1, 10):
        channel.log((step, 0, 0), {"step/loss": 1.0})
    assert time.monotonic() - begun < 0.2, "the run waited"
    assert channel.error == "it is 5 calls behind"
    channel.end("done", None)
    channel.wait(time.monotonic() + 10)
    assert "done" not in runs.Run(tmp_path).read("trackers.json").get("slow", {})


def test_a_damaged_memory_is_named_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "trackers.json").write_text('{"wandb": ')
    notes: list[str] = []
    kept = tracking._Kept(runs.Run(tmp_path), notes.append)
    assert "damaged" in notes[0]
    kept.keep("wandb", told=[1, 0, 0])
    assert runs.Run(tmp_path).read("trackers.json") == {"wandb": {"told": [1, 0, 0]}}


# --- packages ---


@pytest.mark.parametrize("name", ALL)
def test_a_missing_package_is_named_before_anything_is_loaded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RecipeError) as caught:
        compose_plan(
            ["methods/nft", "tasks/darcy"],
            plugins.registry(),
            Store(),
            [f"trackers=[{name}]"],
            "smoke",
        )
    (problem,) = caught.value.problems
    assert (problem.key, problem.where) == ("trackers.0", "command line 'trackers'")
    assert f"pip install 'xmodal[{name}]'" in problem.message
    assert caught.value.exit_code == 2


def test_a_mere_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B leaves a folder ``wandb`` behind, which Python would import as a package."""
    from xmodal_track.common import absent

    (tmp_path / "surely_not_installed").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert __import__("surely_not_installed")
    monkeypatch.delitem(sys.modules, "surely_not_installed")
    assert list(absent("surely_not_installed", "x"))
    assert not list(absent("json", "x"))


@pytest.mark.slow
def test_without_trackers_their_packages_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [m for m in sys.modules if m.partition(".")[0] in PACKAGES]:
        monkeypatch.delitem(sys.modules, name)
    for name in (*PACKAGES, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run(tmp_path).run.state == "done"
    assert not (tmp_path / "trackers.json").exists()
    assert set(ALL) <= set(plugins.registry().names("tracker"))


# --- recipes, comparisons, the command line ---


def test_comparisons_with_and_without_trackers_share_their_cells(tmp_path: Path) -> None:
    suite = Suite(methods=("nft",), tasks=("openml/car",), seeds=1, scale="smoke")
    (plain,) = grid(Request(suite), plugins.registry(), Store(), tmp_path)
    settings = ("trackers=[tensorboard],[{use: wandb, project: p}]",)
    tracked = grid(
        Request(suite.model_copy(update={"set": settings})), plugins.registry(), Store(), tmp_path
    )
    assert [c.resolved["trackers"][0]["use"] for c in tracked] == ["tensorboard", "wandb"]
    assert {c.directory for c in tracked} == {plain.directory}


def test_the_same_tracker_twice_is_refused() -> None:
    with pytest.raises(RecipeError, match="'wandb' is named twice"):
        compose_plan(
            ["methods/nft", "tasks/darcy"], plugins.registry(), Store(), ["trackers=[wandb, wandb]"]
        )


def test_the_option_adds_to_what_the_recipe_names(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: demo/pare\ntrackers: [{use: wandb, project: p}]\n")

    def trackers(name: str, *more: str) -> Any:
        return compose([name], plugins.registry(), trackers=more).data.get("trackers")

    both = [{"use": "wandb", "project": "p"}, "tensorboard"]
    assert trackers(str(recipe), "tensorboard", "wandb", "tensorboard") == both
    assert trackers("demo/pare", "wandb") == ["wandb"]
    assert trackers("demo/pare") is None


# --- the contract ---


class Prints(Slow):
    """Prints."""

    def log(self, step: int, numbers: Any) -> None:
        """Print."""
        sys.stdout.write("epoch done\n")


class Draws(Slow):
    """Draws a random identifier."""

    def start(self, run: Tracked) -> dict[str, str]:
        """Draw."""
        import random

        return {"run": str(random.random())} if run.memory is None else dict(run.memory)


class Forgets(Slow):
    """Begins another run after a resume."""

    def start(self, run: Tracked) -> dict[str, str]:
        """Forget."""
        return {"run": str(id(self)) + str(run.step)}


@pytest.mark.parametrize(
    ("component", "message"),
    [(Prints, "prints"), (Draws, "global random generator"), (Forgets, "begins another run")],
)
def test_the_check_finds_what_is_wrong(component: type[Tracker], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_tracker(component)
