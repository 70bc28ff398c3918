"""The page of a run as Markdown, for wikis, issues and readers without a browser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xmodal.report.charts import Chart
from xmodal.report.samples import ShownSamples
from xmodal.text import markdown, number

MOST_ROWS = 60


def run_markdown(page: Mapping[str, Any]) -> str:
    """The Markdown of what ``write_report`` gives its page; figures are links to their files."""
    return "\n".join(_lines(page)) + "\n"


def _lines(page: Mapping[str, Any]) -> Iterator[str]:
    result = page["result"]
    yield f"# {markdown(page['name'])}\n"
    if page["banner"]:
        yield f"**{markdown(page['banner'])}**\n"
    elif page["verdict"]:
        yield f"**{markdown(page['verdict'])}**\n"
    if result:
        score = number(result["test"]["metric"])
        more = f" ({page['interval']})" if page["interval"] else ""
        yield f"Test {markdown(result['metric'])}: **{score}**{more}; {result['better']} is better."
    yield f"{markdown(page['selection'])}\n"
    if page["against"]:
        yield from _table(*page["against"])
    if page["advice"]:
        yield "## What next\n"
        yield from (f"- {markdown(one['text'])} ({one['code']})" for one in page["advice"])
        yield ""
    quality = page["quality"]
    if quality.charts or quality.table:
        yield f"## How good it is\n\nAll {page['tested']} test samples. {markdown(quality.note)}\n"
        yield from _charts(quality.charts, page["files"])
    if quality.table:
        yield from _table(*quality.table)
    if page["looking"]:
        yield "## What it looks at\n"
        yield from _charts([page["looking"]], page["files"])
    if page["groups"]:
        yield f"## Predictions\n\n{markdown(page['units'])}\n"
    for title, words, shown in page["groups"]:
        yield f"### {title}\n\n{words}\n"
        yield from _samples(shown, page["files"])
    if page["charts"]:
        yield "## Training\n"
        yield from _charts(page["charts"], page["files"])
    for title, notes in (("Notes", page["notes"]), ("Details", page["quieter"])):
        if notes:
            yield f"## {title}\n"
            yield from (f"- {markdown(line)}" for line in notes)
            yield ""
    pairs = [*page["measured"], *page["details"], *page["setting"]]
    if pairs:
        yield "## Numbers\n"
        yield from _table(["", ""], pairs)


def _charts(charts: Sequence[Chart], files: str) -> Iterator[str]:
    for chart in charts:
        yield f"![{markdown(chart.words)}]({files}/{chart.file}.svg)\n"
        if chart.note:
            yield f"{markdown(chart.title)}. {markdown(chart.note)}\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(map(markdown, heads))} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows[:MOST_ROWS]:
        yield f"| {' | '.join(map(markdown, row))} |"
    if len(rows) > MOST_ROWS:
        yield f"\n{number(len(rows) - MOST_ROWS)} more rows are on the page."
    yield ""


def _samples(shown: ShownSamples, files: str) -> Iterator[str]:
    """A group of samples: tables, charts, and the errors of what only the page can draw."""
    if shown.table:
        yield from _table(*shown.table)
    yield from _charts(shown.lines, files)
    if shown.maps:
        yield from _table(["sample", ""], [(row.name, row.note) for row in shown.maps.rows])
    if shown.cards:
        rows = []
        for card in shown.cards:
            said = [f"{one.label} {one.share:.0%}{' (truth)' if one.true else ''}"
                    for one in card.bars]  # fmt: skip
            said += [f"{name}: {p}, true {t}" for name, p, t in card.values]
            rows.append((card.name, "; ".join(said)))
        yield from _table(["sample", "prediction"], rows)
    if shown.note:
        yield f"{markdown(shown.note)}\n"
