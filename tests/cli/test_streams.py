"""Standard streams that are full, closed or have lost their reader; what steers terminals."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xmodal.cli import output, streams
from xmodal.cli.app import main

Cli = Callable[..., Any]
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")


@pytest.fixture
def broken() -> io.TextIOWrapper:
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def called(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["xmodal", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


LISTS = (("recipes", "list"), ("recipes", "list", "--json"), ("schema",), ("--help",))


@needs_full
@pytest.mark.parametrize("arguments", LISTS)
def test_results_that_cannot_be_written_are_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "stdout", FULL.open("w"))
    assert called(monkeypatch, *arguments) == 4
    sys.stdout.close()  # what could not be written is not tried again
    assert capsys.readouterr().err == "error: standard output: No space left on device\n"


@pytest.mark.parametrize("arguments", LISTS)
def test_a_reader_may_go(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    broken: Any,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.setattr(sys, "stdout", broken)
    assert called(monkeypatch, *arguments) == 0
    broken.close()
    assert capsys.readouterr().err == ""


@needs_full
@pytest.mark.parametrize("full", [True, False])
def test_messages_that_nobody_can_read_change_nothing(
    monkeypatch: pytest.MonkeyPatch, broken: Any, full: bool
) -> None:
    stream = FULL.open("w", buffering=1) if full else broken
    monkeypatch.setattr(sys, "stderr", stream)
    assert called(monkeypatch, "recipes", "list") == 0
    assert called(monkeypatch, "run", "nosuch") == 2
    stream.close()


def test_letters_that_a_terminal_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, "ascii", write_through=True))
    with streams.guarded():
        output.print_table(("Größe",), [])
    assert content.getvalue().startswith(rb"Gr\xf6\xdfe")


NAMES = {
    "\x1b[31mred": r"\x1b[31mred",
    "\u202eabc": r"\u202eabc",
    "a\0b\udcff": r"a\x00b\udcff",
    "[red]x[/]": "[red]x[/]",
    ":red_heart:": ":red_heart:",
}


@pytest.mark.parametrize(("name", "seen"), NAMES.items())
def test_names_do_not_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], name: str, seen: str
) -> None:
    output.print_table(("name",), [[name]], title=name)
    output.stderr().print(f"note: {name}")
    out, err = capsys.readouterr()
    assert [line.strip() for line in out.splitlines()] == [seen, "name", seen]
    assert err == f"note: {seen}\n"


def test_a_name_in_a_table_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("name",), [["a\nb"]])
    assert capsys.readouterr().out.splitlines()[1].strip() == r"a\nb"


def test_an_argument_does_not_steer_the_terminal(xmodal: Cli) -> None:
    done = xmodal("run", "\x1b[2J\u202ex")
    assert done.code == 2
    assert r"\x1b[2J\u202ex" in done.err
    assert "\x1b" not in done.err
