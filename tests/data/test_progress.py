"""Progress where there is no terminal: a line now and then, and one at the end."""

from __future__ import annotations

import pytest

from xmodal.data import progress
from xmodal.data.progress import meter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, which the test moves."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_line_every_twentieth_or_ten_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with meter("fields", 1000, unit="samples") as count:
        count(100)  # at once: too early for a line
        clock[0] = 2
        count(0)
        count(10)  # 1 %
        clock[0] = 13
        count(1)
        clock[0] = 14
        count(889)
    assert lines(capsys) == [
        "fields: 100 of 1000 samples (10%)",
        "fields: 111 of 1000 samples (11%)",
        "fields: 1000 of 1000 samples (100%)",
    ]


def test_bytes_that_go_on_where_they_stopped(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with meter("x.tar", 4_000_000, unit="bytes", start=1_000_000) as count:
        count(3_000_000)
    assert lines(capsys) == ["x.tar: 4.00 MB of 4.00 MB (100%)"]
    with meter("x.tar", None, unit="bytes") as count:
        count(1500)
    assert lines(capsys) == ["x.tar: 1.50 kB"]


def test_quiet_and_interrupted_work_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with meter("fields", 2, quiet=True) as count:
        count(2)
    with pytest.raises(KeyError), meter("fields", None):
        raise KeyError
    assert lines(capsys) == []
