"""The page of a comparison: pictures true to the numbers, nothing hidden, no script needed."""

from __future__ import annotations

import math
import re
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from xmodal.comparison.grid import Published
from xmodal.comparison.ranks import Overview, Profile, profiles
from xmodal.comparison.table import ComparisonTable
from xmodal.comparison.verdicts import Interval, PairResult, Rule
from xmodal.report import compare_cost, compare_pairs, compare_words, svg, text
from xmodal.report.compare_cells import columns, courses, scores, unfinished
from xmodal.report.compare_charts import course, curve_chart, profile_chart, profile_plane
from xmodal.report.compare_recipes import differences
from xmodal.report.compare_report import write_compare_report
from xmodal.report.page import OWN
from xmodal.report.svg import Axis, Style

from ..comparisons import TASKS, compared
from ..pages import Page
from ..paths import ROOT

HOSTILE = "<script>alert('x')</script> & \"$\\frac{1}$\""
PROTOCOL = "Clean protocol: epoch selected on validation, tested once; seeds 0–2; all training"
NUMBER = r"-?\d+(?:\.\d+)?"


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


def styles(table: ComparisonTable) -> dict[str, Style]:
    return {method: Style(i) for i, method in enumerate(table.methods)}


def points(path: str) -> list[tuple[float, float]]:
    """The corners of an SVG path."""
    values = [float(v) for v in re.findall(NUMBER, path)]
    return list(zip(values[::2], values[1::2], strict=True))


def paths(picture: str, kind: str) -> list[str]:
    """The ``d`` of all paths of a class, in order."""
    found = re.findall(r"<path ([^>]*)/>", picture)
    return [
        re.search(r' ?d="([^"]*)"', a)[1]  # type: ignore[index]
        for a in found
        if f'class="{kind}"' in a
    ]


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
    assert compare_words.percent(numbers.effect.value) in html
    assert "good is better than plain" in html
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


def test_many_methods_with_long_and_hostile_names(tmp_path: Path) -> None:
    names = [f"pare [mixer.beta_mix=0.{i}, selector=random]" for i in range(8)]
    methods = {name: 1 + 0.05 * i for i, name in enumerate([*names, HOSTILE])}
    table = compared(tmp_path / "cells", methods, ["car", "wine"], 2)
    html = written(tmp_path, table)
    assert HOSTILE not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; " in html
    assert all(html.count(name) > 5 for name in names)


def test_selection_on_test_and_published_numbers_are_kept_apart(tmp_path: Path) -> None:
    published = {"car": Published(source="Table 9", metric="error", errors={"theirs": 0.0123})}
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
    assert ">0.0123<" in after
    assert "Table 9" in after


# --- verdicts ----------------------------------------------------------------------------------


def test_verdict_rows_show_the_numbers_of_the_verdict(three: ComparisonTable) -> None:
    one = compare_words.judged(pair(three, "good", "plain"))
    numbers = one.pair.numbers
    assert numbers is not None
    assert one.word == "better"
    assert one.p_holm == text.probability(numbers.p_holm)
    assert one.interval == (
        f"{compare_words.percent(numbers.effect.low)} to "
        f"{compare_words.percent(numbers.effect.high)}"
    )
    assert one.way_out == ""
    assert one.reasons == one.pair.verdict.reasons


def test_what_an_inconclusive_pair_takes_stands_apart(three: ComparisonTable) -> None:
    one = compare_words.judged(pair(three, "plain", "alike"))
    assert one.word == "inconclusive"
    assert "more seeds" in one.way_out or "would settle it" in one.way_out
    assert one.way_out in one.pair.verdict.reasons
    assert [*one.reasons, one.way_out] == list(one.pair.verdict.reasons)


def test_what_all_pairs_take_is_said_once(tmp_path: Path) -> None:
    alike = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}
    table = compared(tmp_path / "cells", alike, TASKS[:6], noise=0.2)
    html = written(tmp_path, table)
    way_out = compare_words.headline(table).way_out
    assert "it takes 8 tasks, or fewer pairs" in way_out
    assert html.count("What it takes:") == 1
    assert html.count(way_out) == 1


