"""The page of a search: its verdict, the test score, and the leaderboard with its intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from xmodal import text
from xmodal.assess.judge import ends
from xmodal.report.charts import INK, MUTED, SERIES, drawing, inline, plain
from xmodal.report.page import write_page

if TYPE_CHECKING:
    from xmodal.search.board import Line
    from xmodal.search.fit import Fitted

PAGE = "report.html"
DRAWN = 15
LETTERS = 48


def write_fit_report(found: Fitted) -> Path:
    """Write the page of a search into its folder."""
    chosen = found.model / PAGE
    test = found.tested
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
            ("runs scored on the test samples", found.looks),
            ("time", text.duration(found.seconds)),
        ],
        "chart": {
            "title": f"Validation {found.metric}",
            "keys": (),
            "svg": _chart(found.entries[:DRAWN], found.metric),
            "note": "Dots: scores; lines: 95 % intervals; cheap answers in grey.",
        },
        "rows": [_row(place, entry) for place, entry in enumerate(found.entries, start=1)],
        "left_out": sorted((name, why.splitlines()[0]) for name, why in found.left_out.items()),
        "model": chosen.relative_to(found.folder).as_posix() if chosen.exists() else None,
        "folder": str(found.folder),
    }
    return write_page(found.folder / PAGE, "fit.html.jinja", context)


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


def _chart(entries: Sequence[Line], metric: str) -> Markup:
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
        return inline(figure, f"Validation {metric} of {len(known)} answers with 95 % intervals")


def _short(name: str) -> str:
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 3]}..."
