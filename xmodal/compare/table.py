"""A whole comparison as plain values: what was asked, what came of it, what it says.

The one thing that the terminal, CSV, LaTeX, JSON and the HTML page are made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from xmodal.compare.cells import Cell
from xmodal.compare.collect import Row
from xmodal.compare.queue import State
from xmodal.compare.scores import Scores
from xmodal.compare.verdicts import Comparison


@dataclass(frozen=True)
class Table:
    """A comparison.

    ``command`` repeats it. ``methods`` and ``tasks`` are labels in the order asked for, methods of
    every role included; ``roles`` says what each is (``method``, ``control`` or ``trivial``).
    ``states`` belong to ``cells``, one each; ``rows`` are the cells that are done. ``left_out``
    says per task why it is not among the ``scores`` (its metric has no ratios, for example). Both
    ``scores`` and ``comparison`` are None where nothing is done that could be weighed.
    """

    command: str
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    roles: Mapping[str, str]
    cells: tuple[Cell, ...]
    states: tuple[State, ...]
    rows: tuple[Row, ...]
    scores: Scores | None = None
    comparison: Comparison | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