def test_the_matrix_is_turned_for_the_other_side(tmp_path: Path) -> None:
    methods = {"a": 0.6, "b": 1.0, "c": 1.5, "d": 2.0}
    table = compared(tmp_path / "cells", methods, noise=0.01)
    assert table.comparison is not None
    rows = compare_words.matrix(table.comparison.pairs)
    assert rows is not None
    words = {(a, b): word for a, line in rows for b, word in zip("abcd", line, strict=True)}
    turned = {"better": "worse", "worse": "better"}
    assert words["a", "d"] == "better"
    for a, b in combinations("abcd", 2):
        assert words[b, a] == turned.get(words[a, b], words[a, b])
    assert all(words[m, m] == "" for m in "abcd")
    assert compare_words.matrix(table.comparison.pairs[:1]) is None
    assert compare_words.headline(table).more == "Better than the most others: a, than 3."


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


# --- performance profiles ----------------------------------------------------------------------


def share(profile: Profile, tau: float) -> float:
    """rho(tau) from the definition of the profile."""
    return max((s for t, s in zip(profile.taus, profile.shares, strict=True) if t <= tau))


def test_a_drawn_profile_is_the_profile(three: ComparisonTable) -> None:
    found = overview(three).profiles
    plane = profile_plane(found[0].tau_max)
    picture = profile_chart(found, styles(three))
    drawn = dict(re.findall(r'<g class="(m\d)">(.*?)</g>', picture))
    for profile in found:
        corners = points(paths(drawn[styles(three)[profile.method].name], "line")[0])
        assert all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise(corners))
        assert corners[0][0] == pytest.approx(plane.x.start, abs=0.06)
        assert corners[-1][0] == pytest.approx(plane.x.end, abs=0.06)
        for tau in np.exp(np.linspace(0, math.log(profile.tau_max), 200)):
            x = plane.x.at(tau)
            if min(abs(x - corner) for corner, _ in corners) < 0.2:
                continue  # within rounding of a step
            y = [y for corner, y in corners if corner <= x][-1]
            assert y == pytest.approx(plane.y.at(share(profile, tau)), abs=0.06)


def test_a_failed_run_never_enters_a_profile() -> None:
    level_MT = np.array([[0.0, 0.0], [0.5, np.inf]])
    found = profiles(("a", "b"), level_MT)
    picture = profile_chart(found, {"a": Style(0), "b": Style(1)})
    b = re.search(r'<g class="m2">(.*?)</g>', picture)
    assert b is not None
    plane = profile_plane(found[0].tau_max)
    top = min(y for _, y in points(paths(b[1], "line")[0]))
    assert top == pytest.approx(plane.y.at(0.5), abs=0.06)
    assert "nan" not in picture


# --- forest plots ------------------------------------------------------------------------------


