"""The page of one run: what was measured, how training went, what was predicted and mixed."""

from __future__ import annotations

from pathlib import Path

from xmodal.report import facts as words
from xmodal.report import history
from xmodal.report.page import write_page
from xmodal.report.samples import shown
from xmodal.report.tokens import mixing
from xmodal.runs import Run

FILE = "report.html"


def write_report(run: Run) -> Path:
    """Write ``report.html`` into a run directory and return its path.

    Reads only the run directory; whatever the run has not produced (yet) is left out. Raises
    DataError for a damaged file.
    """
    manifest, result = run.read("manifest.json"), run.read("result.json")
    facts = manifest.get("facts", {})
    metrics = run.metrics()
    samples = words.kept_samples(run)
    context = {
        "name": manifest.get("name") or run.path.name,
        "task": result.get("task") or facts.get("task", {}).get("name", ""),
        "result": result,
        "selection": words.selection(result),
        "measured": words.measured(result),
        "setting": words.setting(facts),
        "notes": result.get("notes", []),
        "charts": history.charts(metrics, result),
        "numbers": history.table(metrics) if metrics else None,
        "shown": shown(samples, facts, manifest.get("classes", [])),
        "mixing": mixing(samples, facts),
        "recipe": words.recipe_text(run),
        "environment": words.environment(manifest),
    }
    return write_page(run.path / FILE, "run.html.jinja", context)
