"""Names out of somebody's data are text wherever they are shown: no formula, no markup, no HTML."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..pages import Page

Cli = Callable[..., Any]
NAMES = ("=1+1", "<script>x</script>|", "\x1b[31m_red_\u202e", "two\nlines", "[/red]", "$\\frac$")


@pytest.fixture
def table() -> None:
    """A table whose classes have hostile names, and whose first column has one too."""
    random = np.random.default_rng(0)
    with Path("t.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["=cmd|'<b>", "b", "y"])
        for number in range(120):
            label = number % len(NAMES)
            writer.writerow([*np.round(random.normal(size=2) + 3 * label, 3), NAMES[label]])


@pytest.mark.slow
@pytest.mark.usefixtures("table")
def test_hostile_names(xmodal: Cli) -> None:
    run = ("methods/nft", "arrays/row", "task.path=t.csv", "--scale", "smoke", "--directory", "r")
    done = xmodal("run", *run)
    assert done.code == 0, done.err
    assert not {"\x1b", "\u202e"} & {*done.out, *done.err}

    done = xmodal("predict", "r", "t.csv")
    assert done.code == 0, done.err
    header, *rows = csv.reader(io.StringIO(done.out))
    written = {"=1+1": "'=1+1", NAMES[2]: r"\x1b[31m_red_\u202e"}
    names = [written.get(name, name) for name in NAMES]
    assert sorted(header[1:]) == sorted(f"p({written.get(n, n)})".replace("'", "") for n in NAMES)
    assert {row[0] for row in rows} <= {*names}
    raw = json.loads(xmodal("predict", "r", "t.csv", "--json").out)["predictions"]
    assert [written.get(name, name) for name in raw] == [row[0] for row in rows]

    assert xmodal("export", "r", "--to", "hf", "--out", "e").code == 0
    card = Path("e/README.md").read_text()
    assert "<script>" not in card
    assert r"2 = &lt;script&gt;x&lt;/script&gt;\|, 3 = =1+1, 4 = \[/red\]" in card
    assert r"two\\nlines" in card
    assert r"=cmd\|'&lt;b&gt;" in card
    page = Path("r/report.html").read_text()
    assert "<script>" not in page
    assert not {"\x1b", "\u202e"} & {*page}
    assert Page(page)