def test_a_forest_row_stands_where_its_numbers_are(three: ComparisonTable) -> None:
    assert three.scores is not None
    rule, result = Rule(), pair(three, "good", "plain")
    drawn = compare_pairs.forest(result, three.scores, styles(three), rule)
    errors = three.scores
    d_TS = np.log(errors.of_method("good") / errors.of_method("plain"))
    axis = compare_pairs.forest_axis(result, list(d_TS), rule)
    assert axis.at(0) == compare_pairs.WIDTH / 2
    for t, (row, task) in enumerate(zip(drawn.rows[:-1], result.tasks, strict=True)):
        assert task.interval is not None
        assert task.mean is not None
        ends = points(paths(row.picture, "interval")[0])
        expected = [axis.at(task.interval.low), axis.at(task.interval.high)]
        assert [x for x, _ in ends] == pytest.approx(expected, abs=0.06)
        seeds = re.findall(rf'cx="({NUMBER})" cy="{NUMBER}" r="2.4" class="seed"', row.picture)
        assert [float(x) for x in seeds] == pytest.approx([axis.at(d) for d in d_TS[t]], abs=0.06)
        mean = re.search(rf'cx="({NUMBER})" cy="15" r="5" class="mark"', row.picture)
        assert mean is not None
        assert float(mean[1]) == pytest.approx(axis.at(task.mean), abs=0.06)
        rope = re.search(rf'<rect class="rope" x="({NUMBER})" .*? width="({NUMBER})"', row.picture)
        assert rope is not None
        width = axis.at(math.log(1.01)) - axis.at(-math.log(1.01))
        assert float(rope[2]) == pytest.approx(width, abs=0.06)
        assert "level 75 %" in row.note
    total = drawn.rows[-1]
    assert total.total
    assert result.numbers is not None
    corners = points(paths(total.picture, "total")[0])
    effect = result.numbers.effect
    found = min(corners)[0], corners[1][0], max(corners)[0]
    expected = [axis.at(v) for v in (effect.low, effect.value, effect.high)]
    assert list(found) == pytest.approx(expected, abs=0.06)


def test_the_mean_wears_the_sign_of_the_better_method(three: ComparisonTable) -> None:
    assert three.scores is not None
    drawn = compare_pairs.forest(pair(three, "good", "plain"), three.scores, styles(three), Rule())
    assert all('<g class="m1">' in row.picture for row in drawn.rows)
    turned = {"good": Style(1), "plain": Style(0), "alike": Style(2)}
    drawn = compare_pairs.forest(pair(three, "good", "plain"), three.scores, turned, Rule())
    assert all('<g class="m2">' in row.picture for row in drawn.rows)


def test_failed_runs_stand_at_the_end_of_the_axis(tmp_path: Path) -> None:
    table = compared(tmp_path / "cells", {"a": 1.0, "b": 1.0}, ["car"], failed={("a", "car", 0)})
    assert table.scores is not None
    (row,) = compare_pairs.forest(pair(table, "a", "b"), table.scores, styles(table), Rule()).rows
    x = re.findall(rf'cx="({NUMBER})"[^>]* class="seed failed"', row.picture)
    assert [float(v) for v in x] == [compare_pairs.WIDTH - compare_pairs.PAD]
    assert (row.effect, row.note) == ("no mean", "a failed in 1 of 3 runs")


@pytest.mark.parametrize("end", [0.021, 0.05, 0.1, 0.3, 0.8, 2.0, 5.0, 20.0])
def test_a_forest_axis_has_names_on_both_sides(end: float) -> None:
    ratios = compare_pairs.ratio_ticks(end)
    assert 3 <= len(ratios) <= 7
    assert min(ratios) < 1 < max(ratios)
    assert all(abs(math.log(r)) <= end for r in ratios)


# --- ranks -------------------------------------------------------------------------------------


def test_the_ranks_are_drawn_to_scale(three: ComparisonTable) -> None:
    found = overview(three)
    picture = compare_pairs.rank_chart(found, styles(three))
    strong = points(paths(picture, "axis strong")[0])
    axis = compare_pairs.rank_axis(3, strong[0][0])
    for name, rank in found.ranks.items():
        group = re.search(rf'<g class="{styles(three)[name].name}">(.*?)</g>', picture)
        assert group is not None
        assert points(paths(group[1], "line thin")[0])[0][0] == pytest.approx(
            axis.at(rank), abs=0.06
        )
    ruler = points(paths(picture, "ruler")[0])
    unit = (axis.end - axis.start) / 2
    assert ruler[1][0] - ruler[0][0] == pytest.approx(
        min(found.critical_difference, 2) * unit, abs=0.11
    )
    bars = [points(path) for path in paths(picture, "clique")]
    assert len(bars) == len(found.cliques)
    for bar, clique in zip(bars, found.cliques, strict=True):
        ends = [axis.at(found.ranks[name]) for name in clique]
        assert bar[0][0] == pytest.approx(min(ends) - 4, abs=0.06)
        assert bar[1][0] == pytest.approx(max(ends) + 4, abs=0.06)


