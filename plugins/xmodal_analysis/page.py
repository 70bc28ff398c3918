"""The page of an analysis: self-contained, light and dark, in the style of a run's page."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from xmodal.engine.checkpoint import write_atomically
from xmodal.report import text
from xmodal.report.page import TEMPLATES

TEMPLATE = "analysis.html.jinja"


def write_page(path: Path, context: Mapping[str, Any]) -> Path:
    """Render the page into ``path``, in one step."""
    environment = Environment(
        loader=ChoiceLoader(
            [PackageLoader("xmodal_analysis", TEMPLATES), PackageLoader("xmodal.report", TEMPLATES)]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=text.number, duration=text.duration, size=text.size, count=text.count
    )
    style = files("xmodal.report").joinpath(TEMPLATES, "report.css").read_text(encoding="utf-8")
    html = environment.get_template(TEMPLATE).render(style=Markup(style), **context)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, html)
    return path
