"""How to repeat a comparison: the recipe and command of every cell, and what they ran with."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML

from xmodal.comparison.grid import METHOD, Cell
from xmodal.comparison.table import ComparisonTable, by_hand
from xmodal.report import facts, text

Words = list[tuple[str, str]]


@dataclass(frozen=True)
class Recipe:
    """Cells of one method on one task: the first one's recipe, and what others have instead."""

    method: str
    task: str
    yaml: str
    differs: tuple[tuple[str, str], ...]
    commands: tuple[tuple[int, str], ...]
    directories: tuple[str, ...]


def recipes(table: ComparisonTable) -> list[Recipe]:
    """One entry for every method on every task that can run."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in table.cells:
        if cell.directory is not None:
            groups.setdefault((cell.method, cell.task), []).append(cell)
    order = [(m, t) for m in table.methods for t in table.tasks if (m, t) in groups]
    commands = {row.directory: row.command for row in table.rows}
    return [
        Recipe(
            method=method,
            task=task,
            yaml=_yaml(groups[method, task][0]),
            differs=tuple(differences([cell.resolved for cell in groups[method, task]])),
            commands=tuple(
                (cell.seed, commands.get(str(cell.directory)) or by_hand(cell))
                for cell in groups[method, task]
            ),
            directories=tuple(str(cell.directory) for cell in groups[method, task]),
        )
        for method, task in order
    ]


def _yaml(cell: Cell) -> str:
    """As the run wrote it; before it began, as it will."""
    written = facts.recipe_text(cell.run)
    if written:
        return written
    stream = io.StringIO()
    YAML().dump(dict(cell.resolved), stream)
    return stream.getvalue()


def differences(resolved: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Settings that are not the same in all recipes: the key, and its values in their order."""
    flat = [dict(_flat(recipe)) for recipe in resolved]
    keys = dict.fromkeys(key for recipe in flat for key in recipe)
    found = []
    for key in keys:
        values = [_shown(recipe.get(key)) for recipe in flat]
        if len(set(values)) > 1:
            found.append((key, ", ".join(values)))
    return found


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and value:
        for position, inner in enumerate(value):
            yield from _flat(inner, f"{key}.{position}" if key else str(position))
    else:
        yield key, value


def surroundings(manifests: Sequence[tuple[str, Mapping[str, Any]]]) -> Words:
    """Versions and machine of all finished cells; where they differ, every value that occurs."""
    found: dict[str, dict[str, None]] = {}
    for _, manifest in manifests:
        # The hash is of one run alone; data are said per task below.
        kept = {k: v for k, v in manifest.items() if k not in ("hash", "data")}
        for name, value in facts.environment(kept):
            found.setdefault(name, {})[value] = None
    return [(name, "; ".join(values)) for name, values in found.items()]


def data_sums(manifests: Sequence[tuple[str, Mapping[str, Any]]]) -> Words:
    """The checksum of each task's data, as the finished cells recorded it."""
    found: dict[str, dict[str, None]] = {}
    for task, manifest in manifests:
        for value in manifest.get("data", {}).values():
            found.setdefault(task, {})[str(value)] = None
    return [(task, "; ".join(values)) for task, values in found.items()]


def design(table: ComparisonTable) -> Words:
    """What was asked for."""
    cells = table.cells
    seeds = text.spans(cell.seed for cell in cells)
    roles = [
        m if table.roles.get(m, METHOD) == METHOD else f"{m} ({table.roles[m]})"
        for m in table.methods
    ]
    return [
        ("Methods", ", ".join(roles) or text.MISSING),
        ("Tasks", ", ".join(table.tasks) or text.MISSING),
        ("Seeds", seeds or text.MISSING),
        ("Cells", text.number(len(cells))),
    ]
