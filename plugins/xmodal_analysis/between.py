"""``xmodal distance``: how far two data sets, and their classes, are from each other.

Each set is cut into two halves of the same size. The distance is measured between a half of one set
and a half of the other. The distance between the two halves of one set shows how much is chance.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from markupsafe import Markup

from xmodal.batch import Points
from xmodal.data import Store
from xmodal.errors import UsageError
from xmodal.interfaces import NO_FACTS, Distance, Facts
from xmodal.report import plain
from xmodal.settings import Use
from xmodal_analysis.distances import measure
from xmodal_analysis.drawing import picture
from xmodal_analysis.embedded import EmbeddedReader, RawReader, halves, of_class
from xmodal_analysis.named import Named
from xmodal_analysis.watch import SILENT, Watch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST = 2
MOST_CLASSES = 20


class Between:
    """Two data sets and the distance to measure them with."""

    def __init__(
        self,
        use: Use[Distance],
        reader: RawReader | EmbeddedReader,
        store: Store,
        seed: int,
        watch: Watch = SILENT,
    ) -> None:
        self.use, self.reader, self.store, self.seed, self.watch = use, reader, store, seed, watch
        self.facts = Facts(NO_FACTS.task, getattr(reader, "facts", NO_FACTS.backbone))

    def far(self, first: Points, second: Points) -> float:
        """The distance between two sets of points."""
        return measure(self.use, self.facts, self.store, self.seed, first, second)

    def compute(self, named: tuple[Named, Named], samples: int, matrix: bool) -> dict[str, Any]:
        """The distance, the self-distances and, if wanted, the distances between classes."""
        sets = self.reader.load(named, 2 * samples)
        points = [self.reader.points(one) for one in sets]
        for one, what in zip(sets, points, strict=True):
            if len(what.x_ND) < 2 * FEWEST:
                raise UsageError(f"'{one.name}' has {len(what.x_ND)} samples; it needs at least 4")
        (a1, a2), (b1, b2) = (halves(one) for one in points)
        numbers: dict[str, Any] = {
            "first": sets[0].name,
            "second": sets[1].name,
            "distance": self.far(a1, b1),
            "within_first": self.far(a1, a2),
            "within_second": self.far(b1, b2),
            "samples": [len(a1.x_ND), len(b1.x_ND)],
            "with": self.use.dump(),
        }
        if matrix:
            numbers["classes"] = self._matrix(points[0], points[1], numbers)
        return numbers

    def _matrix(self, first: Points, second: Points, numbers: dict[str, Any]) -> dict[str, Any]:
        """The distance of every class of one set to every class of the other."""
        labels = []
        for name, one in ((numbers["first"], first), (numbers["second"], second)):
            if one.classes_N is None:
                raise UsageError(f"the labels of '{name}' are not classes; remove --classes")
            found, counts = torch.unique(one.classes_N, return_counts=True)
            labels.append([int(c) for c in found[counts >= FEWEST][:MOST_CLASSES]])
        rows = [
            [self.far(of_class(first, a), of_class(second, b)) for b in labels[1]]
            for a in self.watch.steps("classes", labels[0], len(labels[0]))
        ]
        return {"first": labels[0], "second": labels[1], "distances": rows}


def draw(numbers: dict[str, Any], path: Path) -> Markup:
    """Draw the matrix of class distances; light means near."""
    classes = numbers["classes"]
    values = np.asarray(classes["distances"])

    def figure(canvas: Figure) -> None:
        axes = canvas.subplots()
        plain(axes, "Distance between classes", grid=None)
        shown = axes.imshow(values, cmap="viridis_r")
        axes.set_xticks(range(len(classes["second"])), classes["second"])
        axes.set_yticks(range(len(classes["first"])), classes["first"])
        axes.set_xlabel(f"classes of {numbers['second']}")
        axes.set_ylabel(f"classes of {numbers['first']}")
        bar = canvas.colorbar(shown, ax=axes, shrink=0.9)
        bar.ax.tick_params(length=0)
        bar.outline.set_visible(False)

    size = (2.4 + 0.3 * values.shape[1], 1.4 + 0.3 * values.shape[0])
    words = f"Distances between the classes of {numbers['first']} and {numbers['second']}"
    return picture(path, size, words, figure)
