"""Figs. 4, 7 and 8 of the paper: which source patches a method takes, and which it replaces.

Fig. 8 shows epochs, from the samples that the run kept during training. Figs. 4 and 7 show values
of k for the trained model, next to equally many patches drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray

from xmodal import randomness
from xmodal.batch import Batch
from xmodal.report import INK, LINE, MUTED, as_array, drawn_channels, shown_epochs
from xmodal.workbench import PROBED_SAMPLES, OpenedRun
from xmodal_analysis.drawing import picture
from xmodal_analysis.restore import dial as dial_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]
MARK = "#f4511e"
SHARES = (1 / 4, 1 / 2, 3 / 4)


@dataclass(frozen=True)
class PictureRow:
    """One row of pictures: its name, the image under the tokens, and the tokens of each column."""

    name: str
    ground: Ground
    chosen: Sequence[Array]
    dim: bool


def over_epochs(samples: Mapping[str, Any]) -> dict[str, Any] | None:
    """The origins of the kept samples' tokens in about five epochs; None without kept samples."""
    probes = [(i, p) for i, p in enumerate(samples.get("probes", [])) if "origin" in p]
    if not probes or "train" not in samples:
        return None
    chosen = shown_epochs(len(probes))
    return {
        "epochs": [probes[c][0] + 1 for c in chosen],
        "k": [int(probes[c][1].get("k", 0)) for c in chosen],
        "origin": [as_array(probes[c][1]["origin"]).tolist() for c in chosen],
    }


@torch.no_grad()
def over_counts(restored: OpenedRun, most: int) -> dict[str, Any] | None:
    """The same for the trained model at several k, with equally many random source tokens."""
    session, dial = restored.session, dial_of(restored)
    grid = [k for k in dict.fromkeys(round(s * most) for s in SHARES) if 0 < k <= most]
    if dial is None or not grid or not session.model.mixer.needs_source:
        return None
    x, y = session.first(session.data.train, PROBED_SAMPLES)
    source, unlabelled = session.partners(len(x))
    if source is None:
        return None
    available = session.model.embed_source(source[0]).x_BND.shape[1]
    generator = randomness.generator(session.seed, "analysis", "patches")
    origins, drawn = [], []
    for k in grid:
        dial.wanted = k
        views = session.model.views(Batch(x, y, source, unlabelled), restored.progress())
        found = [view.origin_BN for view in views if view.origin_BN is not None]
        if not found:
            return None
        origins.append(as_array(found[-1]).tolist())
        order = [torch.randperm(available, generator=generator)[:k] for _ in range(len(x))]
        drawn.append([part.sort().values.tolist() for part in order])
    return {"k": grid, "source_tokens": available, "origin": origins, "random": drawn}


def draw_epochs(
    numbers: Mapping[str, Any], samples: Mapping[str, Any], facts: Mapping[str, Any], path: Path
) -> Markup:
    """Two rows per sample, replaced and taken tokens; one column per epoch."""
    heads = [f"epoch {e}\nk = {k}" for e, k in zip(numbers["epochs"], numbers["k"], strict=True)]
    origins = [np.asarray(origin) for origin in numbers["origin"]]
    rows = _rows(origins, _source_tokens(origins, samples, facts), samples, facts)
    return _grid(rows, heads, "Replaced and taken tokens over the epochs", path)


def draw_counts(
    numbers: Mapping[str, Any], samples: Mapping[str, Any], facts: Mapping[str, Any], path: Path
) -> Markup:
    """Three rows per sample: replaced, taken and random source tokens; one column per k."""
    origins = [np.asarray(origin) for origin in numbers["origin"]]
    rows = _rows(origins, int(numbers["source_tokens"]), samples, facts)
    complete = []
    for position, row in enumerate(rows):
        complete.append(row)
        if position % 2:
            i = position // 2
            random = [np.asarray(drawn[i]) for drawn in numbers["random"]]
            complete.append(PictureRow("at random", row.ground, random, dim=True))
    heads = [f"k = {k}" for k in numbers["k"]]
    return _grid(complete, heads, "Tokens the trained model takes, and random ones", path)


