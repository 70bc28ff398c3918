"""The page of a comparison: pictures true to the numbers, nothing hidden, no script needed."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from xmodal import text
from xmodal.comparison.criteria import Rule
from xmodal.comparison.published import PublishedNumber
from xmodal.comparison.ranks import Overview, Profile, profiles
from xmodal.comparison.statistics import Interval
from xmodal.comparison.table import ComparisonTable
from xmodal.comparison.verdicts import PairResult, weigh
from xmodal.engine import checkpoint
from xmodal.report import COLOURS, Chart, write_compare_report
from xmodal.report import compare as compare_words
from xmodal.report import compare_cells as compare_cost
from xmodal.report import compare_figures as figures
from xmodal.report.charts import BAD, METHODS, MethodStyle, log_ticks
from xmodal.report.compare_cells import columns, course, courses, differences, scores, unfinished
from xmodal.report.samples import relative_error
from xmodal.report.ticks import ratio_ticks

from ..comparisons import TASKS, compared
from ..pages import Page

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert('x')</script> & \"$\\frac{1}$\""
PROTOCOL = "Clean protocol: epoch selected on validation, tested once; seeds 0–2; all training"


def written(tmp_path: Path, table: ComparisonTable, **options: Any) -> str:
    """Write the page, assert what holds for every page, and return its text."""
    path = write_compare_report(tmp_path / "pages" / "report.html", table, **options)
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)
    ids = [a["id"] for _, a in page.seen if "id" in a]
    assert len(set(ids)) == len(ids)
    for tag, attributes in page.seen:
        assert tag not in {"script", "link", "iframe", "object", "img"}
        assert not any(name.startswith("on") for name in attributes)
        href = attributes.get("href")
        if href is not None and href.startswith("#"):
            assert href[1:] in ids
        elif href is not None:
            assert (path.parent / unquote(href)).exists()
        if attributes.get("role") == "img":
            assert attributes.get("aria-label")
        if tag == "th":
            assert attributes.get("scope") in {"row", "col"}
    assert "nan" not in re.sub(r"<[^>]*>|nanmean|&lt;nan&gt;", "", html).lower().split()
    return html


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> ComparisonTable:
    """Three methods on eight tasks: one clearly better, two alike."""
    root = tmp_path_factory.mktemp("three")
    return compared(root / "cells", {"good": 0.8, "plain": 1.0, "alike": 1.001})


def styles(table: ComparisonTable) -> dict[str, MethodStyle]:
    return {method: MethodStyle(i) for i, method in enumerate(table.methods)}


def named(chart: Chart, kind: str) -> list[Any]:
    """What is drawn under this name, in order."""
    found = chart.figure.findobj(lambda artist: (artist.get_gid() or "").startswith(f"{kind}:"))
    return sorted(found, key=lambda artist: int(artist.get_gid().partition(":")[2]))


def points(line: Any) -> list[tuple[float, float]]:
    """The corners of a drawn line."""
    return [(float(x), float(y)) for x, y in line.get_xydata()]


def overview(table: ComparisonTable) -> Overview:
    assert table.comparison is not None
    assert table.comparison.overview is not None
    return table.comparison.overview


def pair(table: ComparisonTable, a: str, b: str) -> PairResult:
    assert table.comparison is not None
    return next(p for p in table.comparison.pairs if (p.a, p.b) == (a, b))


# --- the page ----------------------------------------------------------------------------------


def test_the_page_says_everything(tmp_path: Path, three: ComparisonTable) -> None:
    html = written(tmp_path, three)
    assert html.index('id="verdict"') < html.index('id="scores"') < html.index('id="effects"')
    assert three.command in html
    numbers = pair(three, "good", "plain").numbers
    assert numbers is not None
    assert text.percent(numbers.effect.value) in html
    assert "good is better than plain on these tasks" in html
    assert "this is about these tasks only: 1 family of tasks, 6 are needed" in html
    assert "other families, too" not in html
    for name in ("profiles", "ranks", "curves", "cost", "recipes", "provenance"):
        assert f'<h2 id="{name}"' in html
    assert "sum of car" in html
    captions = re.findall(r'<(?:figcaption|p class="caption")>(.*?)</', html, re.DOTALL)
    with_protocol = [c for c in captions if PROTOCOL in c]
    assert len(with_protocol) >= len(captions) - 1  # the area under a profile explains a column
    assert html == written(tmp_path, three)


def test_every_cell_has_its_recipe_once_and_its_command(
    tmp_path: Path, three: ComparisonTable
) -> None:
    html = written(tmp_path, three)
    for method in three.methods:
        assert html.count(f"A recipe that says {method} only once.") == len(three.tasks)
    for row in three.rows:
        assert row.command in html
    assert "<code>seed</code> 0, 1, 2" in html


def test_a_damaged_manifest_costs_only_what_it_says(tmp_path: Path) -> None:
    table = compared(tmp_path / "cells", {"a": 1.0, "b": 1.2}, ["car", "wine"], 1)
    for cell in table.cells[:2]:
        assert cell.directory is not None
        (cell.directory / "manifest.json").write_text("{")
    html = written(tmp_path, table)
    assert "sum of wine" in html
    assert "sum of car" not in html


@pytest.mark.long
def test_links_lead_to_the_cells_unless_the_page_travels(
    tmp_path: Path, three: ComparisonTable
) -> None:
    page = Page(written(tmp_path, three))
    links = [a["href"] for tag, a in page.seen if tag == "a" and not str(a["href"]).startswith("#")]
    assert len(links) == len(three.rows)
    assert all(str(href).endswith("report.html") for href in links)
    alone = Page(written(tmp_path, three, single_file=True))
    assert all(str(a["href"]).startswith("#") for tag, a in alone.seen if tag == "a")


@pytest.mark.parametrize("seeds", [1, 2])
def test_two_methods_one_task(tmp_path: Path, seeds: int) -> None:
    table = compared(tmp_path / "cells", {"a": 1.0, "b": 1.2}, ["car"], seeds)
    html = written(tmp_path, table)
    assert "No verdict." in html
    needed = "1 seed, 3 are needed" if seeds == 1 else "2 seeds, 3 are needed"
    assert needed in html
    assert ("level 50 %" in html) == (seeds == 2)


def test_nothing_done(tmp_path: Path) -> None:
    every = {(m, t, s) for m in "ab" for t in ("car", "wine") for s in range(2)}
    table = compared(tmp_path / "cells", {"a": 1.0, "b": 1.0}, ["car", "wine"], 2, missing=every)
    assert table.comparison is None
    html = written(tmp_path, table)
    assert "No verdict yet." in html
    assert "Clean protocol, nothing tested yet; seeds 0–1" in html
    assert html.count("2 queued") >= 4
    assert 'id="effects"' not in html


def test_nothing_can_run(tmp_path: Path) -> None:
    table = compared(tmp_path / "cells", {"a": 1.0}, ["car"], 1, skipped={("a", "car")})
    html = written(tmp_path, table)
    assert "mixer: this needs a grid of tokens" in html
    assert "No cell can run." in html


def test_failed_skipped_and_missing_cells_are_told(tmp_path: Path) -> None:
    methods = {"a": 0.8, "b": 1.0, "c": 1.1}
    table = compared(
        tmp_path / "cells",
        methods,
        failed={("b", "car", 1), ("c", "wine", 0), ("c", "wine", 1), ("c", "wine", 2)},
        missing={("a", "darcy", 2)},
        skipped={("c", "ecg")},
    )
    html = written(tmp_path, table)
    assert "NonFinite: the loss is &lt;nan&gt; at step 41" in html
    assert "\x1b" not in html
    assert "b failed in 1 of 3 runs" in html
    assert "∞" in html  # c has an infinite mean error over tasks
    found = {(m.method, m.task, m.seeds, m.word) for m in unfinished(table)}
    assert found == {
        ("b", "car", "1", "failed"),
        ("c", "wine", "0–2", "failed"),
        ("a", "darcy", "2", "queued"),
        ("c", "ecg", "0–2", "skipped"),
    }
    assert [m.word for m in unfinished(table)][:2] == ["failed", "failed"]
    assert "xmodal run methods/b tasks/car --scale cpu seed=1" in html


@pytest.mark.long
def test_many_methods_with_long_and_hostile_names(tmp_path: Path) -> None:
    names = [f"pare [mixer.beta_mix=0.{i}, selector=random]" for i in range(8)]
    methods = {name: 1 + 0.05 * i for i, name in enumerate([*names, HOSTILE])}
    table = compared(tmp_path / "cells", methods, ["car", "wine"], 2)
    html = written(tmp_path, table)
    assert HOSTILE not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; " in html
    assert all(html.count(name) > 5 for name in names)


def test_selection_on_test_and_published_numbers_are_kept_apart(tmp_path: Path) -> None:
    said = ("error", "theirs alone", "Table 9")
    published = [
        PublishedNumber("car", "theirs", "", "0.0123", 0.0123, *said),
        PublishedNumber("car", "a", "", "7.9", 0.079, *said),
        PublishedNumber("car", "a", "fraction=0.1", "8.1", 0.081, *said),
    ]
    table = compared(
        tmp_path / "cells",
        {"a": 1.0, "b": 1.2},
        ["car", "wine"],
        2,
        published=published,
        selected_on="test",
        protocol="published",
    )
    html = written(tmp_path, table)
    assert "Published protocol: epoch selected on the test split itself, so scores are" in html
    assert "the epoch was chosen on the test data" in html
    before, after = html.split('<h2 id="published"')
    assert "theirs" not in before
    rows = [re.findall(r"<t[dh][^>]*>([^<]*)<", row) for row in after.split("<tr>")[2:5]]
    assert [row[:3] for row in rows] == [
        ["car", "theirs", "0.0123"],
        ["car", "a", "7.9"],
        ["car", "a [fraction=0.1]", "8.1"],
    ]
    # Beside a number stands what was measured under the same name, never under another setting.
    measured = table.summary("a", "car")
    assert [row[4] for row in rows] == ["", text.mean_sd(measured.mean, measured.sd), ""]
    assert [bool(row[5]) for row in rows] == [False, True, False]  # the metric, where measured
    assert all(row[6:] == ["theirs alone", "Table 9"] for row in rows)


# --- verdicts ----------------------------------------------------------------------------------


def test_verdict_rows_show_the_numbers_of_the_verdict(three: ComparisonTable) -> None:
    one = compare_words.judged(pair(three, "good", "plain"))
    numbers = one.pair.numbers
    assert numbers is not None
    assert (one.word, one.kind) == ("better on these tasks", "better")
    assert one.p_holm == text.probability(numbers.p_holm)
    assert one.interval == (
        f"{text.percent(numbers.effect.low)} to {text.percent(numbers.effect.high)}"
    )
    assert one.way_out == ""
    assert one.reasons == one.pair.verdict.reasons


def test_what_an_inconclusive_pair_takes_stands_apart(three: ComparisonTable) -> None:
    one = compare_words.judged(pair(three, "plain", "alike"))
    assert one.word == "inconclusive"
    assert "with 3 seeds might show" in one.way_out
    assert one.way_out in one.pair.verdict.reasons
    assert [*one.reasons, one.way_out] == list(one.pair.verdict.reasons)


@pytest.mark.long
def test_what_all_pairs_take_is_said_once(tmp_path: Path) -> None:
    alike = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}
    table = compared(tmp_path / "cells", alike, TASKS[:6], noise=0.2)
    assert table.comparison is not None
    way_out = "about 40 tasks with 3 seeds might show a direction"
    pairs = tuple(
        replace(one, verdict=replace(one.verdict, reasons=(*one.verdict.reasons[:-1], way_out)))
        for one in table.comparison.pairs
    )
    table = replace(table, comparison=replace(table.comparison, pairs=pairs))
    html = written(tmp_path, table)
    assert compare_words.headline(table).way_out == way_out
    assert html.count("What it takes:") == 1
    assert html.count(way_out) == 1


def test_the_matrix_is_turned_for_the_other_side(tmp_path: Path) -> None:
    methods = {"a": 0.6, "b": 1.0, "c": 1.5, "d": 2.0}
    table = compared(tmp_path / "cells", methods, noise=0.01)
    assert table.comparison is not None
    rows = compare_words.matrix(table.comparison.pairs)
    assert rows is not None
    words = {(a, b): word for a, line in rows for b, word in zip("abcd", line, strict=True)}
    better, worse = "better on these tasks", "worse on these tasks"
    turned = {better: worse, worse: better}
    assert words["a", "d"] == better
    assert f'title="{better}"' in written(tmp_path, table)
    for a, b in combinations("abcd", 2):
        assert words[b, a] == turned.get(words[a, b], words[a, b])
    assert all(words[m, m] == "" for m in "abcd")
    assert compare_words.matrix(table.comparison.pairs[:1]) is None
    assert (
        compare_words.headline(table).more == "Most often better on these tasks: a (better than 3)."
    )


def test_an_interval_without_an_end_is_drawn_at_the_end_of_the_axis(tmp_path: Path) -> None:
    """Two families that disagree: the interval of their mean is longer than the scale."""
    table = compared(tmp_path / "cells", {"a": 0.5, "b": 1.0}, noise=0.01)
    assert table.scores is not None
    errors_MTS = table.scores.errors_MTS.copy()
    errors_MTS[0, :4] *= 10
    families = {task: "ab"[t < 4] for t, task in enumerate(table.scores.tasks)}
    scores_ = replace(table.scores, errors_MTS=errors_MTS, families=families)
    table = replace(table, scores=scores_, comparison=weigh(scores_))
    html = written(tmp_path, table)
    assert "−100.0 % to +∞ %" in html
    assert "Mean over families" in html
    one = pair(table, "a", "b")
    (total,) = named(figures.effects(one, scores_, styles(table), Rule()), "total")
    assert all(math.isfinite(x) for x, _ in total.get_xy())
    assert '"-inf"' in json.dumps(table.as_dict(), allow_nan=False)


# --- scores ------------------------------------------------------------------------------------


def test_best_is_marked_among_full_cells_only(tmp_path: Path) -> None:
    methods = {"a": 0.5, "b": 0.8, "c": 1.0}
    missing = {("a", "car", 2)}
    table = compared(tmp_path / "cells", methods, ["car", "wine"], missing=missing, noise=0.001)
    found = dict(scores(table, None))
    assert [cell.best for cell in found["a"]] == [False, True]
    assert [cell.best for cell in found["b"]] == [True, False]
    assert not any(cell.best for cell in found["c"])
    assert found["a"][0].missing == "1 queued"
    values = [row.test for row in table.rows if (row.method, row.task) == ("b", "car")]
    mean, sd = np.mean(values), np.std(values, ddof=1)
    assert found["b"][0].value == text.mean_sd(float(mean), float(sd))
    assert (found["b"][0].seeds, found["a"][0].seeds) == (3, 2)


def test_the_direction_of_a_metric_decides_who_is_best(tmp_path: Path) -> None:
    table = compared(tmp_path / "cells", {"a": 0.5, "b": 1.0}, ["car"], 2, better="higher")
    assert [cell.best for _, (cell,) in scores(table, None)] == [False, True]
    assert columns(table)[0].better == "higher"
    assert "car" in table.left_out
    assert "higher is better" in written(tmp_path, table)


def test_methods_are_shown_side_by_side_on_the_same_samples(tmp_path: Path) -> None:
    import torch

    table = compared(tmp_path / "cells", {"a": 1.0, "b": 1.2}, ["darcy"], 2)
    y = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for cell in table.cells:
        kept = {"test": {"x": y, "y": y, "prediction": y + 0.1}, "images": {"permeability": 0}}
        checkpoint.save(cell.run.path / "samples", kept)
    html = write_compare_report(tmp_path / "report.html", table).read_text(encoding="utf-8")
    page = Page(html)
    words = [a["alt"] for tag, a in page.seen if tag == "img" and "Colours" not in (a["alt"] or "")]
    assert len(words) == 2 * 6  # two samples; input, truth, two predictions, two errors
    assert "Prediction of b for test sample 2" in words
    assert all((a["src"] or "").startswith("data:") for tag, a in page.seen if tag == "img")
    assert 'id="fields"' in html


# --- performance profiles ----------------------------------------------------------------------


def share(profile: Profile, tau: float) -> float:
    """rho(tau) from the definition of the profile."""
    return max((s for t, s in zip(profile.taus, profile.shares, strict=True) if t <= tau))


def test_a_drawn_profile_is_the_profile(three: ComparisonTable) -> None:
    found = overview(three).profiles
    chart = figures.profiles(found, styles(three))
    (axes,) = chart.figure.axes
    assert axes.get_xscale() == "log"
    for profile, line in zip(found, named(chart, "profile"), strict=True):
        assert line.get_color() == styles(three)[profile.method].colour
        assert line.get_drawstyle() == "steps-post"
        corners = points(line)
        assert corners[0][0] == axes.get_xlim()[0] == 1
        assert corners[-1][0] == axes.get_xlim()[1] == profile.tau_max
        for tau in np.exp(np.linspace(0, math.log(profile.tau_max), 200)):
            assert [y for x, y in corners if x <= tau][-1] == share(profile, tau)
    for profile, marks in zip(found, named(chart, "mark"), strict=True):
        at = points(marks)
        half = next(tau for tau, s in zip(profile.taus, profile.shares, strict=True) if s >= 0.5)
        assert sorted(set(at)) == sorted({(t, share(profile, t)) for t in (1.0, half)})


def test_a_failed_run_never_enters_a_profile() -> None:
    level_MT = np.array([[0.0, 0.0], [0.5, np.inf]])
    found = profiles(("a", "b"), level_MT)
    chart = figures.profiles(found, {"a": MethodStyle(0), "b": MethodStyle(1)})
    assert max(y for _, y in points(named(chart, "profile")[1])) == 0.5
    assert "nan" not in chart.svg


# --- forest plots ------------------------------------------------------------------------------


def test_an_effect_stands_where_its_numbers_are(three: ComparisonTable) -> None:
    assert three.scores is not None
    rule, result = Rule(), pair(three, "good", "plain")
    chart = figures.effects(result, three.scores, styles(three), rule)
    d_TS = np.log(three.scores.of_method("good") / three.scores.of_method("plain"))
    low, high = chart.figure.axes[0].get_xlim()
    assert -low == high >= figures.effects_end(result, list(d_TS), rule)
    words = figures.effect_rows(result, rule)
    intervals, seeds = named(chart, "interval"), named(chart, "seed")
    assert len(intervals) == len(seeds) == len(result.tasks) == len(words) - 1
    for t, task in enumerate(result.tasks):
        assert task.interval is not None
        assert points(intervals[t]) == [(task.interval.low, t), (task.interval.high, t)]
        assert [x for x, _ in points(seeds[t])] == pytest.approx(
            list(d_TS[three.scores.tasks.index(task.task)])
        )
        assert all(abs(y - t) < 0.5 for _, y in points(seeds[t]))
        assert "level 75 %" in words[t].note
    for row in words:
        for one in (row.name, row.effect, row.interval, row.note):
            assert one in chart.svg
            assert one in chart.words
    (marks,) = named(chart, "mark")
    assert points(marks) == [(task.mean, t) for t, task in enumerate(result.tasks)]
    (rope,) = named(chart, "rope")
    assert rope.get_x() == pytest.approx(-math.log(1.01))
    assert rope.get_width() == pytest.approx(2 * math.log(1.01))
    assert points(named(chart, "zero")[0])[0][0] == 0
    assert result.numbers is not None
    (total,) = named(chart, "total")
    effect, last = result.numbers.effect, len(result.tasks)
    corners = [(float(x), float(y)) for x, y in total.get_xy()]
    assert corners[0] == (effect.low, last)
    assert corners[1][0] == corners[3][0] == effect.value
    assert corners[2] == (effect.high, last)


def test_the_mean_wears_the_sign_of_the_better_method(three: ComparisonTable) -> None:
    from matplotlib.colors import to_hex

    assert three.scores is not None
    for looks in (styles(three), {"good": MethodStyle(1), "plain": MethodStyle(0)}):
        chart = figures.effects(pair(three, "good", "plain"), three.scores, looks, Rule())
        good = looks["good"]
        (marks,) = named(chart, "mark")
        assert (marks.get_color(), marks.get_marker()) == (good.colour, good.marker)
        (total,) = named(chart, "total")
        assert to_hex(total.get_facecolor()) == good.colour
    looks = styles(three)
    chart = figures.effects(pair(three, "plain", "alike"), three.scores, looks, Rule())
    means = [task.mean or 0.0 for task in pair(three, "plain", "alike").tasks]
    plain, alike = named(chart, "mark")
    assert [x for x, _ in points(plain)] == [m for m in means if m <= 0]
    assert [x for x, _ in points(alike)] == [m for m in means if m > 0]
    assert (plain.get_color(), alike.get_color()) == tuple(
        looks[m].colour for m in ("plain", "alike")
    )


def test_failed_runs_stand_at_the_end_of_the_axis(tmp_path: Path) -> None:
    table = compared(tmp_path / "cells", {"a": 1.0, "b": 1.0}, ["car"], failed={("a", "car", 0)})
    assert table.scores is not None
    result = pair(table, "a", "b")
    chart = figures.effects(result, table.scores, styles(table), Rule())
    (dots,) = named(chart, "seed-failed")
    d_TS = np.log(table.scores.of_method("a") / table.scores.of_method("b"))
    end = figures.effects_end(result, list(d_TS), Rule())
    assert [x for x, _ in points(dots)] == [pytest.approx(end)]
    assert dots.get_color() == BAD
    assert len(points(named(chart, "seed")[0])) == 2
    (row,) = figures.effect_rows(result, Rule())
    assert (row.effect, row.note) == ("no mean", "a failed in 1 of 3 runs")


@pytest.mark.parametrize("end", [0.021, 0.05, 0.1, 0.3, 0.8, 2.0, 5.0, 20.0])
def test_a_forest_axis_has_names_on_both_sides(end: float) -> None:
    ratios = ratio_ticks(end)
    assert 3 <= len(ratios) <= 7
    assert min(ratios) < 1 < max(ratios)
    assert all(abs(math.log(r)) <= end for r in ratios)
    gaps = [math.log(b / a) for a, b in itertools.pairwise(ratios)]
    assert min(gaps) >= 0.1 * 2 * end  # labels do not touch


# --- ranks -------------------------------------------------------------------------------------


def test_the_ranks_are_drawn_to_scale(three: ComparisonTable) -> None:
    found = overview(three)
    chart = figures.ranks(found, styles(three))
    assert chart.figure.axes[0].get_xlim() == (1, 3)
    assert [x for x, _ in points(named(chart, "axis")[0])] == [1, 3]
    for name, line in zip(three.methods, named(chart, "rank"), strict=True):
        assert line.get_color() == styles(three)[name].colour
        assert points(line)[0][0] == points(line)[1][0] == found.ranks[name]
        assert f">{found.ranks[name]:.2f}<" in chart.svg
    (ruler,) = named(chart, "ruler")
    length = points(ruler)[1][0] - points(ruler)[0][0]
    assert length == pytest.approx(min(found.critical_difference, 2))
    bars = [points(bar) for bar in named(chart, "clique")]
    assert len(bars) == len(found.cliques) > 0
    for bar, clique in zip(bars, found.cliques, strict=True):
        ends = [found.ranks[name] for name in clique]
        assert min(ends) - 0.05 < bar[0][0] < min(ends)
        assert max(ends) < bar[1][0] < max(ends) + 0.05


def test_a_critical_difference_longer_than_the_axis_says_so() -> None:
    level_MT = np.array([[0.0], [1.0]])
    found = Overview(
        ("t",), {"a": 1.0, "b": 2.0}, None, 1.96, (), profiles(("a", "b"), level_MT), ()
    )
    chart = figures.ranks(found, {"a": MethodStyle(0), "b": MethodStyle(1)})
    assert "CD = 1.96, longer than the axis" in chart.svg
    assert [x for x, _ in points(named(chart, "ruler")[0])] == [1, 2]


# --- learning curves ---------------------------------------------------------------------------


def test_a_course_is_mean_and_range_over_seeds() -> None:
    made = course("a", [{1: 1.0, 2: 0.5, 3: 0.4}, {1: 3.0, 2: 0.7}])
    assert made is not None
    assert made.epochs == (1, 2)
    assert made.mean == pytest.approx((2.0, 0.6))
    assert (made.low, made.high) == ((1.0, 0.5), (3.0, 0.7))
    assert course("a", []) is None
    assert course("a", [{1: math.nan}]) is None


def test_curves_end_at_the_scores_of_the_runs(three: ComparisonTable) -> None:
    what, found, before = courses(three, "car")
    assert what == "validation error-rate, lower is better"
    assert before == {}
    assert [c.method for c in found] == list(three.methods)
    last = [
        cell.run.metrics()[-1]["validation"]["metric"]
        for cell in three.cells
        if (cell.method, cell.task) == ("good", "car")
    ]
    assert found[0].mean[-1] == pytest.approx(np.mean(last))
    assert (found[0].low[-1], found[0].high[-1]) == (min(last), max(last))
    chart = figures.learning_curves("car", what, found, styles(three), before)
    assert len(named(chart, "band")) == 3
    for c, line, mark in zip(found, named(chart, "course"), named(chart, "mark"), strict=True):
        assert points(line) == list(zip(c.epochs, c.mean, strict=True))
        assert points(mark) == points(line)[-1:]


# --- cost --------------------------------------------------------------------------------------


def test_the_front_is_what_nobody_beats() -> None:
    random = np.random.default_rng(3)
    error = {str(i): float(v) for i, v in enumerate(random.uniform(1, 2, 12))}
    cost = {str(i): float(v) for i, v in enumerate(random.uniform(1, 9, 12))}
    error["failed"], cost["failed"] = math.inf, 0.5
    error["twin"], cost["twin"] = error["3"], cost["3"]
    found = compare_cost.spots(error, cost)
    for spot in found:
        better = [o for o in found if o.error <= spot.error and o.cost <= spot.cost and o != spot]
        better = [o for o in better if (o.error, o.cost) != (spot.error, spot.cost)]
        assert spot.front == (not better and math.isfinite(spot.error))
    names = {spot.method: spot.front for spot in found}
    assert not names["failed"]
    assert names["twin"] == names["3"]


def test_cost_is_per_run_and_the_error_relative_to_the_best(tmp_path: Path) -> None:
    methods = {"a": 0.5, "b": 1.0, "free": 2.0}
    table = compared(tmp_path / "c", methods, ["car", "wine"], roles={"free": "trivial"}, noise=0.0)
    found = {c.method: c for c in compare_cost.costs(table, ("car", "wine"))}
    assert {m: c.encoded for m, c in found.items()} == {"a": 1000, "b": 2000, "free": None}
    assert {m: c.ratio for m, c in found.items()} == {"a": "1.00×", "b": "2.00×", "free": "–"}
    assert found["b"].runs == 6
    spots, tasks = compare_cost.front(table)
    assert tasks == ("car", "wine")
    assert {s.method: s.error for s in spots} == pytest.approx({"a": 1, "b": 2, "free": 4})
    assert {s.method: s.front for s in spots} == {"a": True, "b": False, "free": True}
    chart = figures.cost(spots, styles(table))
    assert chart is not None
    assert "On the front: free and a" in chart.svg
    marks = dict(zip(table.methods, (points(m)[0] for m in named(chart, "mark")), strict=True))
    assert marks["a"] == pytest.approx((1000, 1))
    assert marks["b"] == pytest.approx((2000, 2))
    (front,) = named(chart, "front")
    assert points(front)[:2] == [marks["free"], marks["a"]]
    assert chart.figure.axes[0].get_xlim()[0] < marks["free"][0] < 1000 / 1.2


# --- pieces ------------------------------------------------------------------------------------


def test_no_two_methods_look_alike() -> None:
    looks = {(s.colour, s.marker, s.dash) for s in map(MethodStyle, range(40))}
    assert len(looks) == 40
    for position in range(32):  # same colour: both other signs differ
        a, b = MethodStyle(position), MethodStyle(position + len(METHODS))
        assert a.colour == b.colour
        assert a.marker != b.marker
        assert a.dash != b.dash


def test_differences_are_named_by_their_place() -> None:
    one = {"seed": 0, "stages": [{"lr": 1.0, "clip": None}], "empty": []}
    two = {"seed": 1, "stages": [{"lr": 2.0, "clip": None}], "empty": []}
    assert differences([one, two]) == [("seed", "0, 1"), ("stages.0.lr", "1.0, 2.0")]
    assert differences([one, one]) == []


@pytest.mark.parametrize(
    ("mean", "sd", "shown"),
    [
        (0.009887, 0.00042, "0.00989 ± 0.00042"),
        (0.0130, 0.0135, "0.0130 ± 0.0135"),
        (12.34, 4.56, "12.3 ± 4.6"),
        (0.5, 1e-9, "0.5000 ± < 0.0001"),
        (0.0817, 0.0, "0.0817 ± 0"),
        (1.2e-5, 3e-6, "(1.20 ± 0.30)e−5"),
        (1234.5, 33.0, "1234 ± 33"),
        (0.25, None, "0.2500"),
        (None, None, "–"),
    ],
)
def test_mean_and_deviation_share_their_places(
    mean: float | None, sd: float | None, shown: str
) -> None:
    assert text.mean_sd(mean, sd) == shown


def test_words_for_numbers() -> None:
    assert [text.probability(p) for p in (0, 1e-9, 0.00049, 0.062, 0.75, 0.9999, 1)] == [
        "0", "< 0.0001", "0.00049", "0.062", "0.75", "> 0.999", "1.00",
    ]  # fmt: skip
    assert text.spans([2, 0, 1, 5, 7, 8]) == "0–2, 5, 7–8"
    assert text.listed(["a", "b", "c"]) == "a, b and c"


def test_ticks_are_few_and_round() -> None:
    for low, high in ((1.0, 1.3), (1.0, 50.0), (1e-3, 1e4), (900.0, 1100.0)):
        found = log_ticks(low, high)
        assert 2 <= len(found) <= 8
        assert low * 0.999 <= found[0] < found[-1] <= high * 1.001
    for low, high in ((0.0, 1.0), (-3.0, 17.0), (0.0401, 0.0419), (0.0, 1e6)):
        made = course("a", [{1: high, 2: (low + high) / 2, 3: low}])
        assert made is not None
        chart = figures.learning_curves("t", "", [made], {"a": MethodStyle(0)}, {})
        (axes,) = chart.figure.axes
        shown = [v for v in axes.get_yticks() if axes.get_ylim()[0] <= v <= axes.get_ylim()[1]]
        assert 3 <= len(shown) <= 8
        assert [v for v in axes.get_xticks() if 1 <= v <= 3] == [1, 2, 3]


def test_text_of_a_figure_is_escaped() -> None:
    looks = {HOSTILE: MethodStyle(0)}
    made = course(HOSTILE, [{1: 1.0, 2: 0.5}])
    assert made is not None
    picture = figures.learning_curves('"><script>', "<b>", [made], looks, {}).svg
    assert "<script" not in picture
    assert "<b>" not in picture
    level_MT = np.array([[0.0], [1.0]])
    methods = (HOSTILE, "b")
    found = Overview(
        ("t",), dict(zip(methods, (1.0, 2.0), strict=True)), None, 1.96, (),
        profiles(methods, level_MT), (),
    )  # fmt: skip
    picture = figures.ranks(found, {HOSTILE: MethodStyle(0), "b": MethodStyle(1)}).svg
    assert "<script" not in picture
    assert "$\\frac{1}$" in picture


def test_negated_interval_mirrors_the_bar() -> None:
    one = Interval(-0.2, -0.5, 0.1)
    assert ((-one).low, (-one).high) == (-one.high, -one.low)


@pytest.mark.long
def test_every_figure_is_a_file_for_a_paper(tmp_path: Path) -> None:
    methods = {"a b": 0.5, "a-b": 1.0, HOSTILE: 2.0}
    table = compared(tmp_path / "cells", methods, ["car", "wine"], 1)
    folder = tmp_path / "figures"
    write_compare_report(tmp_path / "report.html", table, figures_folder=folder)
    files = list(folder.iterdir())
    assert len({file.name.lower() for file in files}) == len(files)
    assert all(re.fullmatch(r"[A-Za-z0-9.=-]+\.(svg|pdf)", file.name) for file in files)
    for name in ("profiles", "ranks", "cost", "curves-car", "curves-wine", "effects-a-b-a-b-2"):
        assert (folder / f"{name}.svg").read_text().startswith("<?xml")
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    alone = (folder / "profiles.svg").read_text()
    assert "&lt;script&gt;" in alone  # the legend
    assert "<script" not in alone
    ids = re.findall(r' id="([^"]*)"', alone)
    assert len(set(ids)) == len(ids)


# --- colours -----------------------------------------------------------------------------------

SEEN = {  # Machado, Oliveira and Fernandes, IEEE TVCG 2009, severity 1, on linear RGB
    "normal": np.eye(3),
    "protan": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deutan": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritan": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}  # fmt: skip
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> Any:
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: Any) -> Any:
    xyz = np.clip(XYZ @ np.clip(rgb, 0, 1) / (0.9505, 1, 1.089), 0, None)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_are_told_apart_by_all_readers(theme: int) -> None:
    named = {
        name: pair[theme]
        for name, pair in COLOURS.items()
        if name == "surface" or name.startswith("method-")
    }
    assert len(named) == 9
    surface = XYZ[1] @ linear(named.pop("surface")) + 0.05
    for colour in named.values():
        luminance = XYZ[1] @ linear(colour) + 0.05
        assert max(luminance, surface) / min(luminance, surface) >= 3
    for matrix in SEEN.values():
        labs = [lab(np.array(matrix) @ linear(colour)) for colour in named.values()]
        assert min(np.linalg.norm(a - b) for a, b in combinations(labs, 2)) > 17


@pytest.mark.parametrize("unit", [1e-200, 1e-13, 1e200])
def test_ticks_and_errors_have_no_unit_of_their_own(unit: float) -> None:
    assert log_ticks(unit, 1.3 * unit) == pytest.approx([t * unit for t in log_ticks(1.0, 1.3)])
    y = np.array([3.0, 4.0]) * unit
    assert relative_error(y * 1.1, y) == pytest.approx(0.1)
