"""Fig. 1a of the paper: the loss around the trained weights (Li et al., NeurIPS 2018).

L(α, β) = L(θ* + α δ + β η) on a fixed batch of validation samples. δ and η are random directions,
normalised filter by filter: d_i <- d_i · |θ_i| / |d_i| for every filter i (a row of a matrix, an
output channel of a convolution). Parameters of one dimension, biases and norms, stay fixed (section
4 of that paper).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor, nn

from xmodal import randomness
from xmodal.data import loader
from xmodal.interfaces import Model
from xmodal.report import INK, SERIES, SURFACE, legend, number, plain, without_ticks
from xmodal.workbench import OpenedRun
from xmodal_analysis.drawing import picture
from xmodal_analysis.watch import SILENT, Watch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NamedParameters = list[tuple[str, nn.Parameter]]
PARTS = ("embedder.", "backbone.", "predictor.")
_LOG_RATIO = 30


def parameters(restored: OpenedRun) -> NamedParameters:
    """Parameters with several dimensions that the best epoch's stage trains and predictions use."""
    stage = restored.session.stages[restored.at[0]]
    named = restored.session.model.select_trainable(stage.train)
    return [(name, p) for name, p in named if p.ndim > 1 and name.startswith(PARTS)]


def direction(named: NamedParameters, generator: torch.Generator) -> list[Tensor]:
    """A random, filter-normalised direction: each filter is as long as that of the weights."""
    return [_normalised(torch.randn(p.shape, generator=generator), p.detach()) for _, p in named]


def _normalised(drawn: Tensor, weight: Tensor) -> Tensor:
    dims = tuple(range(1, weight.ndim))
    own = torch.linalg.vector_norm(weight.float(), dim=dims, keepdim=True)
    drawn = drawn.to(own.device)
    # A filter of zeros does not move.
    length = torch.linalg.vector_norm(drawn, dim=dims, keepdim=True).clamp_min(1e-12)
    way: Tensor = drawn * (own / length)
    return way


@contextmanager
def moved(named: NamedParameters) -> Iterator[Any]:
    """Yield a function that moves the weights by sums of directions; restore them at the end.

    Every move starts from the original weights, so errors do not add up.
    """
    kept = [p.detach().clone() for _, p in named]

    def move(*steps: tuple[float, list[Tensor]]) -> None:
        for i, (_, p) in enumerate(named):
            value = kept[i].float()
            for size, way in steps:
                if size:
                    value = value + size * way[i]
            p.data.copy_(value)

    try:
        yield move
    finally:
        for (_, p), value in zip(named, kept, strict=True):
            p.data.copy_(value)


@torch.no_grad()
def mean_loss(model: Model, batches: list[tuple[Tensor, Tensor]]) -> float:
    """The mean target loss over the batches."""
    total = sum(float(model.loss(model.predict(x), y).sum()) for x, y in batches)
    return total / sum(len(x) for x, _ in batches)


def compute(
    restored: OpenedRun, samples: int, size: int, radius: float, watch: Watch = SILENT
) -> dict[str, Any]:
    """Losses on a ``size`` x ``size`` grid over [-radius, radius]²; row α, column β.

    An even ``size`` is raised by 1, so that the trained weights are a point of the grid.
    """
    session, named = restored.session, parameters(restored)
    dataset = session.data.validation
    order = randomness.permutation(loader.count(dataset), session.seed, "analysis", "landscape")
    pieces = torch.split(order[:samples].sort().values, restored.plan.recipe.evaluation_batch)
    batches = list(session.fetch(dataset, pieces))
    generator = randomness.generator(session.seed, "analysis", "directions")
    first, second = direction(named, generator), direction(named, generator)
    ends = (np.linspace(-radius, radius, size | 1)).round(12).tolist()
    losses = []
    with moved(named) as move:
        for a in watch.steps("loss landscape", ends, len(ends)):
            row = []
            for b in ends:
                move((a, first), (b, second))
                row.append(mean_loss(session.model, batches))
            losses.append(row)
    middle = len(ends) // 2
    return {
        "samples": sum(len(x) for x, _ in batches),
        "parameters": sum(p.numel() for _, p in named),
        "steps": ends,
        "losses": [[v if math.isfinite(v) else None for v in row] for row in losses],
        "centre": losses[middle][middle],
    }


def draw(numbers: dict[str, Any], path: Path) -> Markup:
    """Contours of the grid, and its two slices through the trained weights."""
    losses = np.asarray([[np.nan if v is None else v for v in r] for r in numbers["losses"]])

    def figure(canvas: Figure) -> None:
        left, right = canvas.subplots(1, 2, width_ratios=(1.15, 1))
        _contours(canvas, left, numbers["steps"], losses)
        _slices(right, numbers["steps"], losses)

    return picture(path, (8.6, 3.6), words(numbers), figure)


def words(numbers: dict[str, Any]) -> str:
    """The figure in one sentence."""
    finite = [v for row in numbers["losses"] for v in row if v is not None]
    ends = numbers["steps"]
    return (
        f"The validation loss is {number(numbers['centre'])} at the trained weights. Within "
        f"{number(ends[-1])} of them along both directions, it lies between "
        f"{number(min(finite))} and {number(max(finite))}."
    )


def _contours(canvas: Figure, axes: Axes, ends: list[float], losses: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    without_ticks(axes, "Loss around the trained weights")
    axes.set_aspect("equal")
    finite = losses[np.isfinite(losses)]
    low, high = float(finite.min()), float(finite.max())
    if low > 0 and high / low > _LOG_RATIO:
        levels = np.geomspace(low, high, 13)
    else:
        levels = np.asarray(MaxNLocator(12).tick_values(low, high if high > low else low + 1))
    shape = np.ma.masked_invalid(losses)
    # Rows are values of α, which contourf expects along x.
    filled = axes.contourf(ends, ends, shape.T, levels=levels, cmap="viridis", norm=_norm(levels))
    axes.contour(ends, ends, shape.T, levels=levels, colors=SURFACE, linewidths=0.5)
    axes.plot([0], [0], "o", color=SURFACE, markersize=6, markeredgecolor=INK)
    marks = [ends[0], 0.0, ends[-1]]
    axes.set_xticks(marks)
    axes.set_yticks(marks)
    axes.set_xlabel("α")
    axes.set_ylabel("β", rotation=0)
    bar = canvas.colorbar(
        filled, ax=axes, shrink=0.9, format=FuncFormatter(lambda v, _: f"{v:.3g}")
    )
    bar.set_ticks(list(levels[:: max(1, len(levels) // 6)]))
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)


def _norm(levels: Any) -> Any:
    from matplotlib.colors import BoundaryNorm

    # One colour per band, evenly spaced in the colour map even if the bands grow wider.
    return BoundaryNorm(levels, 256)


def _slices(axes: Axes, ends: list[float], losses: Any) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    plain(axes, "Along each direction")
    middle = len(ends) // 2
    cuts = ((losses[:, middle], "α (β = 0)", 0, "o-"), (losses[middle], "β (α = 0)", 1, "s--"))
    for values, label, colour, style in cuts:
        shown: dict[str, Any] = {"color": SERIES[colour], "label": label, "markersize": 4}
        axes.plot(ends, values, style, linewidth=1.8, **shown)
    values = np.concatenate([losses[:, middle], losses[middle]])
    values = values[np.isfinite(values)]
    if values.min() > 0 and values.max() / values.min() > _LOG_RATIO:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("distance along the direction")
    axes.set_ylabel("validation loss")
    legend(axes)