def test_a_critical_difference_longer_than_the_axis_says_so() -> None:
    level_MT = np.array([[0.0], [1.0]])
    found = Overview(
        ("t",), {"a": 1.0, "b": 2.0}, None, 1.96, (), profiles(("a", "b"), level_MT), ()
    )
    picture = compare_pairs.rank_chart(found, {"a": Style(0), "b": Style(1)})
    assert "CD = 1.96, longer than the axis" in picture


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
    picture = curve_chart("car", found, styles(three))
    assert len(paths(picture, "band")) == len(paths(picture, "line")) == 3


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
    assert {m: c.encoded for m, c in found.items()} == {"a": 1000, "b": 2000, "free": 0}
    assert {m: c.ratio for m, c in found.items()} == {"a": "1.00×", "b": "2.00×", "free": "none"}
    assert found["b"].runs == 6
    spots, tasks = compare_cost.front(table)
    assert tasks == ("car", "wine")
    assert {s.method: s.error for s in spots} == pytest.approx({"a": 1, "b": 2, "free": 4})
    assert {s.method: s.front for s in spots} == {"a": True, "b": False, "free": True}
    picture = compare_cost.cost_chart(spots, styles(table))
    assert picture is not None
    assert "On the front: free and a" in picture


# --- pieces ------------------------------------------------------------------------------------


def test_no_two_methods_look_alike() -> None:
    looks = {(s.name, s.shape, s.dash) for s in map(Style, range(40))}
    assert len(looks) == 40
    for position in range(32):  # same colour: both other signs differ
        a, b = Style(position), Style(position + svg.COLOURS)
        assert a.name == b.name
        assert a.shape != b.shape
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


def test_axis_and_ticks() -> None:
    axis = Axis(1, 100, 10, 210, log=True)
    assert [axis.at(v) for v in (1, 10, 100, 1e9, math.inf, 0.1)] == [10, 110, 210, 210, 210, 10]
    assert Axis(3, 3, 0, 9).at(3) == 0
    for low, high in ((0.0, 1.0), (-3.0, 17.0), (0.0401, 0.0419), (0.0, 1e6)):
        found = svg.ticks(low, high)
        assert 3 <= len(found) <= 8
        assert low <= found[0] < found[-1] <= high
    for low, high in ((1.0, 1.3), (1.0, 50.0), (1e-3, 1e4), (900.0, 1100.0)):
        found = svg.log_ticks(low, high)
        assert 2 <= len(found) <= 8
        assert low * 0.999 <= found[0] < found[-1] <= high * 1.001


def test_svg_text_is_escaped() -> None:
    assert svg.text(1, 2, HOSTILE).count("<") == 2
    picture = svg.drawing(10, 10, '"><script>', [svg.text(0, 0, "<b>")])
    assert "<script" not in picture
    assert "<b>" not in picture


def test_negated_interval_mirrors_the_bar() -> None:
    axis = Axis(-1, 1, 0, 100)
    one = Interval(-0.2, -0.5, 0.1)
    assert axis.at((-one).high) == 100 - axis.at(one.low)


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
    style = ROOT.joinpath(*OWN.split("."), "templates", "report.css")
    found = re.findall(r"--(method-\d|surface): (#[0-9a-f]{6})", style.read_text())
    named = dict(found[theme * 9 : theme * 9 + 9])
    assert len(named) == 9
    surface = XYZ[1] @ linear(named.pop("surface")) + 0.05
    for colour in named.values():
        luminance = XYZ[1] @ linear(colour) + 0.05
        assert max(luminance, surface) / min(luminance, surface) >= 3
    for matrix in SEEN.values():
        labs = [lab(np.array(matrix) @ linear(colour)) for colour in named.values()]
        assert min(np.linalg.norm(a - b) for a, b in combinations(labs, 2)) > 17
