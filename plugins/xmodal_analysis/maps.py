"""Figs. 1c and 6 of the paper: t-SNE maps of embeddings, and of source features by class.

Maps show neighbourhoods, not distances. Fig. 6 asks whether the source's classes are still apart
after fine-tuning; the answer is therefore also given as a number: how often the five nearest other
samples vote for the right class.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from torch import Tensor

from xmodal import randomness
from xmodal.report import INK, SERIES, legend, without_ticks
from xmodal_analysis.clouds import Cloud, Clouds
from xmodal_analysis.drawing import picture, scatter_classes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEIGHBOURS = 5
SHARES = (1 / 3, 2 / 3)

Array = NDArray[Any]


def tsne(x_ND: Array, seed: int) -> Array:
    """A map ``[N, 2]`` of points: t-SNE started from principal components; deterministic."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, max(1.0, (len(x_ND) - 1) / 3))
    state = randomness.derive(seed, "analysis", "map") % 2**31
    x_ND = np.asarray(x_ND, dtype=np.float64)
    model = TSNE(perplexity=perplexity, init="pca", random_state=state, method=_method(len(x_ND)))
    return np.asarray(model.fit_transform(x_ND), dtype=np.float64)


def _method(count: int) -> str:
    # The Barnes-Hut tree is meant for thousands of points and fails on a handful.
    return "barnes_hut" if count > 200 else "exact"


def votes(x_ND: Array, classes: Array) -> float | None:
    """Share of samples whose nearest neighbours vote for their class; None if too few samples."""
    from sklearn.neighbors import KNeighborsClassifier

    if len(x_ND) <= NEIGHBOURS:
        return None
    model = KNeighborsClassifier(NEIGHBOURS).fit(x_ND, classes)
    # Called without points, scikit-learn does not count a sample among its own neighbours.
    near = model.kneighbors(return_distance=False)
    chosen = [np.bincount(row).argmax() for row in classes[near]]
    return float(np.mean(np.asarray(chosen) == classes))


def compute_embeddings(clouds: Clouds, seed: int) -> dict[str, Any]:
    """The map of Fig. 1c: source, target and, if the method has k, two steps between them."""
    sets: dict[str, Tensor] = {"source": clouds.source().embeddings_ND}
    most = clouds.most()
    for share in reversed(SHARES):
        k = round(share * most)
        if 0 < k < most:
            sets[f"k = {k}"] = clouds.mixed(k).embeddings_ND
    sets["target"] = clouds.target().embeddings_ND
    joined = np.concatenate([x.numpy() for x in sets.values()])
    flat = clouds.watch.steps("t-SNE of embeddings", (tsne(joined, seed) for _ in range(1)), 1)
    (placed,) = list(flat)
    ends = np.cumsum([len(x) for x in sets.values()])[:-1]
    return {
        "tokens": most,
        "sets": {
            name: part.round(4).tolist()
            for name, part in zip(sets, np.split(placed, ends), strict=True)
        },
    }


def draw_embeddings(numbers: dict[str, Any], path: Path) -> Markup:
    """One map: the source red, the target dark, intermediate sets in colours between."""
    sets = {name: np.asarray(points) for name, points in numbers["sets"].items()}
    between = iter((3, 0))

    def colour(name: str, order: dict[str, int]) -> str:
        return {"source": SERIES[1], "target": INK}.get(name) or SERIES[order[name]]

    order = {name: next(between) for name in sets if name not in ("source", "target")}

    def figure(canvas: Figure) -> None:
        axes = canvas.subplots()
        without_ticks(axes, "Embeddings (t-SNE)")
        for (name, points), marker in zip(sets.items(), "o^vs" if order else "os", strict=False):
            shown = {"color": colour(name, order), "label": name, "marker": marker}
            axes.scatter(points[:, 0], points[:, 1], s=14, linewidths=0, alpha=0.85, **shown)
        legend(axes, loc="center left", bbox_to_anchor=(1, 0.5))

    sizes = ", ".join(f"{len(points)} of {name}" for name, points in sets.items())
    return picture(path, (7.0, 4.2), f"t-SNE map of pooled embeddings: {sizes}", figure)


def compute_features(before: Cloud, after: Cloud, seed: int) -> dict[str, Any]:
    """The maps of Fig. 6: source features by class, before and after fine-tuning."""
    assert before.classes_N is not None
    classes = before.classes_N.numpy()
    panels = {}
    for name, cloud in (("before", before), ("after", after)):
        x = cloud.features_NF.numpy()
        panels[name] = {"points": tsne(x, seed).round(4).tolist(), "right": votes(x, classes)}
    return {"classes": classes.tolist(), "neighbours": NEIGHBOURS, **panels}


def draw_features(numbers: dict[str, Any], path: Path) -> Markup:
    """Two maps side by side."""
    panels = ("before", "after")
    heads = {n: f"{n.capitalize()} fine-tuning{_right(numbers[n]['right'])}" for n in panels}

    def figure(canvas: Figure) -> None:
        for axes, name in zip(canvas.subplots(1, 2), panels, strict=True):
            without_ticks(axes, heads[name])
            scatter_classes(axes, np.asarray(numbers[name]["points"]), numbers["classes"])
        legend(axes, loc="center left", bbox_to_anchor=(1, 0.5))

    words = f"t-SNE maps of source features by class. {'. '.join(heads.values())}"
    return picture(path, (8.6, 3.8), words, figure)


def _right(share: float | None) -> str:
    return "" if share is None else f": {100 * share:.0f} % of neighbours vote right"
