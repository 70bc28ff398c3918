"""Text of messages: what is long is cut, and what cannot be seen is shown."""

from __future__ import annotations

import unicodedata

import pytest

from xmodal.errors import MOST_PROBLEMS, DataError, Problem, RecipeError
from xmodal.text import markdown, shortlist, shown, spreadsheet, visible


def test_a_long_list_is_cut() -> None:
    assert shortlist(["a", "b"]) == "a, b"
    assert shortlist(f"group{i}" for i in range(3000)) == (
        ", ".join(f"group{i}" for i in range(12)) + ", ... (3000)"
    )
    assert shortlist([1, "x" * 500], 1) == "1, ... (2)"
    assert shortlist(["x" * 500, "b"]) == f"{'x' * 80}... (500 characters), b"
    assert shortlist([]) == ""


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\0b\x7f\x9b", r"a\x00b\x7f\x9b"),
        ("safe\u202egpj.exe\u2066", r"safe\u202egpj.exe\u2066"),
        ("file\udcff", r"file\udcff"),
        ("\r\b\u2028\u2029", r"\r\x08\u2028\u2029"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("Größe 日本 \u202f1 family \U0001f468\u200d\U0001f469", None),
    ],
)
def test_what_cannot_be_seen_is_shown(text: str, seen: str | None) -> None:
    assert visible(text) == (seen or text)


def test_line_breaks_stay_in_a_message_and_go_from_a_name() -> None:
    assert visible("two\n\tlines") == "two\n\tlines"
    assert shown("two\n\tlines") == r"two\n\tlines"


def test_every_control_character_of_unicode_is_shown() -> None:
    controls = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) in ("Cc", "Cs")]
    line = visible("".join(controls), line_breaks=False)
    assert line.isascii()
    assert line.isprintable()


def test_an_error_does_not_steer_the_terminal() -> None:
    error = DataError("column '\x1b]0;title\x07'\nnext")
    assert str(error) == "column '\\x1b]0;title\\x07'\nnext"


def test_an_error_is_no_novel() -> None:
    assert len(str(DataError("x" * 10**6))) < 10_100
    problems = [Problem("r.yaml:1:1", f"key{i}", "is unknown") for i in range(3000)]
    error = RecipeError(problems)
    assert len(error.problems) == 3000
    assert f"... and {3000 - MOST_PROBLEMS} more" in str(error)
    assert str(error).endswith("3000 problems (exit 2)")


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("<script>alert(1)</script> & co", "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co"),
        ("a|b", r"a\|b"),
        ("[x](javascript:y) `z` *w*", r"\[x\](javascript:y) \`z\` \*w\*"),
        ("two\nlines", r"two\\nlines"),
        ("_em_ but snake_case", r"\_em\_ but snake_case"),
        ("# head", r"\# head"),
        ("- item", r"\- item"),
    ],
)
def test_a_name_is_no_markup(name: str, written: str) -> None:
    assert markdown(name) == written


@pytest.mark.parametrize("name", ["=1+1", "+x", "-cmd", "@SUM(A1)", "\t=1", "＝1"])
def test_a_name_is_no_formula(name: str) -> None:
    assert spreadsheet(name) == f"'{name}"


@pytest.mark.parametrize("text", ["-1", "+2.5e-3", "-inf", "a=b", "", "x-y", "1"])
def test_numbers_and_other_names_stay(text: str) -> None:
    assert spreadsheet(text) == text
