"""The page of a search: its verdict, the test score, and the leaderboard with its intervals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal import runs, text
from xmodal.assess.judge import ends
from xmodal.inference import ensemble
from xmodal.report.charts import INK, MUTED, SERIES, Chart, drawing, plain
from xmodal.report.page import write_page
from xmodal.report.run import FIGURES, save_all

if TYPE_CHECKING:
    from xmodal.search.board import Line
    from xmodal.search.fit import Fitted

PAGE = "report.html"
DRAWN = 15
LETTERS = 48


def write_fit_report(found: Fitted) -> Path:
    """Write the page of a search into its folder."""
    test, chart = found.tested, _chart(found.entries[:DRAWN], found.metric)
    context: dict[str, Any] = {
        "name": found.folder.name,
        "verdict": found.verdict,
        "metric": found.metric,
        "better": found.better,
        "test": test.metric,
        "interval": ends(test.interval).strip(),
        "sentence": test.sentence,
        "facts": [
            ("chosen", found.chosen.name),
            ("samples", ", ".join(f"{n:,} {name}" for name, n in found.samples.items())),
            ("test samples looked at", found.looked),
            ("time", text.duration(found.seconds)),
        ],
        "advice": found.advice,
        "chart": chart,
        "files": save_all([chart], found.folder / FIGURES),
        "rows": [_row(place, entry) for place, entry in enumerate(found.entries, start=1)],
        "left_out": sorted((name, why.splitlines()[0]) for name, why in found.left_out.items()),
        "pages": _pages(found),
        "folder": str(found.folder),
    }
    return write_page(found.folder / PAGE, "fit.html.jinja", context)


def _pages(found: Fitted) -> list[tuple[str, str]]:
    """The pages of the chosen model, or of the members of an ensemble: names and places."""
    together = (found.model / runs.ENSEMBLE).exists()
    members = ensemble.members(runs.Run(found.model)) if together else [found.model]
    pages = [one.resolve() / PAGE for one in members]
    top = found.folder.resolve()
    return [(p.parent.name, os.path.relpath(p, top)) for p in pages if p.exists()]


def _row(place: int, entry: Line) -> dict[str, Any]:
    wait = text.MISSING if entry.latency is None else f"{text.number(1e3 * entry.latency, 2)} ms"
    return {
        "place": place,
        "name": entry.name,
        "kind": "cheap" if entry.cheap else "fine-tuned",
        "score": text.number(entry.score, 3),
        "interval": ends(entry.interval).strip() or text.MISSING,
        "seconds": text.duration(entry.seconds),
        "size": text.size(entry.size),
        "wait": wait,
    }


def _chart(entries: Sequence[Line], metric: str) -> Chart:
    """Scores with intervals, the best one on top."""
    known = [entry for entry in entries if entry.score is not None]
    with drawing((9.0, 0.9 + 0.34 * len(known))) as figure:
        axes = figure.subplots()
        plain(axes, grid="x")
        for place, entry in enumerate(reversed(known)):
            colour = MUTED if entry.cheap else SERIES[0]
            if entry.interval is not None:
                low, high = entry.interval.low, entry.interval.high
                axes.plot([low, high], [place, place], color=colour, linewidth=2)
            axes.plot([entry.score], [place], "o", color=colour, markersize=6)
        axes.set_yticks(range(len(known)), [_short(entry.name) for entry in reversed(known)])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xlabel(metric)
    words = f"Validation {metric} of {len(known)} answers with 95 % intervals"
    note = "Dots: scores; lines: 95 % intervals; cheap answers in grey."
    return Chart(f"Validation {metric}", figure, words, note=note)


def _short(name: str) -> str:
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 3]}..."
