"""Four tables of OpenML-CC18 that can be rebuilt without a download, in OpenML's row order.

Three are complete enumerations (all balance beams, all finished tic-tac-toe boards, all cars of a
decision model); the fourth ships with scikit-learn. This module does not shuffle or split.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from xmodal.data.tables import TableForm

Numbers = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """A classification table: ``x_NF`` with NaN if missing, labels ``y_N`` in 0 .. len(classes)-1.

    ``levels`` has one entry per column: 0 for a number, m for a category coded 0 .. m-1.
    ``shuffled``: the rows are already in the order of TabPFN's seed 13. ``names`` lists the
    categories of each column in the order of their codes (none for a number). ``label`` is the
    name of the label column, ``form`` how the columns of a file were read.
    """

    x_NF: Numbers
    y_N: Labels
    levels: tuple[int, ...]
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    shuffled: bool = False
    names: tuple[tuple[str, ...], ...] = ()
    label: str = "class"
    form: TableForm | None = None
    notes: tuple[str, ...] = ()

    def level_names(self) -> tuple[tuple[str, ...], ...]:
        """The names of every column's categories, or their codes if they have no names."""
        return self.names or tuple(tuple(map(str, range(count))) for count in self.levels)


def fingerprint(table: Table) -> str:
    """The first 16 digits of the SHA-256 of all numbers of a table in TabPFN's order.

    Of ``x`` in little-endian float32, then of ``y`` in int64; every missing value is the same NaN.
    """
    x_NF = table.x_NF.astype("<f4")
    x_NF[np.isnan(x_NF)] = np.nan
    return hashlib.sha256(x_NF.tobytes() + table.y_N.astype("<i8").tobytes()).hexdigest()[:16]


def wdbc() -> Table:
    """OpenML 1510 (569 x 30): scikit-learn's copy; OpenML calls benign 1 and malignant 2."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    names = tuple(str(name) for name in data.feature_names)
    # OpenML's file holds six decimals.
    x_NF = np.asarray(data.data, dtype=np.float64).round(6)
    # scikit-learn uses the opposite codes: malignant 0, benign 1.
    y_N = 1 - np.asarray(data.target, dtype=np.int64)
    return Table(x_NF, y_N, (0,) * x_NF.shape[1], names, ("benign", "malignant"))


def balance_scale() -> Table:
    """OpenML 11 (625 x 4): every beam; the class is the side with more weight times distance."""
    x_NF = np.array(list(itertools.product(range(1, 6), repeat=4)), dtype=np.float64)
    left_N, right_N = x_NF[:, 0] * x_NF[:, 1], x_NF[:, 2] * x_NF[:, 3]
    y_N = 1 - np.sign(left_N - right_N).astype(np.int64)
    columns = ("left-weight", "left-distance", "right-weight", "right-distance")
    return Table(x_NF, y_N, (0, 0, 0, 0), columns, ("L", "B", "R"))


_BLANK, _NOUGHT, _CROSS = 0, 1, 2
_LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
_SQUARES = tuple(
    f"{row}-{column}-square"
    for row in ("top", "middle", "bottom")
    for column in ("left", "middle", "right")
)


def _wins(board: tuple[int, ...], player: int) -> bool:
    return any(all(board[square] == player for square in line) for line in _LINES)


def _outcome(board: tuple[int, ...]) -> str | None:
    """``x``, ``o`` or ``draw`` if a game can end on the board (x moves first), otherwise None."""
    crosses, noughts = board.count(_CROSS), board.count(_NOUGHT)
    if _wins(board, _CROSS):
        return "x" if crosses == noughts + 1 and not _wins(board, _NOUGHT) else None
    if _wins(board, _NOUGHT):
        return "o" if crosses == noughts else None
    return "draw" if crosses == 5 and noughts == 4 else None


@cache  # takes nearly a second
def tic_tac_toe() -> Table:
    """OpenML 50 (958 x 9): every board a game can end on; ``positive`` if x, who began, won.

    OpenML's order: games won by x, games won by o, drawn games; within each group, boards in
    descending alphabetical order, with b < o < x.
    """
    boards: dict[str, list[tuple[int, ...]]] = {"x": [], "o": [], "draw": []}
    for board in itertools.product((_CROSS, _NOUGHT, _BLANK), repeat=9):
        outcome = _outcome(board)
        if outcome is not None:
            boards[outcome].append(board)
    x_NF = np.array(boards["x"] + boards["o"] + boards["draw"], dtype=np.float64)
    y_N = (np.arange(len(x_NF)) < len(boards["x"])).astype(np.int64)
    names = (("b", "o", "x"),) * 9
    return Table(x_NF, y_N, (3,) * 9, _SQUARES, ("negative", "positive"), names=names)


# Bohanec's car model (DEX): CAR = f(PRICE, TECH), PRICE = g(buying, maint),
# TECH = h(COMFORT, safety), COMFORT = c(doors, persons, lug_boot). Levels go from bad to good.
_PRICE = ((0, 0, 1, 1), (0, 1, 1, 1), (1, 1, 2, 3), (1, 2, 3, 3))
_COMFORT = (
    ((0, 0, 0), (1, 1, 2), (0, 1, 2)),
    ((0, 0, 0), (1, 1, 2), (1, 2, 2)),
    ((0, 0, 0), (1, 2, 2), (1, 2, 2)),
    ((0, 0, 0), (1, 2, 2), (1, 2, 2)),
)
_TECH = ((0, 0, 0), (0, 1, 2), (0, 2, 3))
_CAR = ((0, 0, 0, 0), (0, 0, 1, 1), (0, 1, 1, 3), (0, 1, 2, 3))


def car() -> Table:
    """OpenML 40975 (1728 x 6): every car of a hierarchical decision model (Bohanec, 1997)."""
    prices = ("vhigh", "high", "med", "low")
    names = (
        prices,
        prices,
        ("2", "3", "4", "5more"),
        ("2", "4", "more"),
        ("small", "med", "big"),
        ("low", "med", "high"),
    )
    levels = tuple(map(len, names))
    rows = list(itertools.product(*(range(level) for level in levels)))
    labels = [
        _CAR[_PRICE[buying][maint]][_TECH[_COMFORT[doors][persons][boot]][safety]]
        for buying, maint, doors, persons, boot, safety in rows
    ]
    columns = ("buying", "maint", "doors", "persons", "lug_boot", "safety")
    classes = ("unacc", "acc", "good", "vgood")
    x_NF = np.array(rows, dtype=np.float64)
    return Table(x_NF, np.array(labels), levels, columns, classes, names=names)
