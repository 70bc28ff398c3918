"""The page of a comparison: first the verdict, then the numbers behind it, down to every recipe.

It shows the content of a ``ComparisonTable`` and of the run directories; it decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xmodal import text
from xmodal.comparison.criteria import EFFECT, Rule
from xmodal.comparison.fairness import Flag
from xmodal.comparison.outlook import banners
from xmodal.comparison.ranks import Overview
from xmodal.comparison.table import ComparisonTable
from xmodal.comparison.verdicts import HERE, PairResult
from xmodal.report import compare_cells as cells
from xmodal.report import compare_figures as figures
from xmodal.report.charts import Chart, MethodStyle, save
from xmodal.report.page import write_page

OPEN = 3
"""Up to this many pairs or kinds are shown unfolded; more start folded."""
ORDER = ("better", "worse", "equivalent", "inconclusive", "refused")
KINDS = {
    "mixed-conditions": "Different conditions",
    "mixed-metrics": "Different metrics",
    "selected-on-test": "Epoch chosen on the test data",
    "worse-than-trivial": "Worse than the strongest cheap answer",
    "uneven-compute": "Different compute",
    "edge-of-grid": "Best learning rate at the end of the search",
    "failed-runs": "Failed runs",
    "missing-runs": "Missing runs",
    "floored-errors": "Errors too small to distinguish from 0",
    "within-spread": "Difference within the spread over seeds",
}
MATRIX = 4
"""From this many methods on, the verdicts are also shown as a matrix."""


def write_compare_report(
    path: Path,
    table: ComparisonTable,
    *,
    rule: Rule | None = None,
    single_file: bool = False,
    figures_folder: Path | None = None,
) -> Path:
    """Write the page of a comparison to ``path`` and return it.

    ``rule`` is the rule that decided the verdicts (default: the default rule). ``single_file``
    leaves out the links to the cells, for a page that is sent to others. ``figures_folder`` gets
    every figure as SVG and PDF.
    """
    rule = rule or Rule()
    drawn = comparison_figures(table, rule)
    styles = method_styles(table)
    pairs = table.comparison.pairs if table.comparison else ()
    overview = table.comparison.overview if table.comparison else None
    spots, spot_tasks = cells.front(table)
    common, made = cells.common(table), {row.task for row in table.rows}
    recipes, manifests = cells.recipes(table), cells.manifests(table)
    context = {
        "title": heading(table),
        "table": table,
        "styles": styles,
        "caption": caption(table),
        "progress": progress(table),
        "banners": banners(table.cells),
        "rule": rule,
        "effect": EFFECT,
        "open": OPEN,
        "published": cells.beside_published(table),
        "charts": drawn,
        "learning": [chart for name, chart in drawn.items() if name.startswith("curves-")],
        "overview": overview,
        "friedman": _friedman(overview.friedman_p if overview else None),
        "profiles": sorted(overview.profiles, key=lambda p: -p.area) if overview else (),
        "small_profiles": _small_profiles(overview, styles),
        "front": spots,
        "front_tasks": spot_tasks,
        "forests": _forests(table, drawn, rule),
        "fields": cells.compared_fields(table),
        "headline": headline(table),
        "judged": by_word(pairs),
        "numbered": any(pair.numbers for pair in pairs),
        "matrix": matrix(pairs),
        "doubts": doubts(table.comparison.flags if table.comparison else ()),
        "heads": cells.columns(table),
        "scores": cells.scores(table, None if single_file else path),
        "unfinished": cells.unfinished(table),
        "costs": cells.costs(table, common),
        "cost_tasks": common,
        "task_costs": [(t, cells.costs(table, (t,))) for t in table.tasks if t in made],
        "recipes": [(m, [r for r in recipes if r.method == m]) for m in table.methods],
        "design": cells.design(table),
        "surroundings": cells.surroundings(manifests),
        "data_sums": cells.data_sums(manifests),
    }
    written = write_page(path, "compare.html.jinja", context)
    if figures_folder is not None:
        for name, chart in drawn.items():
            for kind in ("svg", "pdf"):
                save(chart.figure, figures_folder / f"{name}.{kind}")
    return written


def method_styles(table: ComparisonTable) -> dict[str, MethodStyle]:
    """The style of each method, the same on the page and in every figure."""
    return {method: MethodStyle(i) for i, method in enumerate(table.methods)}


def comparison_figures(table: ComparisonTable, rule: Rule | None = None) -> dict[str, Chart]:
    """Every figure of a comparison that the results allow, by its file name.

    ``effects-A-B`` for each pair, ``profiles``, ``ranks``, ``cost``, and ``curves-TASK``.
    """
    rule, styles = rule or Rule(), method_styles(table)
    found: dict[str, Chart] = {}
    if table.comparison and table.scores:
        for pair in table.comparison.pairs:
            if pair.tasks:
                found[_effects(table, pair)] = figures.effects(pair, table.scores, styles, rule)
        overview = table.comparison.overview
        if overview:
            found["profiles"] = figures.profiles(overview.profiles, styles)
            found["ranks"] = figures.ranks(overview, styles)
    cost = figures.cost(cells.front(table)[0], styles)
    if cost is not None:
        found["cost"] = cost
    files = _files(table.tasks)
    for task in table.tasks:
        what, courses, before = cells.courses(table, task)
        if any(len(c.epochs) > 1 for c in courses):
            found[f"curves-{files[task]}"] = figures.learning_curves(
                task, what, courses, styles, before
            )
    return found


def _effects(table: ComparisonTable, pair: PairResult) -> str:
    files = _files(table.methods)
    return f"effects-{files[pair.a]}-{files[pair.b]}"


def _files(names: Sequence[str]) -> dict[str, str]:
    """A piece of a file name for each name; all differ, and all are valid on file systems."""
    found: dict[str, str] = {}
    for position, name in enumerate(names):
        piece = re.sub(r"[^A-Za-z0-9.=]+", "-", name).strip("-.") or "method"
        piece = piece if len(piece) <= 60 else f"{piece[:29]}--{piece[-29:]}"
        taken = {other.lower() for other in found.values()}
        found[name] = f"{piece}-{position + 1}" if piece.lower() in taken else piece
    return found


def _forests(table: ComparisonTable, drawn: dict[str, Chart], rule: Rule) -> list[dict[str, Any]]:
    """Pairs with a figure and a table of their effects, settled pairs first."""
    if table.comparison is None:
        return []
    return [
        {
            "word": one.word,
            "pair": one.pair,
            "chart": drawn[_effects(table, one.pair)],
            "rows": figures.effect_rows(one.pair, rule),
        }
        for one in by_word(table.comparison.pairs)
        if _effects(table, one.pair) in drawn
    ]


def _friedman(p: float | None) -> str:
    shown = "" if p is None else text.probability(p)
    return shown if not shown or shown.startswith("<") else f"= {shown}"


def _small_profiles(overview: Overview | None, styles: figures.Styles) -> list[dict[str, Any]]:
    """Profiles of pairs; none for two methods, because the large profile shows the same."""
    if overview is None or len(overview.profiles) < 3:
        return []
    return [
        {"pair": pair, "chart": figures.profiles(pair, styles, small=True)}
        for pair in overview.pair_profiles
    ]


# --- what it says in words ---


@dataclass(frozen=True)
class Judged:
    """One pair as shown in the table of verdicts; numbers are empty if the verdict is refused."""

    pair: PairResult
    effect: str = ""
    interval: str = ""
    probability: str = ""
    probability_interval: str = ""
    p: str = ""
    p_holm: str = ""
    others: str = ""
    p_equivalent: str = ""
    reasons: tuple[str, ...] = ()
    way_out: str = ""

    @property
    def word(self) -> str:
        """The verdict."""
        return self.pair.verdict.word

    @property
    def kind(self) -> str:
        """The verdict without its limits."""
        return self.pair.verdict.kind


def judged(pair: PairResult) -> Judged:
    """A pair with its numbers as text, and its remedies separate from its reasons."""
    reasons, numbers = pair.verdict.reasons, pair.numbers
    if numbers is None:
        return Judged(pair, reasons=reasons)
    way_out = pair.remedies[0] if pair.verdict.word == "inconclusive" and pair.remedies else ""
    reasons = tuple(reason for reason in reasons if reason != way_out)
    effect, hit = numbers.effect, numbers.probability
    return Judged(
        pair,
        effect=text.percent(effect.value),
        interval=text.percents(effect.low, effect.high),
        probability=f"{hit.value:.2f}",
        probability_interval=f"{hit.low:.2f} to {hit.high:.2f}",
        p=text.probability(numbers.p),
        p_holm=text.probability(numbers.p_holm),
        others=(
            f"geometric mean {text.percent(numbers.geometric)}, "
            f"median {text.percent(numbers.median)}"
        ),
        p_equivalent=text.probability(numbers.p_equivalent_holm),
        reasons=reasons,
        way_out=way_out,
    )


def by_word(pairs: Sequence[PairResult]) -> list[Judged]:
    """All pairs, settled pairs first, otherwise in their order."""
    return sorted((judged(pair) for pair in pairs), key=lambda one: ORDER.index(one.kind))


@dataclass(frozen=True)
class Headline:
    """The verdict of the comparison. ``refused``: the reasons, if all pairs are refused.

    ``way_out`` tells what would settle the undecided pairs, if it is the same for all of them.
    """

    sentence: str
    more: str = ""
    way_out: str = ""
    refused: tuple[str, ...] = ()
    settled: bool = False


def headline(table: ComparisonTable) -> Headline:
    """The verdict in one or a few sentences."""
    if table.comparison is None:
        return Headline("No verdict yet.", "No finished run can be compared.")
    pairs = by_word(table.comparison.pairs)
    if not pairs:
        return Headline("No verdict.", "A verdict needs two methods.")
    if all(one.word == "refused" for one in pairs):
        reasons = dict.fromkeys(reason for one in pairs for reason in one.reasons)
        if len(reasons) > 2:
            return Headline("No verdict: all pairs are refused.", "The reasons are below.")
        return Headline("No verdict.", refused=tuple(f"{r[:1].upper()}{r[1:]}." for r in reasons))
    settled = [_sentence(one) for one in pairs if one.kind in ORDER[:3]]
    open_ = [one for one in pairs if one.kind not in ORDER[:3]]
    if not settled:
        many = text.plural(len(open_), "pair")
        ways = {one.way_out for one in open_}
        shared = ways.pop() if len(ways) == 1 and len(open_) > 1 else ""
        return Headline(f"Nothing is settled: {many} undecided.", way_out=shared)
    rest = f"{text.plural(len(open_), 'other pair')} undecided." if open_ else ""
    if len(settled) > MATRIX:
        share = f"{len(settled)} of {text.plural(len(pairs), 'pair')} settled."
        return Headline(share, _ahead(pairs), settled=True)
    return Headline(" ".join(settled), rest, settled=True)


def _sentence(one: Judged) -> str:
    a, b = one.pair.a, one.pair.b
    where = one.word.removeprefix(one.kind)
    if one.kind == "equivalent":
        return f"{a} and {b} are equivalent{where}."
    return f"{a} is {one.kind} than {b}{where}: error {one.effect} ({one.interval})."


def matrix(pairs: Sequence[PairResult]) -> list[tuple[str, list[str]]] | None:
    """The verdicts from the view of each row's method; None if too few, or if all are refused."""
    methods = list(dict.fromkeys(method for pair in pairs for method in (pair.a, pair.b)))
    if len(methods) < MATRIX or all(pair.verdict.word == "refused" for pair in pairs):
        return None
    turned = {"better": "worse", "worse": "better"}
    words: dict[tuple[str, str], str] = {}
    for pair in pairs:
        word, kind = pair.verdict.word, pair.verdict.kind
        words[pair.a, pair.b] = word
        words[pair.b, pair.a] = turned.get(kind, kind) + word.removeprefix(kind)
    return [(a, [words.get((a, b), "") for b in methods]) for a in methods]


