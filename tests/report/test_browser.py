"""The page of a comparison in a browser without a network: quiet, whole, narrow and dark.

One start of Chromium shows the page in three frames and writes down what it measured there; a
second one shows that the same measurements catch a page that is broken.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from xmodal.comparison.published import PublishedNumber
from xmodal.report import write_compare_report

from ..comparisons import TASKS, compared

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH"),
]

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps"),
    *("--enable-logging=stderr", "--v=0", "--dump-dom", "--virtual-time-budget=5000"),
)
OFFLINE = ("--proxy-server=127.0.0.1:9", "--host-resolver-rules=MAP * ~NOTFOUND")
FRAMES = {"light": (1280, "light"), "dark": (1280, "dark"), "phone": (375, "light")}
MEASURE = """
onload = () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const view = frame.contentWindow, page = frame.contentDocument;
    const box = (e) => Math.round(e.getBoundingClientRect().height);
    const sections = {};
    for (const s of page.querySelectorAll("section")) sections[s.querySelector("h2").id] = box(s);
    const resources = view.performance.getEntriesByType("resource").map((r) => r.name);
    const style = (e, name) => view.getComputedStyle(e)[name];
    const marks = [...page.querySelectorAll("section svg .mark use")];
    found[frame.id] = {
      width: view.innerWidth,
      scroll: page.scrollingElement.scrollWidth,
      background: style(page.body, "backgroundColor"),
      ink: style(page.body, "color"),
      marks: [...new Set(marks.map((m) => style(m, "fill")))],
      sections,
      resources,
      pictures: [...page.querySelectorAll("svg[role=img]")].filter((s) => s.checkVisibility())
        .map((s) => Math.round(s.getBoundingClientRect().width)),
    };
  }
  document.querySelector("#measured").textContent = JSON.stringify(found);
};
"""


@dataclass(frozen=True)
class Seen:
    """What a browser measured in each frame, and what it wrote to its console."""

    frames: dict[str, dict[str, Any]]
    console: list[str]

    @property
    def problems(self) -> list[str]:
        """What no page may do."""
        found = list(self.console)
        for name, frame in self.frames.items():
            found += [f"{name}: fetched {resource}" for resource in frame["resources"]]
            if frame["scroll"] > frame["width"]:
                found.append(f"{name}: scrolls sideways")
        return found


def look(page: str, folder: Path) -> Seen:
    """Show a page wide and light, wide and dark, and on a phone."""
    assert CHROMIUM is not None
    frames = "".join(
        f'<iframe id="{name}" style="width: {width}px; height: 800px; border: 0; '
        f'color-scheme: {scheme}" srcdoc="{html.escape(page)}"></iframe>'
        for name, (width, scheme) in FRAMES.items()
    )
    file = folder / "frames.html"
    file.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><title>frames</title>{frames}'
        f'<pre id="measured"></pre><script>{MEASURE}</script>',
        encoding="utf-8",
    )
    command = [CHROMIUM, *FLAGS, *OFFLINE, f"--user-data-dir={folder / 'user'}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    measured = re.search(r'<pre id="measured">(.+?)</pre>', done.stdout)
    assert measured is not None, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Seen(json.loads(html.unescape(measured[1])), console)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten methods with long names on seven tasks: verdicts, failed, missing and skipped cells."""
    folder = tmp_path_factory.mktemp("page")
    names = [f"pare [mixer.beta_mix=0.{i}, selector=random]" for i in range(6)]
    methods = {name: 0.8 + 0.1 * i for i, name in enumerate([*names, "a", "b", "c", "trivial"])}
    table = compared(
        folder / "cells",
        methods,
        [*TASKS[:6], "openml/credit-approval-" + "long" * 12],
        failed={("b", "car", 1)},
        missing={("c", "wine", 2)},
        skipped={("c", "darcy")},
        roles={"trivial": "trivial"},
        published=[
            PublishedNumber("car", "theirs", "", "0.01", 0.01, "error", "theirs alone", "Table 9")
        ],
    )
    written = write_compare_report(folder / "report.html", table)
    return written.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def seen(page: str, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """The page as a browser shows it."""
    return look(page, tmp_path_factory.mktemp("browser"))


def test_no_complaint_no_request_nothing_scrolls_sideways(seen: Seen) -> None:
    assert seen.problems == []
    assert seen.frames["phone"]["width"] == 375


def test_every_section_is_there(seen: Seen, page: str) -> None:
    expected = ["verdict", "scores", "effects", "profiles", "ranks", "curves", "cost"]
    expected += ["published", "unfinished", "recipes", "provenance"]
    for name in FRAMES:
        sections = seen.frames[name]["sections"]
        assert list(sections) == expected
        assert all(height > 60 for height in sections.values())
        # One open pair, profiles, ranks, 7 learning curves, cost.
        assert len(seen.frames[name]["pictures"]) == 1 + 1 + 1 + 7 + 1
        assert all(width > 100 for width in seen.frames[name]["pictures"])
    assert "://" not in page


def test_dark_is_dark_and_light_is_light(seen: Seen) -> None:
    def brightness(colour: str) -> int:
        return sum(int(value) for value in re.findall(r"\d+", colour)[:3])

    light, dark = seen.frames["light"], seen.frames["dark"]
    assert brightness(light["background"]) > 600 > 150 > brightness(light["ink"])
    assert brightness(dark["background"]) < 150 < 600 < brightness(dark["ink"])
    assert len(light["marks"]) == len(dark["marks"]) == 8
    assert not set(light["marks"]) & set(dark["marks"])


def test_a_broken_page_is_caught(tmp_path: Path) -> None:
    broken = (
        '<!DOCTYPE html><meta charset="utf-8"><title>broken</title><body>'
        '<img src="http://nowhere.invalid/x.png" alt=""><div style="width: 500px">wide</div>'
        "<script>missing.thing = 1;</script></body>"
    )
    problems = "\n".join(look(broken, tmp_path).problems)
    assert "missing is not defined" in problems
    assert "http://nowhere.invalid/x.png" in problems
    assert "phone: scrolls sideways" in problems
    assert "light: scrolls sideways" not in problems
