"""The HTML pages: complete in themselves, true to the numbers, safe with hostile names."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xmodal import text
from xmodal.data.preparation import RawForm
from xmodal.engine import checkpoint
from xmodal.report import COLOURS, Curve, curves, drawing, inline, save, write_report
from xmodal.report.charts import named
from xmodal.report.pictures import _edges, _fill, digits_of, scale_of
from xmodal.report.samples import probabilities, side_by_side
from xmodal.runs import Run

from ..pages import Page

HOSTILE = "<script>alert('x')</script> & $\\frac{1}$"


def check(path: Path) -> str:
    """Assert what holds for every page, and return its text."""
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    ids = [a["id"] for _, a in page.seen if "id" in a]
    for tag, attributes in page.seen:
        assert tag not in {"script", "link", "iframe", "object"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            value = attributes.get(name)
            own = ("data:image/png;base64,", "#")
            if name == "href" and "download" in attributes:
                assert (path.parent / str(value)).stat().st_size > 500
            else:
                assert value is None or value.startswith(own)
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in ids
        if tag == "img":
            assert attributes.get("alt")
        if attributes.get("role") == "img":
            assert attributes.get("aria-label")
        if tag == "th":
            assert attributes.get("scope") in {"row", "col"}
    assert len(set(ids)) == len(ids)
    return html


def facts(shape: tuple[int, ...], target: dict[str, Any], grid: tuple[int, ...]) -> dict[str, Any]:
    return {
        "task": {
            "name": "toy",
            "shape": list(shape),
            "target": target,
            "samples": {"train": 64, "validation": 16, "test": 16},
            "levels": [],
        },
        "backbone": {
            "name": "body",
            "modality": "image",
            "width": 8,
            "feature_width": 8,
            "patch": 4,
        },
        "source": {"name": "photos", "modality": "image", "target": target},
        "grid": list(grid),
    }


def metrics(epochs: int, offset: float = 0.0, mixing: bool = True) -> list[dict[str, Any]]:
    lines = []
    best = float("inf")
    for epoch in range(epochs):
        score = offset + 0.3 * 0.8**epoch + 0.01 * (epoch % 3)
        train = {"loss": 2 * score, "lr": 1e-4 * (1 - epoch / epochs), "gradient_norm": 1 + score}
        train["view0/target"] = score
        if mixing:
            parts = {"view1/target": 1.2 * score, "view1/source": 0.5 * score + 0.05}
            train |= parts | {"k": float(12 - 12 * epoch // epochs)}
        lines.append(
            {
                "stage": 0,
                "epoch": epoch,
                "total_steps": 4 * epoch + 4,
                "train": train,
                "validation": {"metric": score, "loss": score},
                "best": score < best,
                "seconds": 1.5,
                "trainable": 1234,
            }
        )
        best = min(best, score)
    return lines


def result(score: float = 0.123456, **changes: Any) -> dict[str, Any]:
    return {
        "task": "toy",
        "metric": "relative-l2",
        "better": "lower",
        "test": {"metric": score, "loss": 0.234567},
        "validation": {"metric": 0.111222, "at": [0, 6]},
        "selected_on": "validation",
        "protocol": "clean",
        "seed": 3,
        "steps": 40,
        "seconds": {"training": 75.2, "this_process": 80.0},
        "memory_bytes": 734003200,
        "parameters": {"total": 27500000, "trainable": 300000},
        "token_norm": {"source": 3.21, "target": 3.19},
        "device": "cpu",
        "notes": ["calibrated once"],
        **changes,
    }


def make(
    path: Path,
    about: dict[str, Any],
    samples: dict[str, Any] | None,
    epochs: int = 10,
    outcome: dict[str, Any] | None = None,
    classes: tuple[str, ...] = (),
    name: str = "toy run",
    mixing: bool = True,
) -> Run:
    path.mkdir(parents=True)
    run = Run(path)
    manifest = {"name": name, "facts": about, "classes": list(classes), "python": "3.12"}
    run.write("manifest.json", {**manifest, "libraries": {"torch": "2.11"}, "hash": "abc"})
    run.write("result.json", outcome or result())
    (path / "resolved.yaml").write_text(f"task: {name}\n", encoding="utf-8")
    for line in metrics(epochs, mixing=mixing):
        run.append_metrics(line)
    if samples is not None:
        checkpoint.save(path / "samples", samples)
    return run


def smooth(side: int, phase: float) -> torch.Tensor:
    axis = torch.linspace(0, 3.14159, side)
    return torch.sin(axis + phase)[:, None] * torch.sin(axis)[None]


def probes(samples: int, tokens: int, epochs: int, partners: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    kept = []
    for epoch in range(epochs):
        k = tokens * 3 // 4 * (epochs - epoch) // epochs
        origin = torch.full((samples, tokens), -1, dtype=torch.int32)
        for i in range(samples):
            slots = torch.randperm(tokens, generator=generator)[:k]
            taken = torch.randint(partners, (k,), generator=generator)
            origin[i, slots] = taken.to(torch.int32)
        kept.append({"stage": 0, "epoch": epoch, "k": k, "origin": origin})
    return kept


def fields(noise: float = 0.05) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    y = torch.stack([smooth(24, 0.2 * i) for i in range(3)])[:, None]
    x = torch.stack([(smooth(24, i) > 0.4).float() for i in range(3)])[:, None]
    prediction = y + noise * torch.randn(y.shape, generator=generator)
    photos = torch.randn(3, 3, 16, 16, generator=generator)
    return {
        "test": {"x": x, "y": y, "prediction": prediction},
        "train": {"x": x},
        "source": {"x": photos},
        "probes": [*probes(3, 36, 8, 16), {"stage": 0, "epoch": 8}],
        "images": {"permeability": 0},
    }


FIELD_FACTS = facts((1, 24, 24), {"kind": "dense", "size": 1, "shape": [24, 24]}, (6, 6))


def test_dense_fields_show_maps_tokens_and_every_number(tmp_path: Path) -> None:
    run = make(tmp_path / "run", FIELD_FACTS, fields())
    path = write_report(run)
    assert path == tmp_path / "run" / "report.html"
    html = check(path)
    for words in ("0.1235", "0.2346", "0.1112", "1 min 15 s", "734 MB", "300 k of 27.5 M", "cpu"):
        assert words in html
    assert 'value="0.123456"' in html
    assert "chosen on the validation split" in html
    assert "epoch 7" in html
    assert "permeability" in html
    assert html.count('class="tokens patches"') == 2 * 3 * 5
    assert "27 of 36 tokens replaced" in html
    assert "xmodal run resolved.yaml" in html
    assert "task: toy run" in html
    assert "calibrated once" in html
    assert "prefers-color-scheme: dark" in html


@pytest.mark.long
def test_standardised_labels_are_said_beside_losses_and_predictions(tmp_path: Path) -> None:
    run = make(tmp_path / "run", FIELD_FACTS, fields())
    said = "training loss is that of standardised labels"
    assert said not in check(write_report(run))
    for scale, expected in ((None, False), (torch.tensor([2.0]), True)):
        raw = RawForm((24, 24), (1, 24, 24), label_scale=scale)
        checkpoint.save(run.path / "inputs", {"raw": raw.state()})
        html = check(write_report(run))
        assert (said in html) == expected
        assert ("labels and predictions in the unit of the labels" in html) == expected


@pytest.mark.long
def test_the_page_is_there_as_markdown(tmp_path: Path) -> None:
    about = facts((9,), {"kind": "classification", "size": 2, "shape": []}, (9,))
    x = torch.arange(36.0).reshape(4, 9)
    test = {"x": x, "y": torch.tensor([0, 1, 1, 0]), "prediction": torch.eye(2)[[0, 1, 0, 0]]}
    said = {
        "verdict": "No better than always guessing <b>a|b</b>",
        "interval": {"low": 0.1, "high": 0.2, "units": 45, "over": "groups"},
        "against": [{"words": "always guessing N", "metric": 0.5, "outcome": "worse"}],
    }
    outcome = result()
    outcome["test"] |= said
    outcome["advice"] = [{"code": "overfit", "text": "train less"}]
    run = make(tmp_path / "run", about, {"test": test}, outcome=outcome, classes=("no", "yes"))
    html = check(write_report(run))
    assert html.index("No better than always guessing &lt;b&gt;") < html.index('class="score"')
    text = (run.path / "report.md").read_text(encoding="utf-8")
    assert text.startswith(
        "# toy run\n\n**No better than always guessing &lt;b&gt;a\\|b&lt;/b&gt;.**"
    )
    assert (
        "**0.1235** (95\u00a0% interval: 0.100 to 0.200, over 45 groups); lower is better." in text
    )
    assert "- train less (overfit)" in text
    assert "train less" in html
    assert "| always guessing N | 0.5000 |" in text
    for figure in re.findall(r"\]\((.*?)\)", text):
        assert (run.path / figure).is_file()


@pytest.mark.long
def test_jargon_is_under_details(tmp_path: Path) -> None:
    jargon = "checkpoint: 0 missing, 0 unexpected"
    outcome = result(notes=["column 'a' read as a date", jargon])
    html = check(write_report(make(tmp_path / "run", FIELD_FACTS, fields(), outcome=outcome)))
    closed = html.index("<details>")
    assert html.index("column &#39;a&#39; read as a date") < closed
    for word in (jargon, "token norm", "Tokens replaced", "view 0", "Gradient norm", "k = "):
        assert html.index(word) > closed, word


@pytest.mark.long
def test_the_worst_and_columns_in_their_own_units(tmp_path: Path) -> None:
    about = facts((3,), {"kind": "regression", "size": 1, "shape": []}, (3,))
    raw = RawForm(
        (3,), (3,), mean=torch.tensor([100.0, 0, 5]), scale=torch.tensor([10.0, 1, torch.inf]),
        columns=("age", "sex", "site"), levels=((), ("f", "m"), ()), label_columns=("dose",),
    )  # fmt: skip
    x = torch.tensor([[1.0, 1, 0], [-2, float("nan"), 0]])
    kept = {"x": x, "y": torch.tensor([[3.0], [4]]), "prediction": torch.tensor([[3.5], [9]])}
    place = torch.arange(3)
    effect = torch.tensor([[0.1, 0.5, 0.0], [0.1, 0.7, 0.0]])
    samples = {
        "test": kept,
        "worst": {**kept, "index": torch.tensor([1233, 7])},
        "occlusion": {"effect": effect, "place": place, "measure": "rise", "index": place[:2]},
    }
    run = make(tmp_path / "run", about, samples)
    checkpoint.save(run.path / "inputs", {"raw": raw.state()})
    html = check(write_report(run))
    heads = re.findall(r'<th scope="col">(.*?)</th>', html)
    at = heads.index("truth")
    assert heads[at : at + 5] == ["truth", "prediction", "sex", "age", "site"]  # by effect
    assert ">1\u202f234</th><td>3.00</td><td>3.50</td><td>m</td><td>110</td><td>5.00</td>" in html
    assert ">8</th><td>4.00</td><td>9.00</td><td>–</td><td>80.0</td><td>5.00</td>" in html
    assert "Inputs are in their own units." in html


@pytest.mark.long
def test_selection_on_test_is_called_optimistic(tmp_path: Path) -> None:
    outcome = result(selected_on="test", protocol="published")
    html = check(write_report(make(tmp_path / "run", FIELD_FACTS, None, outcome=outcome)))
    assert "optimistic" in html
    assert "chosen on the validation split" not in html


@pytest.mark.long
@pytest.mark.parametrize("channels", [1, 2])
def test_series_classification_escapes_hostile_class_names(tmp_path: Path, channels: int) -> None:
    about = facts((channels, 60), {"kind": "classification", "size": 3, "shape": []}, (12,))
    x = torch.randn(4, channels, 60)
    samples = {
        "test": {"x": x, "y": torch.tensor([0, 1, 2, 1]), "prediction": torch.randn(4, 3)},
        "train": {"x": x[:3]},
        "source": {"x": torch.randint(0, 9, (3, 20), dtype=torch.int64)},
        "probes": probes(3, 12, 3, 20),
        "images": {},
    }
    outcome = result(notes=[HOSTILE], task=HOSTILE)
    run = make(
        tmp_path / "run", about, samples, outcome=outcome, classes=(HOSTILE, "b", "c"), name=HOSTILE
    )
    html = check(write_report(run))
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "(truth)" in html
    assert html.count('class="tokens strip"') == 2 * 3 * 3


@pytest.mark.long
def test_table_rows_are_a_table(tmp_path: Path) -> None:
    about = facts((9,), {"kind": "classification", "size": 2, "shape": []}, (9,))
    x = torch.arange(36.0).reshape(4, 9)
    test = {"x": x, "y": torch.tensor([0, 1, 1, 0]), "prediction": torch.eye(2)[[0, 1, 0, 0]]}
    samples = {"test": test, "train": {"x": x[:3]}, "probes": [], "images": {}}
    html = check(write_report(make(tmp_path / "run", about, samples, classes=("no", "yes"))))
    assert "3 more features are not shown" in html
    assert "no (100%) ✗" in html


@pytest.mark.parametrize(
    ("shape", "y", "prediction", "target"),
    [
        ((1, 30), torch.randn(2, 1, 50), torch.randn(2, 1, 50), ("dense", 1, [50])),
        ((3, 8, 8), torch.tensor([1, 0]), torch.randn(2, 2), ("classification", 2, [])),
        (
            (2, 30),
            torch.tensor([[1.0, 0, 1], [0, 0, 0]]),
            torch.randn(2, 3),
            ("multi-label", 3, []),
        ),
        ((5,), torch.randn(2, 2), torch.randn(2, 2), ("regression", 2, [])),
        ((1, 8, 8), torch.randn(2, 1), torch.randn(2, 1), ("regression", 1, [])),
    ],
)
def test_every_kind_of_label_has_a_page(
    tmp_path: Path, shape: tuple[int, ...], y: Any, prediction: Any, target: tuple[str, int, Any]
) -> None:
    kind, size, sides = target
    about = facts(shape, {"kind": kind, "size": size, "shape": sides}, ())
    test = {"x": torch.randn(2, *shape), "y": y, "prediction": prediction}
    samples = {"test": test, "train": {"x": torch.randn(2, *shape)}, "probes": [], "images": {}}
    html = check(write_report(make(tmp_path / "run", about, samples, mixing=False)))
    assert "Predictions" in html
    assert "Which tokens" not in html


def test_minimal_runs_still_get_a_page(tmp_path: Path) -> None:
    run = make(
        tmp_path / "zero", facts((4,), {"kind": "regression", "size": 1, "shape": []}, ()), None
    )
    (run.path / "metrics.jsonl").unlink()
    outcome = result(
        steps=0, validation={"metric": None, "at": []}, parameters={"total": 0, "trainable": 0}
    )
    run.write("result.json", outcome)
    assert "0.1235" in check(write_report(run))
    empty = Run(tmp_path / "empty")
    empty.path.mkdir()
    assert "no result yet" in check(write_report(empty))


def test_a_closed_form_epoch_and_values_that_are_not_finite(tmp_path: Path) -> None:
    run = make(tmp_path / "run", FIELD_FACTS, fields(), epochs=0, outcome=result(float("nan")))
    line = metrics(1, mixing=False)[0]
    run.append_metrics({**line, "train": {}})
    samples = fields()
    samples["test"]["prediction"][0, 0, 3, 4] = float("nan")
    samples["test"]["prediction"][1] = float("inf")
    checkpoint.save(run.path / "samples", samples)
    assert "not a number" in check(write_report(run))


@pytest.mark.long
def test_damaged_samples_cost_the_pictures_only(tmp_path: Path) -> None:
    run = make(tmp_path / "run", FIELD_FACTS, fields())
    (run.path / "samples" / "tensors.safetensors").write_bytes(b"broken")
    assert "0.1235" in check(write_report(run))


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = make(tmp_path / "run", FIELD_FACTS, fields())
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_the_same_samples_side_by_side_share_their_scales() -> None:
    near, far = fields(0.02), fields(0.3)
    maps = side_by_side([("near", near), ("far", far), ("without", {"images": {}})])
    assert len(maps) == 2  # no more samples than a reader looks at
    for i, one in enumerate(maps):
        assert one.heads == ["permeability", "Truth", "near", "far"]
        above, below = one.rows
        assert [bool(picture) for picture, _ in above.pictures] == [True] * 4
        assert [bool(picture) for picture, _ in below.pictures] == [False, False, True, True]
        truth = near["test"]["y"][i, 0]
        values = [truth, *(run["test"]["prediction"][i, 0] for run in (near, far))]
        _, (shared, _), (error, _) = one.bars
        assert shared.low == pytest.approx(min(float(v.min()) for v in values))
        assert shared.high == pytest.approx(max(float(v.max()) for v in values))
        assert error.low == 0
        near_by, far_off = (
            text.number(float((v - truth).norm() / truth.norm()), 3) for v in values[1:]
        )
        assert one.note == f"Relative L² error: near {near_by}, far {far_off}."
    other = fields()
    other["test"]["y"] = other["test"]["y"] + 1
    assert side_by_side([("near", near), ("other", other)]) == []
    assert side_by_side([("near", near)]) == []


@pytest.mark.parametrize(
    ("values", "digits"),
    [
        ([1.0, 2.0], 3),
        ([-1e-5, 1e-5], 3),
        ([1.7e9 - 20, 1.7e9 + 20], 10),  # 1.7e9 has 10 digits before the point, 40 has 2
        ([3.0, 3.00001], 7),
        ([5.0, 5.0], 3),
        ([float("nan")], 3),
        ([-1e308, 1e308], 3),
        ([1.0, 1.0 + 2**-52], 17),
    ],
)
def test_numbers_far_from_0_get_the_digits_that_differ(values: list[float], digits: int) -> None:
    assert digits_of(values) == digits


@pytest.mark.long
def test_labels_far_from_0_can_be_told_apart(tmp_path: Path) -> None:
    y = 1.7e9 + torch.tensor([-20.0, 0.0, 21.0], dtype=torch.float64)
    test = {"x": torch.zeros(3, 2), "y": y, "prediction": y + 1}
    target = {"kind": "regression", "size": 1, "shape": []}
    run = make(tmp_path / "run", facts((2,), target, (2,)), {"test": test})
    html = check(write_report(run))
    assert "1.699999980e9" in html
    assert "1.699999981e9" in html
    scale = scale_of([y.numpy()])
    assert text.number(scale.low, scale.digits) == "1.699999980e9"


def test_overlays_cover_exactly_the_chosen_tokens() -> None:
    mask = np.array([[True, True, False], [False, True, False]])
    assert _fill(mask) == "M0 0h2v1h-2zM1 1h1v1h-1z"
    drawn = [int(n) for n in re.findall(r"[hv](\d+)", _edges(mask))]
    assert sum(drawn) == 8  # the outline of three joined unit cells


def test_wide_ranges_are_logarithmic_with_plain_labels() -> None:
    chart = curves("loss", [Curve("a", [1, 2, 3], [100.0, 1.0, 0.01])])
    assert ">0.01<" in chart.svg
    assert ">100<" in chart.svg
    assert "mathdefault" not in chart.svg


def test_a_figure_follows_the_page_and_is_a_file_of_its_own(tmp_path: Path) -> None:
    lines = [Curve(HOSTILE, [1, 2], [1.0, 2.0], 1), Curve("b", [1, 2], [2.0, 1.0], 2)]
    chart = curves(HOSTILE, lines)
    shown = chart.svg
    assert "stroke: var(--series-1)" in shown
    for light, _ in COLOURS.values():
        assert light not in shown
    for unwanted in ("<script", "font-family", "metadata", "http", "<style", "xlink"):
        assert unwanted not in shown
    assert Page(shown).seen[0][1]["aria-label"] == chart.words
    svg, pdf, png = (save(chart.figure, tmp_path / "f" / f"x.{k}") for k in ("svg", "pdf", "png"))
    alone = svg.read_text()
    assert COLOURS["series-1"][0] in alone
    assert "var(--" not in alone
    assert ">b<" in alone  # a file of its own brings its legend
    assert ">b<" not in shown
    assert pdf.read_bytes().startswith(b"%PDF")
    assert b"/Subtype /Type3" not in pdf.read_bytes()  # publishers refuse these fonts
    assert png.read_bytes().startswith(b"\x89PNG")
    assert chart.svg == shown  # saving leaves the figure as it was
    before = pdf.read_bytes()
    assert save(curves(HOSTILE, lines).figure, pdf).read_bytes() == before


def test_no_two_colours_of_the_palette_are_mistaken() -> None:
    light = [colour for colour, _ in COLOURS.values()]
    assert len(set(light)) == len(light)


def test_two_figures_on_a_page_share_no_id() -> None:
    with drawing((2, 1)) as figure:
        (dots,) = figure.subplots().plot([1, 2], [1, 2], "o")
        named(dots, "dots", 3)
    page = Page(f"<main>{inline(figure, 'first')}{inline(figure, 'second')}</main>")
    ids = [a["id"] for _, a in page.seen if "id" in a]
    assert len(set(ids)) == len(ids) > 0
    assert sum(a.get("class") == "dots" for _, a in page.seen) == 2
    assert all((a["href"] or "")[1:] in ids for tag, a in page.seen if tag == "use")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("xmodal.text, xmodal.report", ("torch", "matplotlib", "numpy")),
        ("xmodal.report; xmodal.report.number(1.0)", ("torch", "matplotlib", "numpy")),
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code: str, absent: tuple[str, ...]) -> None:
    words = f"import sys, {code}; print([name for name in {absent} if name in sys.modules])"
    command = [sys.executable, "-c", words]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_matplotlib_waits_until_something_is_drawn() -> None:
    root = Path(__file__).parents[2]
    for file in [*root.glob("xmodal/**/*.py"), *root.glob("plugins/**/*.py")]:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in getattr(node, "names", ())]
            modules = [getattr(node, "module", None) or "", *names]
            assert not any(name.startswith("matplotlib") for name in modules), file


def test_numbers_read_well() -> None:
    assert text.number(0.0123456) == "0.01235"
    assert text.number(1.5e-7) == "1.500e−7"
    assert text.number(0.2) == "0.2000"
    assert text.number(-34567.8) == "−34568"
    assert text.number(0.0) == "0"
    assert text.number(12345) == "12\u202f345"
    assert text.duration(7384) == "2 h 03 min"
    assert text.size(3 * 2**30) == "3.22 GB"
    assert [text.size(n) for n in (None, 0, 999, 1000, 999_600, 1_360_000_000)] == [
        "–", "–", "999 B", "1.00 kB", "1.00 MB", "1.36 GB",
    ]  # fmt: skip
    assert [text.duration(s) for s in (None, 0.0002, 1.7, 42.1, 110)] == [
        "–", "< 1 ms", "1.7 s", "42.1 s", "1 min 50 s",
    ]  # fmt: skip
    assert text.count(87_800_000) == "87.8 M"


def test_distributions_stay_and_scores_become_shares() -> None:
    assert probabilities(np.array([0.25, 0.75]), True).tolist() == [0.25, 0.75]
    shares = probabilities(np.array([1000.0, 0.0, -5.0]), True)
    assert shares[0] == pytest.approx(1.0)
    assert shares.sum() == pytest.approx(1.0)
    assert probabilities(np.array([0.0]), False).tolist() == [0.5]


def test_matplotlib_settings_are_left_as_they_were(tmp_path: Path) -> None:
    import matplotlib

    before = json.dumps(dict(matplotlib.rcParams), default=str)
    write_report(make(tmp_path / "run", FIELD_FACTS, fields(), epochs=2))
    assert json.dumps(dict(matplotlib.rcParams), default=str) == before
