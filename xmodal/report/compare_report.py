"""The page of a comparison: the verdict first, then what it rests on, down to every recipe.

It shows what ``Table`` holds and what the run directories of its cells say, and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from xmodal.comparison.ranks import Overview
from xmodal.comparison.table import ComparisonTable
from xmodal.comparison.verdicts import Rule
from xmodal.report import compare_cells as cells
from xmodal.report import compare_charts as charts
from xmodal.report import compare_cost as cost
from xmodal.report import compare_pairs as pairs
from xmodal.report import compare_recipes as recipes
from xmodal.report import compare_words as words
from xmodal.report import text
from xmodal.report.compare_charts import Styles
from xmodal.report.page import write_page
from xmodal.report.svg import Style

OPEN = 3
"""So many pairs or kinds are unfolded; more are closed to begin with."""


@dataclass(frozen=True)
class Figure:
    """A picture with its title and what it shows; ``note`` may be empty."""

    title: str
    what: str
    svg: Markup
    note: str = ""


def write_compare_report(
    path: Path,
    table: ComparisonTable,
    *,
    rule: Rule | None = None,
    single_file: bool = False,
) -> Path:
    """Write the page of a comparison to ``path`` and return it.

    ``rule`` is the one that decided the verdicts (default: the default rule).
    ``single_file`` leaves out the links to the cells, for a page that is sent somewhere.
    """
    rule = rule or Rule()
    styles = {method: Style(i) for i, method in enumerate(table.methods)}
    context = {
        "title": words.heading(table),
        "table": table,
        "styles": styles,
        "caption": words.caption(table),
        "progress": words.progress(table),
        "rule": rule,
        "open": OPEN,
        "published": table.published,
        **_verdicts(table),
        **_pictures(table, styles, rule),
        **_cells(table, None if single_file else path),
        **_again(table),
    }
    return write_page(path, "compare.html.jinja", context)


def _verdicts(table: ComparisonTable) -> dict[str, Any]:
    comparison = table.comparison
    found = comparison.pairs if comparison else ()
    return {
        "headline": words.headline(table),
        "judged": words.by_word(found),
        "numbered": any(pair.numbers for pair in found),
        "matrix": words.matrix(found),
        "doubts": words.doubts(comparison.flags if comparison else ()),
    }


def _pictures(table: ComparisonTable, styles: Styles, rule: Rule) -> dict[str, Any]:
    comparison, scores = table.comparison, table.scores
    overview = comparison.overview if comparison else None
    forests = []
    if comparison and scores:
        forests = [
            (one.word, pairs.forest(one.pair, scores, styles, rule))
            for one in words.by_word(comparison.pairs)
            if one.pair.tasks
        ]
    found, tasks = cost.front(table)
    return {
        "forests": forests,
        "overview": overview,
        "friedman": _friedman(overview),
        "profiles": sorted(overview.profiles, key=lambda p: -p.area) if overview else (),
        "profile": charts.profile_chart(overview.profiles, styles) if overview else None,
        "small_profiles": _small(overview, styles) if overview else [],
        "ranks": pairs.rank_chart(overview, styles) if overview else None,
        "curves": _curves(table, styles),
        "front": found,
        "front_tasks": tasks,
        "cost_chart": cost.cost_chart(found, styles) if found else None,
    }


def _friedman(overview: Overview | None) -> str:
    if overview is None or overview.friedman_p is None:
        return ""
    p = text.probability(overview.friedman_p)
    return p if p.startswith("<") else f"= {p}"


def _small(overview: Overview, styles: Styles) -> list[dict[str, Any]]:
    """Profiles of pairs; with two methods that would be the large one again."""
    if len(overview.profiles) < 3:
        return []
    return [
        {"pair": pair, "svg": charts.profile_chart(pair, styles, small=True)}
        for pair in overview.pair_profiles
    ]


def _curves(table: ComparisonTable, styles: Styles) -> list[Figure]:
    found = []
    for task in table.tasks:
        what, courses, before = cells.courses(table, task)
        if not any(len(c.epochs) > 1 for c in courses):
            continue
        level = [c.method for c in courses if len(c.epochs) == 1]
        notes = [f"{m}: {text.plural(n, 'epoch')} before, not scored." for m, n in before.items()]
        if level:
            notes.append(f"Level line: {text.listed(level)}, scored once.")
        drawn = charts.curve_chart(f"{task}, {what}", courses, styles)
        found.append(Figure(task, what, drawn, " ".join(notes)))
    return found


def _cells(table: ComparisonTable, page: Path | None) -> dict[str, Any]:
    common = cost.common(table)
    made = {row.task for row in table.rows}
    return {
        "heads": cells.columns(table),
        "scores": cells.scores(table, page),
        "unfinished": cells.unfinished(table),
        "costs": cost.costs(table, common),
        "cost_tasks": common,
        "task_costs": [(t, cost.costs(table, (t,))) for t in table.tasks if t in made],
    }


def _again(table: ComparisonTable) -> dict[str, Any]:
    made, manifests = recipes.recipes(table), cells.manifests(table)
    return {
        "recipes": [(m, [r for r in made if r.method == m]) for m in table.methods],
        "design": recipes.design(table),
        "surroundings": recipes.surroundings(manifests),
        "data_sums": recipes.data_sums(manifests),
    }