def _source_tokens(
    origins: Sequence[Array], samples: Mapping[str, Any], facts: Mapping[str, Any]
) -> int:
    """The number of tokens in a source sample: its patches, or else the most ever taken."""
    largest = int(max(origin.max() for origin in origins)) + 1
    patch = facts.get("backbone", {}).get("patch")
    if "source" in samples and patch and samples["source"]["x"].ndim == 4:
        height, width = samples["source"]["x"].shape[2:]
        return int(max(largest, (height // patch) * (width // patch)))
    if "source" in samples and samples["source"]["x"].ndim == 2:
        return int(max(largest, samples["source"]["x"].shape[1]))
    return largest


def _rows(
    origins: Sequence[Array], available: int, samples: Mapping[str, Any], facts: Mapping[str, Any]
) -> list[PictureRow]:
    x, images = as_array(samples["train"]["x"]), samples.get("images", {})
    source = as_array(samples["source"]["x"]) if "source" in samples else None
    rows = []
    for i in range(min(len(x), *(len(origin) for origin in origins))):
        under = of_target(x[i], origins[0].shape[1], facts, images)
        gone = [np.flatnonzero(origin[i] >= 0) for origin in origins]
        rows.append(PictureRow(f"sample {i + 1}\nreplaced", under, gone, dim=False))
        other = source[i] if source is not None and i < len(source) else None
        taken = [origin[i][origin[i] >= 0] for origin in origins]
        rows.append(PictureRow("taken", of_source(other, available, facts), taken, dim=True))
    return rows


def _grid(rows: Sequence[PictureRow], heads: Sequence[str], title: str, path: Path) -> Markup:
    heights = [1.0 if row.ground.image is not None else 0.32 for row in rows]

    def figure(canvas: Figure) -> None:
        shape = len(rows), len(heads)
        cells = canvas.subplots(*shape, height_ratios=heights, squeeze=False)
        for line, row in zip(cells, rows, strict=True):
            line[0].set_ylabel(row.name, rotation=0, ha="right", va="center", color=INK, labelpad=6)
            for axes, chosen in zip(line, row.chosen, strict=True):
                mark(axes, row.ground, chosen, row.dim)
        for axes, head in zip(cells[0], heads, strict=True):
            axes.set_title(head, color=MUTED, fontsize=9)

    size = (1.1 + 1.35 * len(heads), 0.5 + 1.35 * sum(heights))
    counted = "; ".join(head.replace("\n", ", ") for head in heads)
    return picture(path, size, f"{title}: {counted}", figure)


# --- what tokens lie on: for files, the counterpart of the overlays on a run's page ---


@dataclass(frozen=True)
class Ground:
    """A sample under its tokens: an image ``[H, W]`` or ``[H, W, 3]``, a curve, or neither."""

    grid: tuple[int, int]
    image: Array | None = None
    curve: Array | None = None


def of_target(x: Array, tokens: int, facts: Mapping[str, Any], images: Mapping[str, int]) -> Ground:
    """The ground of a target sample ``[C, H, W]``, ``[C, L]`` or ``[F]``."""
    grid = tuple(int(side) for side in facts.get("grid", ()))
    if len(grid) == 2 and math.prod(grid) == tokens and x.ndim == 3:
        title, channel = drawn_channels(x[None], images)[0]
        rgb = len(x) == 3 and title not in images
        return Ground((grid[0], grid[1]), image=_stretched(x if rgb else channel[0]))
    if x.ndim == 2:
        return Ground((1, tokens), curve=np.nan_to_num(x[0].astype(np.float64)))
    return Ground((1, tokens))


def of_source(x: Array | None, tokens: int, facts: Mapping[str, Any]) -> Ground:
    """The ground of a source sample: an image ``[3, H, W]`` whose patches are the tokens."""
    patch = facts.get("backbone", {}).get("patch")
    if x is not None and x.ndim == 3 and patch:
        grid = (x.shape[1] // patch, x.shape[2] // patch)
        if math.prod(grid) == tokens:
            return Ground(grid, image=_stretched(x))
    return Ground((1, tokens))


def _stretched(values: Array) -> Array:
    values = np.nan_to_num(np.asarray(values, dtype=np.float64))
    low, high = np.percentile(values, (0.5, 99.5))
    values = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
    return np.moveaxis(values, 0, -1) if values.ndim == 3 else values


def mark(axes: Axes, ground: Ground, chosen: Array, dim: bool) -> None:
    """Draw ``ground`` and on it the tokens ``chosen``: shaded, or with ``dim`` all others dark."""
    height, width = ground.grid
    mask = np.zeros((height, width), dtype=bool)
    mask.flat[chosen[(chosen >= 0) & (chosen < mask.size)]] = True
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(LINE)
    if ground.image is not None:
        _on_image(axes, ground.image, mask, dim)
        return
    _on_strip(axes, ground, mask[0])


def _on_image(axes: Axes, image: Array, mask: Array, dim: bool) -> None:
    height, width = mask.shape
    place: dict[str, Any] = {"extent": (0, width, height, 0), "interpolation": "nearest"}
    axes.imshow(image, cmap="gray", vmin=-0.15 if image.ndim == 2 else None, **place)
    shade = np.zeros((height, width, 4))
    if dim:
        shade[~mask] = (0.04, 0.05, 0.05, 0.62)
    else:
        shade[mask] = (*[int(MARK[i : i + 2], 16) / 255 for i in (1, 3, 5)], 0.62)
    axes.imshow(shade, **place)
    padded = np.pad(mask, 1)
    edge: dict[str, Any] = {"color": MARK, "linewidth": 1.1}
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    axes.hlines(rows, columns, columns + 1, **edge)
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    axes.vlines(columns, rows, rows + 1, **edge)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect(image.shape[0] * width / (image.shape[1] * height))


def _on_strip(axes: Axes, ground: Ground, mask: Array) -> None:
    steps = np.diff(np.pad(mask.astype(np.int8), 1))
    for start, end in zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), strict=True):
        axes.axvspan(
            float(start),
            float(end),
            color=MARK,
            alpha=0.62 if ground.curve is not None else 0.85,
            lw=0,
        )
    if ground.curve is not None:
        x = np.linspace(0, len(mask), len(ground.curve))
        axes.plot(x, ground.curve, color=INK, linewidth=0.8)
    else:
        axes.set_ylim(0, 1)
    axes.set_xlim(0, len(mask))
