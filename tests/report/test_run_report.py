"""The HTML pages: complete in themselves, true to the numbers, safe with hostile names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xmodal.engine import checkpoint
from xmodal.report import text
from xmodal.report.charts import Line, curves
from xmodal.report.run_report import write_report
from xmodal.report.samples import probabilities
from xmodal.report.summary import write_summary
from xmodal.report.tokens import _edges, _fill
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
            assert value is None or value.startswith(("data:image/png;base64,", "#"))
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
        "backbone": {"name": "body", "modality": "image", "width": 8, "patch": 4},
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
    for words in ("0.1235", "0.2346", "0.1112", "1 min 15 s", "700 MiB", "300 k of 27.5 M", "cpu"):
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


def test_selection_on_test_is_called_optimistic(tmp_path: Path) -> None:
    outcome = result(selected_on="test", protocol="published")
    html = check(write_report(make(tmp_path / "run", FIELD_FACTS, None, outcome=outcome)))
    assert "optimistic" in html
    assert "chosen on the validation split" not in html


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


def test_table_rows_are_a_table(tmp_path: Path) -> None:
    about = facts((9,), {"kind": "classification", "size": 2, "shape": []}, (9,))
    x = torch.arange(36.0).reshape(4, 9)
    test = {"x": x, "y": torch.tensor([0, 1, 1, 0]), "prediction": torch.eye(2)[[0, 1, 0, 0]]}
    samples = {"test": test, "train": {"x": x[:3]}, "probes": [], "images": {}}
    html = check(write_report(make(tmp_path / "run", about, samples, classes=("no", "yes"))))
    assert "3 further features are not shown" in html
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


def test_damaged_samples_cost_the_pictures_only(tmp_path: Path) -> None:
    run = make(tmp_path / "run", FIELD_FACTS, fields())
    (run.path / "samples" / "tensors.safetensors").write_bytes(b"broken")
    assert "0.1235" in check(write_report(run))


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = make(tmp_path / "run", FIELD_FACTS, fields())
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_a_summary_ranks_runs_and_lists_unfinished_ones(tmp_path: Path) -> None:
    runs = [
        (
            "scratch",
            make(tmp_path / "a", FIELD_FACTS, fields(0.3), outcome=result(0.4), mixing=False),
        ),
        (HOSTILE, make(tmp_path / "b", FIELD_FACTS, fields(0.02), outcome=result(0.1))),
        ("late", make(tmp_path / "c", FIELD_FACTS, None)),
    ]
    (runs[2][1].path / "result.json").unlink()
    runs[2][1].set_state("interrupted")
    html = check(write_summary(runs, tmp_path / "out" / "summary.html", "Three ways"))
    assert "<script" not in html
    assert "Next is scratch with 0.4000 (+300\u00a0%)" in html
    assert "no result: interrupted" in html
    assert "12 → 2" in html
    assert "statistical significance" in html
    assert "method by method" in html
    rows = re.findall(r'<th scope="row"><span class="dot"', html)
    assert len(rows) == 3
    with pytest.raises(ValueError, match="at least one run"):
        write_summary([], tmp_path / "none.html", "none")


def test_a_summary_says_whose_scores_are_optimistic(tmp_path: Path) -> None:
    runs = [
        (name, make(tmp_path / name, FIELD_FACTS, None, outcome=result(selected_on=split)))
        for name, split in (("fair", "validation"), ("peeked", "test"))
    ]
    html = check(write_summary(runs, tmp_path / "s.html", "protocols"))
    assert "hence optimistic: peeked." in html
    assert "Selection relative-l2" in html


def test_higher_is_better_ranks_the_other_way(tmp_path: Path) -> None:
    runs = [
        (name, make(tmp_path / name, FIELD_FACTS, None, outcome=result(score, better="higher")))
        for name, score in (("low", 0.5), ("high", 0.9), ("broken", float("nan")))
    ]
    html = check(write_summary(runs, tmp_path / "s.html", "accuracy"))
    assert "high has the best test" in html
    assert "Next is low" in html


def test_overlays_cover_exactly_the_chosen_tokens() -> None:
    mask = np.array([[True, True, False], [False, True, False]])
    assert _fill(mask) == "M0 0h2v1h-2zM1 1h1v1h-1z"
    drawn = [int(n) for n in re.findall(r"[hv](\d+)", _edges(mask))]
    assert sum(drawn) == 8  # the outline of three joined unit cells


def test_wide_ranges_are_logarithmic_with_plain_labels() -> None:
    chart = curves("loss", [Line("a", [1, 2, 3], [100.0, 1.0, 0.01])])
    assert ">0.01<" in chart.svg
    assert ">100<" in chart.svg
    assert "mathdefault" not in chart.svg


def test_numbers_read_well() -> None:
    assert text.number(0.0123456) == "0.01235"
    assert text.number(1.5e-7) == "1.500e−7"
    assert text.number(0.2) == "0.2000"
    assert text.number(-34567.8) == "−34568"
    assert text.number(0.0) == "0"
    assert text.number(12345) == "12\u202f345"
    assert text.duration(7384) == "2 h 03 min"
    assert text.size(3 * 2**30) == "3.00 GiB"
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
