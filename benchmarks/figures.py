"""Measured figures beside their goals: printed as they come, then as a table and as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import xmodal


@dataclass
class Row:
    """One figure. ``reached`` is None where there is no goal, or none on this device."""

    section: str
    what: str
    figure: str
    goal: str = ""
    reached: bool | None = None
    value: Any = None


@dataclass
class Report:
    """The figures so far; prints each as it comes."""

    section: str = ""
    rows: list[Row] = field(default_factory=list)

    def add(
        self,
        what: str,
        value: Any,
        unit: str = "",
        at_most: float | None = None,
        at_least: float | None = None,
        wanted: str | None = None,
    ) -> None:
        """A figure and its goal: a limit, or, of a truth, the words for what is ``wanted``."""
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        goal, reached = "", None
        if at_most is not None:
            goal, reached = f"<= {at_most:g}", value <= at_most
        elif at_least is not None:
            goal, reached = f">= {at_least:g}", value >= at_least
        elif wanted is not None:
            goal, reached = wanted, value is True
            text = unit or ("yes" if value else "no")
            unit = ""
        row = Row(self.section, what, f"{text} {unit}".strip(), goal, reached, value)
        self.rows.append(row)
        mark = {True: "reached", False: "NOT REACHED", None: ""}[reached]
        print(f"  {what}: {row.figure}  {goal and f'(goal {goal})'} {mark}".rstrip(), flush=True)

    def table(self) -> str:
        """All figures as a Markdown table."""
        lines = ["| part | what | figure | goal | reached |", "|---|---|---|---|---|"]
        marks = {True: "yes", False: "**no**", None: ""}
        for row in self.rows:
            cells = (row.section, row.what, row.figure, row.goal, marks[row.reached])
            lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
        return "\n".join(lines)

    def write(self, out: Path, about: Mapping[str, str]) -> None:
        """All figures as JSON, with the surroundings they come from."""
        document = {"surroundings": about, "rows": [asdict(row) for row in self.rows]}
        out.write_text(json.dumps(document, indent=1), encoding="utf-8")


def surroundings(device: torch.device) -> dict[str, str]:
    """The device, and the versions of what computes."""
    found = {"python": platform.python_version(), "xmodal": xmodal.__version__}
    for name in ("torch", "triton", "transformers", "timm", "accelerate"):
        try:
            found[name] = version(name)
        except ImportError:
            found[name] = "not here"
    if device.type == "cuda":
        found["cuda"] = str(torch.version.cuda)
        found["device"] = torch.cuda.get_device_name(device)
    else:
        found["device"] = f"CPU, {torch.get_num_threads()} threads"
    return found