def _ahead(found: Sequence[Judged]) -> str:
    """The methods that are better than the largest number of others, and that number."""
    counts: dict[str, int] = {}
    for one in found:
        if one.kind in ("better", "worse"):
            name = one.pair.a if one.kind == "better" else one.pair.b
            counts[name] = counts.get(name, 0) + 1
    most = max(counts.values(), default=0)
    if not most:
        return ""
    names = [name for name, count in counts.items() if count == most]
    where = HERE if any(one.word.endswith(HERE) for one in found) else ""
    return f"Most often better{where}: {text.listed(names)} (better than {most})."


def doubts(flags: Sequence[Flag]) -> list[tuple[str, bool, list[str]]]:
    """Flags by kind, refusing kinds first: the title, whether it refuses, the texts."""
    kinds = {kind: [flag for flag in flags if flag.kind == kind] for kind in KINDS}
    return [
        (title, kinds[kind][0].refuses, [flag.text for flag in kinds[kind]])
        for kind, title in KINDS.items()
        if kinds[kind]
    ]


# --- how the numbers were made ---


def caption(table: ComparisonTable) -> str:
    """How every number on the page was made; part of each caption."""
    cells = [cell for cell in table.cells if cell.directory is not None] or list(table.cells)
    parts = [_selection(table)]
    seeds = text.spans(cell.seed for cell in cells)
    parts.append(f"seed{'' if seeds.isdigit() else 's'} {seeds}" if cells else "no seeds")
    fractions = sorted({float(cell.resolved.get("fraction", 1.0)) for cell in cells})
    parts += _share(fractions, "training samples")
    labelled = sorted({float(cell.resolved.get("labelled", 1.0)) for cell in cells})
    if labelled != [1.0]:
        parts += _share(labelled, "labels")
    scales = sorted({cell.scale or "" for cell in cells})
    named = text.listed([scale or "of the recipes" for scale in scales])
    parts.append(f"scale {named}" if cells else "no scale")
    return "; ".join(parts) + "."


