"""What is read from a run is of the known form, or there is an error of ours that says where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal import records
from xmodal.errors import DataError
from xmodal.runs import Run

from . import forms

WHOLE: dict[str, dict[str, Any]] = {
    "status.json": {"state": "done", "pid": 1, "host": "here", "heartbeat": "2026-11-22T10:03:11"},
    "manifest.json": forms.manifest(),
    "result.json": forms.result(),
    "trackers.json": {"tensorboard": {"told": [1, 0, 2], "memory": {"id": "x"}}},
}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every entry."""
    inner = document.items() if isinstance(document, dict) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with another value at a path."""
    if not path:
        return value
    return {**document, path[0]: changed(document[path[0]], path[1:], value)}


def outcome(read: Callable[[], Any]) -> tuple[str, Any]:
    """The message of our error, or what was read."""
    try:
        return "", read()
    except DataError as error:
        return str(error), None


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    run = Run(tmp_path)
    assert run.read(name) == {}
    run.write(name, {**WHOLE[name], **({} if name == "trackers.json" else {"later": [1]})})
    assert run.read(name).items() >= WHOLE[name].items()


@pytest.mark.parametrize("name", WHOLE)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_whatever_a_file_holds_only_our_errors_come_out(name: str, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(places(WHOLE[name])))
    text = json.dumps(changed(WHOLE[name], path, data.draw(ANYTHING)))
    cut = data.draw(st.integers(0, len(text)))
    for content in (text, text[:cut], text[cut:]):
        said, read = outcome(lambda content=content: records.parsed(content, Path(name)))  # type: ignore[misc]
        if said:
            assert said.startswith(f"{name} is damaged: ")
            assert len(said) < 600
        else:
            assert read == json.loads(content) or "NaN" in content


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_damaged_epochs_are_named_by_their_line(data: st.DataObject) -> None:
    whole = forms.epoch()
    path = data.draw(st.sampled_from(places(whole)))
    broken = json.dumps(changed(whole, path, data.draw(ANYTHING)))
    text = f"{json.dumps(whole)}\n{broken}\n" + json.dumps(whole)[: data.draw(st.integers(0, 99))]
    said, lines = outcome(lambda: records.parsed_lines(text, Path("metrics.jsonl")))
    if said:
        assert said.startswith("metrics.jsonl, line 2 is damaged: ")
    else:
        assert lines[0] == whole
        assert len(lines) == 2  # what a crash cut off does not count


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("status.json", {"state": "flying"}, "state should be 'running', 'done'"),
        ("status.json", {"pid": "1"}, 'pid should be a valid integer, not "1"'),
        ("manifest.json", {"hash": None}, "hash should be a valid string, not null"),
        ("manifest.json", {"facts": 5}, "facts should be an object, not 5"),
        ("result.json", {"test": {}}, "it lacks 'test.metric'"),
        ("result.json", {"notes": ["a", 3]}, "notes.1 should be a valid string, not 3"),
        ("trackers.json", {"mlflow": {"told": "x"}}, "mlflow.told should be a valid array"),
    ],
)
def test_the_message_says_what_is_wrong(name: str, change: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError) as caught:
        records.parsed(json.dumps({**WHOLE[name], **change}), Path(name))
    assert f"{name} is damaged: {why}" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", "\0", "[" * 10**5, '{"state": NaN}'])
def test_what_is_no_object_of_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(DataError, match=r"status.json is damaged: .*\nway out: delete it"):
        assert Run(tmp_path).state


@pytest.mark.parametrize("kind", ["folder", "loop", "bytes"])
def test_what_is_no_text(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "status.json"
    if kind == "folder":
        file.mkdir()
    elif kind == "loop":
        file.symlink_to(file.name)
    else:
        file.write_bytes(b"\xff\xfe")
    with pytest.raises((DataError, OSError), match=r"status\.json") as caught:
        assert Run(tmp_path).state
    assert caught.value.exit_code == 4  # type: ignore[union-attr]


def test_notes_are_kept_and_damage_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.notes() == []
    for note in ("one", "two\nlines", "a name\udcff"):
        run.append_note(note)
    (tmp_path / "notes.jsonl").open("a").write('"cut o')
    kept = ["one", "two\nlines", "a name\\udcff"]
    assert run.notes() == kept
    run.write_notes(kept)
    run.append_note("three")
    assert run.notes() == [*kept, "three"]
    (tmp_path / "notes.jsonl").write_text('"one"\n5\n')
    with pytest.raises(DataError, match=r"notes\.jsonl, line 2 is damaged: it should be a valid s"):
        run.notes()
