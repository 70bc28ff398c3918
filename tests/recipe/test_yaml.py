"""YAML 1.2 with positions, plain data only; hostile files end in one clear message."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.errors import RecipeError
from xmodal.recipe.yaml import MAX_BYTES, Origin, dotted, parse, parse_value, read


def value(text: str) -> Any:
    return parse(f"key: {text}", "r.yaml").data["key"]


def refused(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(text, "r.yaml")
    assert len(caught.value.problems) == 1
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("1e-4", 1e-4),
        ("5E3", 5000.0),
        ("1.e-3", 1e-3),
        (".5", 0.5),
        ("+1", 1),
        ("0x1F", 31),
        ("0o17", 15),
        ("010", 10),
        (".inf", math.inf),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("10:30", "10:30"),
        ("1:2:3", "1:2:3"),
        ("2026-01-31", "2026-01-31"),
        ("=", "="),
        ("1e", "1e"),
        ("'1e-4'", "1e-4"),
        ("[1, two, 3.0]", [1, "two", 3.0]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_scalars_are_yaml_1_2(text: str, meaning: Any) -> None:
    found = value(text)
    assert found == meaning
    assert type(found) is type(meaning)


def test_nan_is_a_number() -> None:
    assert math.isnan(value(".nan"))


def test_empty_files_are_empty_recipes() -> None:
    for text in ("", "# only a comment\n", "---\n"):
        assert parse(text, "r.yaml").data == {}


def test_positions_of_every_value() -> None:
    document = parse("a: 1\nstages:\n  - use: x\n    lr: 2\n", "r.yaml")
    assert document.origins["a",] == Origin("r.yaml", 1, 1)
    assert document.origins["stages", 0] == Origin("r.yaml", 3, 5)
    assert document.origins["stages", 0, "lr"] == Origin("r.yaml", 4, 5)
    assert str(document.origins["stages", 0, "lr"]) == "r.yaml:4:5"
    assert str(Origin("command line")) == "command line"
    assert dotted(("stages", 0, "lr")) == "stages.0.lr"


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read(file).data == {"a": 1}


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("a: 1\na: 2", "r.yaml:2:1  a", "is given twice"),
        ("a:\n  b: 1\n  b: 2", "r.yaml:3:3  a.b", "is given twice"),
        ("a: {b: 1, b: 2}", "r.yaml:1:11  a.b", "is given twice"),
        ("1: 2", "r.yaml:1:1", "key 1 is not text"),
        ("true: 2", "r.yaml:1:1", "key True is not text"),
        ("~: 2", "r.yaml:1:1", "key None is not text"),
        ("? [a]\n: 1", "r.yaml:1:3", "is not text"),
        ("- 1", "r.yaml:1:1", "a recipe is a mapping"),
        ("only text", "r.yaml:1:1", "a recipe is a mapping"),
        ("a: [1, 2", "r.yaml:2:1", "not valid YAML"),
        ("a:\n\t- 1", "r.yaml:2:1", "not valid YAML"),
        ("a: 'x\n", "r.yaml:2:1", "not valid YAML"),
        ("a: 1\n---\nb: 2", "r.yaml:2:1", "another document"),
        ("a: \x01", "r.yaml:1:4", "character U+0001 is not allowed"),
        ("a: é\nü: é\x00", "r.yaml:2:5", "character U+0000 is not allowed"),
        ("%YAML 1.1\n---\na: no", "r.yaml", "recipes are YAML 1.2"),
    ],
)
def test_mistakes_have_a_position(text: str, position: str, reason: str) -> None:
    message = refused(text)
    assert message.startswith(position)
    assert reason in message


def test_yaml_1_2_may_say_so() -> None:
    assert parse("%YAML 1.2\n---\na: no", "r.yaml").data == {"a": "no"}


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system [echo]",
        "a: !python/name:os.system x",
        "a: !include /etc/passwd",
        "a: !!binary aGk=",
        "a: !!set {x}",
        "a: !!timestamp {x: 1}",
        "<<: {a: 1}",
    ],
)
def test_tags_are_refused(text: str) -> None:
    assert "is not allowed; recipes hold plain data" in refused(text)


@pytest.mark.parametrize("text", ["a: !!int x", "a: !!bool maybe", "a: !!float 1.2.3"])
def test_standard_tags_that_lie(text: str) -> None:
    assert "r.yaml:1:4  a" in refused(text)


def test_number_with_too_many_digits() -> None:
    assert "r.yaml:1:4  a" in refused("a: " + "9" * 5000)


def test_anchors_and_bombs() -> None:
    bomb = "a: &a [x, x]\n" + "\n".join(f"b{i}: &b{i} [*a, *a, *a]" for i in range(30))
    assert "anchors and aliases are not allowed" in refused(bomb)
    assert "anchors and aliases are not allowed" in refused("a: *b")


@pytest.mark.parametrize("text", ["[" * 5000, "a: " + "{a: " * 3000, "- " * 3000])
def test_deep_nesting(text: str) -> None:
    assert "nested too deeply" in refused(text)


def test_nesting_that_only_the_walk_cannot_follow() -> None:
    deep = "a: " + "[" * 200 + "]" * 200
    with contextlib.suppress(RecipeError):
        assert parse(deep, "r.yaml").data


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    for content, reason in (
        (b"a: \xff", "is not UTF-8 text (byte 3)"),
        (b"a: 1 # " + b"x" * MAX_BYTES, "is larger than 1,000,000 bytes"),
    ):
        file.write_bytes(content)
        with pytest.raises(RecipeError) as caught:
            read(file, "shown.yaml")
        assert str(caught.value).startswith("shown.yaml\n")
        assert reason in str(caught.value)
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        read(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("3", 3),
        ("1e-5", 1e-5),
        ("", None),
        ("[1, 2]", [1, 2]),
        ("{use: a, b: 1}", {"use": "a", "b": 1}),
    ],
)
def test_values_of_the_command_line(text: str, meaning: Any) -> None:
    assert parse_value(text, "command line") == meaning


@pytest.mark.parametrize("text", ["[1", "!!int x", "[" * 5000, "&a 1"])
def test_bad_values_of_the_command_line(text: str) -> None:
    with pytest.raises(RecipeError, match="command line"):
        parse_value(text, "command line")


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_data_or_a_problem(text: str) -> None:
    with contextlib.suppress(RecipeError):
        assert isinstance(parse(text, "r.yaml").data, dict)
