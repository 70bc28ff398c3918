"""Renders a context into one self-contained HTML file, with templates and a style sheet.

A page contains everything that it shows; it fetches nothing and needs no script.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from xmodal import text
from xmodal.files import write_atomically
from xmodal.report.charts import COLOURS

TEMPLATES = "templates"
OWN = "xmodal.report"


def write_page(path: Path, template: str, context: Mapping[str, Any], package: str = OWN) -> Path:
    """Render ``template`` with ``context`` and write it to ``path`` atomically.

    The template is in the folder ``templates`` of ``package``; it may include this package's
    templates.
    """
    environment = Environment(
        loader=ChoiceLoader(
            [PackageLoader(name, TEMPLATES) for name in dict.fromkeys((package, OWN))]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=text.number, duration=text.duration, size=text.size, count=text.count
    )
    style = files(OWN).joinpath(TEMPLATES, "report.css").read_text(encoding="utf-8")
    style = "\n".join((*_variables(), style))
    html = environment.get_template(template).render(style=Markup(style), **context)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, html)
    return path


def _shown(value: Any) -> Any:
    """Text with its control characters shown; markup of ours stays as it is."""
    return text.visible(value) if type(value) is str else value


def _variables() -> tuple[str, str]:
    """The palette as style sheet variables, light and dark."""
    light, dark = (
        " ".join(f"--{name}: {pair[theme]};" for name, pair in COLOURS.items()) for theme in (0, 1)
    )
    return (
        f":root {{ color-scheme: light dark; {light} }}",
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}",
    )
