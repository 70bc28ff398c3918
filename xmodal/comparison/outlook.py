"""Which verdicts a comparison is asked for, and whether it can give any, before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

from xmodal.comparison.criteria import Rule
from xmodal.comparison.grid import METHOD, RIVAL, Cell
from xmodal.text import plural


def asked_pairs(
    contenders: Sequence[str], rivals: Sequence[str], against: str | None
) -> list[tuple[str, str]]:
    """The pairs a verdict is asked for; not two rivals, unless there is nothing else."""
    if not contenders:
        contenders, rivals = rivals, ()
    if against is None:
        return [*combinations(contenders, 2), *product(contenders, rivals)]
    opponents = contenders if against in rivals else [*contenders, *rivals]
    return [(method, against) for method in opponents if method != against]


def banners(cells: Sequence[Cell]) -> tuple[str, ...]:
    """The warnings that the recipes of these cells carry, each once."""
    found = (str(cell.resolved.get("banner") or "") for cell in cells)
    return tuple(dict.fromkeys(filter(None, found)))


def outlook(cells: Sequence[Cell], against: str | None = None, rule: Rule | None = None) -> str:
    """One sentence, if no pair of these cells can get a verdict: why, and what it would take.

    Empty if a pair can, or if no verdict is asked for. That a run fails cannot be known before.
    """
    rule = rule or Rule()
    able = [cell for cell in cells if cell.directory is not None]
    methods: dict[str, list[str]] = {METHOD: [], RIVAL: []}
    for cell in able:
        mine = methods.get(str(cell.resolved["role"]))
        if mine is not None and cell.method not in mine:
            mine.append(cell.method)
    pairs = asked_pairs(methods[METHOD], methods[RIVAL], against)
    if not pairs:
        return ""
    seeds: dict[tuple[str, str], set[int]] = {}
    for cell in able:
        seeds.setdefault((cell.method, cell.task), set()).add(cell.seed)
    tasks = dict.fromkeys(cell.task for cell in able)

    def shared(pair: tuple[str, str]) -> list[int]:
        """How many seeds both have, of every task that both have."""
        both = (seeds.get((pair[0], t), set()) & seeds.get((pair[1], t), set()) for t in tasks)
        return [len(one) for one in both if one]

    counts = [shared(pair) for pair in pairs]
    enough = [sum(count >= rule.min_seeds for count in one) for one in counts]
    if max(enough) >= rule.min_tasks:
        return ""
    lacking = []
    most = max((len(one) for one in counts), default=0)
    if most < rule.min_tasks:
        lacking.append(f"{plural(most, 'task')}, and {rule.min_tasks} are needed")
    deepest = max((max(one, default=0) for one in counts), default=0)
    if deepest < rule.min_seeds:
        needed = f"and {rule.min_seeds} are needed (--seeds {rule.min_seeds})"
        lacking.append(f"{plural(deepest, 'seed')}, {needed}")
    if not lacking:
        lacking.append(
            f"{rule.min_seeds} seeds of both methods on {plural(max(enough), 'task')}, and "
            f"{rule.min_tasks} such tasks are needed"
        )
    return (
        f"no verdict will come of this: it has {'; '.join(lacking)}; it will show the differences "
        "task by task"
    )
