"""The forms of the files of a run. What is read from one is checked here, once, and nowhere else.

Only what is read again is declared; other entries are kept as they are, and what some versions do
not write may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from xmodal.errors import DataError
from xmodal.facts import Facts
from xmodal.text import shown


class Record(BaseModel):
    """A JSON object. Types are strict: ``"3"`` is no number."""

    model_config = ConfigDict(extra="allow", strict=True)


class Status(Record):
    """``status.json``."""

    state: Literal["running", "done", "interrupted", "stopped", "failed"]
    pid: int | None = None
    host: str | None = None
    heartbeat: str | None = None
    job: str | None = None


class Manifest(Record):
    """``manifest.json``."""

    hash: str
    facts: Facts
    format: int = 1
    xmodal: str | None = None
    name: str | None = None
    method: str = ""
    scale: str = ""
    banner: str = ""
    classes: list[str] = []
    epochs: int | None = None
    learning_rate: float | None = None
    components: dict[str, str] = {}
    ingredients: dict[str, Any] = {}
    data: dict[str, Any] = {}
    libraries: dict[str, str] = {}
    command: list[str] = []
    plugin_files: list[str] = []


class Scores(Record):
    """A part of a result, or the validation scores of an epoch."""

    metric: float | None
    loss: float | None = None


class Chosen(Scores):
    """The best validation score, and the stage and epoch that it comes from."""

    at: list[int]


class Ends(Record):
    """An interval, and over how many samples or groups it was found."""

    low: float
    high: float
    units: int
    over: str = "samples"
    method: str = "bootstrap"


class Rival(Scores):
    """A cheap answer to the same test samples: what it does, its score, and who is better."""

    words: str
    outcome: str


class Tip(Record):
    """A piece of advice; see ``xmodal.advice``."""

    code: str
    text: str


class Test(Scores):
    """The test scores; ``smallest`` is the least error above 0 that the split can show.

    ``interval`` says how sure the score is, ``verdict`` in words how it stands ``against`` cheap
    answers. ``class_counts``: the training samples of each class, or with each label.
    """

    smallest: float | None = None
    interval: Ends | None = None
    against: list[Rival] = []
    verdict: str = ""
    class_counts: list[int] = []


class Seconds(Record):
    """How long a run took; ``test_sample``: to predict a test sample, in batches."""

    training: float
    this_process: float
    test_sample: float | None = None


class Parameters(Record):
    """How many parameters a model has, and how many of them trained."""

    total: int
    trainable: int


class Result(Record):
    """``result.json``."""

    metric: str
    better: Literal["lower", "higher"]
    test: Test
    validation: Chosen
    selected_on: str
    protocol: str
    seed: int
    steps: int
    encoded_samples: int | None = None
    samples_per_second: float | None = None
    share_of_peak: float | None = None
    seconds: Seconds
    memory_bytes: int
    parameters: Parameters
    token_norm: dict[str, float | None] = {}
    device: str
    notes: list[str] = []
    advice: list[Tip] = []


class Epoch(Record):
    """A line of ``metrics.jsonl``."""

    stage: int
    epoch: int
    total_steps: int
    train: dict[str, float | None]
    validation: Scores
    best: bool
    seconds: float
    trainable: int
    samples_per_second: float | None = None
    share_of_peak: float | None = None


class Told(Record):
    """What ``trackers.json`` keeps of one tracker."""

    told: tuple[int, int, int] = (0, 0, 0)
    memory: dict[str, Any] | None = None
    done: bool = False


class _Trackers(Record):
    __pydantic_extra__: dict[str, Told]


_FORMS: Mapping[str, TypeAdapter[Any]] = {
    "status.json": TypeAdapter(Status),
    "manifest.json": TypeAdapter(Manifest),
    "result.json": TypeAdapter(Result),
    "trackers.json": TypeAdapter(_Trackers),
    "metrics.jsonl": TypeAdapter(Epoch),
    "notes.jsonl": TypeAdapter(str),
}
"""By file name; of JSON Lines the form of a line."""
_WAYS_OUT = {
    "status.json": "delete it, and the run goes on from its last checkpoint",
    "trackers.json": "delete it, and trackers are told everything anew",
    "metrics.jsonl": "delete it, and the run goes on without the earlier lines",
    "notes.jsonl": "delete it, and the run goes on without the earlier notes",
    "result.json": "delete it together with status.json, and the run is repeated",
}


def parsed(text: str, path: Path) -> dict[str, Any]:
    """The JSON object in a file of a run. Raises DataError: where it is wrong, and the way out."""
    document: dict[str, Any] = _checked(text, path, str(path))
    return document


def parsed_lines(text: str, path: Path) -> list[Any]:
    """The lines of a file of JSON Lines; its last one may have been cut off by a crash.

    Raises DataError as ``parsed`` does, with the number of the line.
    """
    lines = text.split("\n")
    lines.pop()  # empty after the last line, or what a crash left of it
    return [_checked(line, path, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _checked(text: str, path: Path, where: str) -> Any:
    """The JSON value in a text, as it stands there, if it has the form that ``path`` asks for."""
    try:
        _FORMS[path.name].validate_json(text)
    except ValidationError as error:
        way_out = _WAYS_OUT.get(path.name)
        hint = f"\nway out: {way_out}" if way_out else ""
        raise DataError(f"{where} is damaged: {problem(error)}{hint}") from None
    return json.loads(text)


def problem(error: ValidationError) -> str:
    """The first thing that is wrong with a document, in words."""
    first = error.errors(include_url=False)[0]
    key = ".".join(map(shown, first["loc"]))
    if first["type"] == "missing":
        return f"it lacks '{key}'"
    if first["type"] == "json_invalid":
        return shown(first["msg"], 200)
    said = first["msg"].removeprefix("Input should be ")
    given = f", not {shown(json.dumps(first['input'], default=str))}"
    return f"{key or 'it'} should be {said}{given}"