def _selection(table: ComparisonTable) -> str:
    protocols = sorted({row.protocol for row in table.rows})
    if not protocols:
        planned = {str(cell.resolved["protocol"]) for cell in table.cells if cell.resolved}
        names = text.listed(sorted(planned)) or "no"
        return f"{names[:1].upper()}{names[1:]} protocol, nothing tested yet"
    names = text.listed(protocols)
    names = f"{names[:1].upper()}{names[1:]} protocol"
    others = text.listed(sorted({row.selected_on for row in table.rows if not row.on_test}))
    if not any(row.on_test for row in table.rows):
        return f"{names}: epoch selected on {others}, tested once"
    if not others:
        return f"{names}: epoch selected on the test split itself, so scores are optimistic"
    methods = dict.fromkeys(row.method for row in table.rows if row.on_test)
    tasks = dict.fromkeys(row.task for row in table.rows if row.on_test)
    return (
        f"{names}: epoch of {text.listed(list(methods))} on {text.listed(list(tasks))} selected "
        f"on the test split itself, so those scores are optimistic; of the others on {others}, "
        "tested once"
    )


def _share(values: Sequence[float], of: str) -> list[str]:
    if not values or values == [1.0]:
        return [f"all {of}"]
    shown = text.listed([f"{100 * value:.3g} %" for value in values])
    return [f"{shown} of the {of}"]


def heading(table: ComparisonTable) -> str:
    """``pare and nft on 2 tasks``."""
    methods, tasks = table.methods, table.tasks
    who = text.listed(methods) if len(methods) <= 3 else f"{len(methods)} methods"
    where = tasks[0] if len(tasks) == 1 else text.plural(len(tasks), "task")
    return f"{who or 'No method'} on {where}"


def progress(table: ComparisonTable) -> str:
    """How many cells are done, and the states of the others."""
    words = [state.word for state in table.states]
    total = text.plural(len(words), "cell")
    if words and all(word == "done" for word in words):
        return f"All {total} done."
    others = [word for word in dict.fromkeys(words) if word != "done"]
    counts = [f"{words.count(word)} {word}" for word in ("done", *others)]
    return f"{total}: {', '.join(counts)}."
