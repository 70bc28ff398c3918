"""Pictures made of pixels: maps of fields, photographs, and samples with marked tokens.

Colour maps are perceptually uniform. A sample under tokens is drawn once and then referenced. Marks
are outlines of runs of tokens, so that pages with thousands of tokens stay small.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from xmodal.text import number

Array = NDArray[Any]

FIELD, INPUT, ERROR, GREY = "viridis", "cividis", "magma", "gray"
MAX_SIDE = 192
MAX_INPUTS = 2
EPOCHS = 5


@dataclass(frozen=True)
class ColourScale:
    """A colour map and the values at its two ends."""

    low: float
    high: float
    colours: str = FIELD

    @property
    def digits(self) -> int:
        """The significant digits that tell the two ends apart."""
        return digits_of([self.low, self.high])

    @property
    def bar(self) -> str:
        """The colour map from low to high, as a data URI."""
        return _png(np.linspace(self.low, self.high, 128)[None], self)


def digits_of(values: Any) -> int:
    """Significant digits that show two digits of the spread of ``values``, such as 1.7e9 ± 20.

    At least 3, and at most 17, which is all that float64 has.
    """
    finite = np.asarray(values, dtype=np.float64).ravel()
    finite = finite[np.isfinite(finite)]
    size = np.abs(finite).max(initial=0.0)
    spread = float(finite.max() / 2 - finite.min() / 2) * 2 if finite.size else 0.0
    if not spread:
        return 3
    lost = math.floor(math.log10(size)) - math.floor(math.log10(min(spread, size)))
    return min(17, max(3, 2 + lost))


def scale_of(arrays: Iterable[Array], colours: str = FIELD, zero: bool = False) -> ColourScale:
    """The scale that covers every finite value in ``arrays``; ``zero`` makes it start at 0."""
    values = np.concatenate([np.asarray(a, dtype=np.float64).ravel() for a in arrays])
    values = values[np.isfinite(values)]
    if not values.size:
        return ColourScale(0.0, 1.0, colours)
    low, high = (0.0 if zero else float(values.min())), float(values.max())
    return ColourScale(low, high if high > low else low + 1.0, colours)


def field(values: Array, scale: ColourScale) -> str:
    """A 2-D array in the colours of ``scale``, as a data URI; large arrays are thinned."""
    return _png(_thin(np.asarray(values, dtype=np.float64)), scale)


def photo(values: Array) -> str:
    """``(3, H, W)`` or ``(H, W)`` of any range, stretched to 0 .. 1, as a data URI."""
    values = np.nan_to_num(np.asarray(values, dtype=np.float64))
    # Cut off extreme values, which would make a normalised photograph pale.
    low, high = np.percentile(values, (0.5, 99.5))
    values = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
    image = np.moveaxis(values, 0, -1) if values.ndim == 3 else np.stack([values] * 3, axis=-1)
    return _encode((_thin(image) * 255).astype(np.uint8))


def _thin(values: Array) -> Array:
    step = max(1, math.ceil(max(values.shape[:2]) / MAX_SIDE))
    return values[::step, ::step]


def _png(values: Array, scale: ColourScale) -> str:
    from matplotlib import colormaps

    share = np.clip((values - scale.low) / (scale.high - scale.low), 0, 1)
    colours = colormaps[scale.colours](np.ma.masked_invalid(share), bytes=True)
    return _encode(np.asarray(colours))


def _encode(pixels: Array) -> str:
    from matplotlib.image import imsave

    stream = io.BytesIO()
    imsave(stream, np.ascontiguousarray(pixels), format="png")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def as_array(tensor: Any) -> Array:
    """A tensor as a NumPy array (floating-point numbers become float64: labels may be 1e200)."""
    tensor = tensor.detach().cpu()
    return np.asarray((tensor.double() if tensor.is_floating_point() else tensor).numpy())


def drawn_channels(x: Array, images: Mapping[str, int]) -> list[tuple[str, Array]]:
    """The channels of ``x`` to draw: those that the task names, otherwise the first."""
    named = [(title, c) for title, c in images.items() if 0 <= c < x.shape[1]][:MAX_INPUTS]
    return [(title, x[:, c]) for title, c in named] or [("input", x[:, 0])]


# --- which tokens a mixer replaced and which it took, epoch by epoch ---


@dataclass(frozen=True)
class TokenSheet:
    """The layer under an overlay: a shared drawing and its grid of tokens.

    ``name`` is empty if there is no picture; the tokens are then drawn as a bare strip.
    """

    grid: tuple[int, int]
    name: str = ""
    ratio: float = 1.0
    definition: Markup = dataclasses.field(default_factory=Markup)


@dataclass(frozen=True)
class MixedSample:
    """One sample: its replaced and its taken tokens, one drawing per epoch."""

    name: str
    replaced: list[Markup]
    taken: list[Markup]


@dataclass(frozen=True)
class Mixing:
    """The section about mixing: column heads ``(epoch, k)`` and the samples."""

    heads: list[tuple[str, str]]
    pairs: list[MixedSample]
    definitions: list[Markup]
    note: str = ""


def mixing(samples: Mapping[str, Any], facts: Mapping[str, Any], prefix: str = "") -> Mixing | None:
    """How the probe samples were mixed in about five epochs; None if nothing was mixed.

    ``prefix`` keeps names distinct if one page shows several runs.
    """
    probes = [(i, p) for i, p in enumerate(samples.get("probes", [])) if "origin" in p]
    if not probes or "train" not in samples:
        return None
    origins = [as_array(probe["origin"]) for _, probe in probes]
    x = as_array(samples["train"]["x"])
    source = as_array(samples["source"]["x"]) if "source" in samples else None
    count = min(len(x), *(len(origin) for origin in origins))
    images = samples.get("images", {})
    targets = [_target(x[i : i + 1], origins[0].shape[1], facts, images) for i in range(count)]
    largest = int(max(origin.max() for origin in origins))
    sources = [_source(source, i, largest, facts) for i in range(count)]
    chosen = shown_epochs(len(probes))
    pairs, definitions = [], []
    for i in range(count):
        under = [
            _named(sheet, f"{prefix}{letter}{i}")
            for letter, sheet in (("t", targets[i]), ("s", sources[i]))
        ]
        definitions += [sheet.definition for sheet in under if sheet.definition]
        pairs.append(_pair(i, under, [(probes[c][0], origins[c][i]) for c in chosen]))
    heads = [_head(*probes[c]) for c in chosen]
    note = "" if source is not None else "No source samples were kept; only positions are shown."
    return Mixing(heads, pairs, definitions, note)


def _head(position: int, probe: Mapping[str, Any]) -> tuple[str, str]:
    tokens = int(probe["origin"].shape[1])
    return f"Epoch {position + 1}", f"k = {number(int(probe.get('k', 0)))} of {number(tokens)}"


def _pair(
    number_: int, under: Sequence[TokenSheet], states: Sequence[tuple[int, Array]]
) -> MixedSample:
    replaced, taken = [], []
    target, source = under
    for epoch, origin in states:
        slots = np.flatnonzero(origin >= 0)
        partners = origin[slots]
        where = f"sample {number_ + 1}, epoch {epoch + 1}"
        words = f"Target {where}: {len(slots)} of {len(origin)} tokens replaced"
        replaced.append(_drawing(target, slots, words, "replaced"))
        words = f"Source {where}: {len(set(partners.tolist()))} tokens taken"
        taken.append(_drawing(source, partners, words, "taken"))
    return MixedSample(f"Sample {number_ + 1}", replaced, taken)


def shown_epochs(count: int) -> list[int]:
    """The positions of about five of ``count`` epochs, including the first and the last."""
    return sorted({round(t) for t in np.linspace(0, count - 1, EPOCHS)})


# --- what lies under an overlay ---


def _target(
    x: Array, tokens: int, facts: Mapping[str, Any], images: Mapping[str, int]
) -> TokenSheet:
    """The target sample ``[1, C, H, W]`` or ``[1, C, L]``; a bare strip for other shapes."""
    grid = tuple(int(side) for side in facts.get("grid", ()))
    if len(grid) == 2 and math.prod(grid) == tokens and x.ndim == 4:
        title, channel = drawn_channels(x, images)[0]
        rgb = x.shape[1] == 3 and title not in images
        picture = photo(x[0]) if rgb else field(channel[0], _soft(scale_of([channel], GREY)))
        return _picture(picture, (grid[0], grid[1]), x.shape[3] / x.shape[2])
    if x.ndim == 3:
        return _curve(x[0, 0], tokens)
    return TokenSheet((1, tokens))


def _soft(scale: ColourScale) -> ColourScale:
    """Greys without black and white, so that an overlay is visible on all of them."""
    margin = 0.3 * (scale.high - scale.low)
    return ColourScale(scale.low - margin, scale.high + margin / 2, scale.colours)


def _source(source: Array | None, i: int, largest: int, facts: Mapping[str, Any]) -> TokenSheet:
    """The source sample if it is an image with a patch at index ``largest``; otherwise a strip."""
    if source is None or i >= len(source):
        return TokenSheet((1, largest + 1))
    x = source[i]
    if x.ndim == 3:
        patch = facts.get("backbone", {}).get("patch")
        height, width = x.shape[1:]
        if patch and (height // patch) * (width // patch) > largest:
            return _picture(photo(x), (height // patch, width // patch), width / height)
    length = x.shape[-1] if x.ndim == 1 else 0
    return TokenSheet((1, max(length, largest + 1)))


def _picture(uri: str, grid: tuple[int, int], ratio: float) -> TokenSheet:
    image = Markup('<image href="{}" width="{}" height="{}" preserveAspectRatio="none"/>').format(
        uri, grid[1], grid[0]
    )
    return TokenSheet(grid, "picture", ratio, image)


def _curve(values: Array, tokens: int) -> TokenSheet:
    """A series over its tokens; the line fills a strip of one token's height."""
    values = np.nan_to_num(np.asarray(values, dtype=np.float64))
    values = values[:: max(1, len(values) // 400)]
    low, high = float(values.min()), float(values.max())
    y = 0.95 - 0.9 * (values - low) / ((high - low) or 1.0)
    x = np.linspace(0, tokens, len(y))
    points = " ".join(f"{a:.2f},{b:.3f}" for a, b in zip(x, y, strict=True))
    line = Markup('<polyline points="{}" class="series"/>').format(points)
    return TokenSheet((1, tokens), "curve", 4.0, line)


def _named(sheet: TokenSheet, name: str) -> TokenSheet:
    if not sheet.name:
        return sheet
    definition = Markup('<g id="{}">{}</g>').format(name, sheet.definition)
    return TokenSheet(sheet.grid, name, sheet.ratio, definition)


# --- overlays ---


def _drawing(sheet: TokenSheet, chosen: Array, words: str, kind: str) -> Markup:
    """One SVG: the sheet with the chosen tokens marked; for taken tokens, the others are dimmed."""
    height, width = sheet.grid
    mask = np.zeros((height, width), dtype=bool)
    mask.flat[chosen[chosen < mask.size]] = True
    strip = height == 1
    shape = "strip" if strip else "patches"
    under = f'<use href="#{sheet.name}"/>' if sheet.name else ""
    if kind == "taken" and not strip:
        under += f'<path class="dim" d="{_fill(~mask)}"/>'
    marks = ""
    if mask.any():
        marks = f'<path class="{kind}" d="{_fill(mask)}"/>'
        if not strip:
            marks += f'<path class="edge {kind}-edge" d="{_edges(mask)}"/>'
    ratio = "" if strip else f' style="aspect-ratio: {sheet.ratio:.4g}"'
    return Markup(
        f'<svg class="tokens {shape}" viewBox="0 0 {width} {height}" role="img" '
        f'preserveAspectRatio="none" aria-label="{escape(words)}"{ratio}>{under}{marks}</svg>'
    )


def _fill(mask: Array) -> str:
    """The chosen cells as one path, with one rectangle per run of cells in a row."""
    return "".join(f"M{a} {row}h{b - a}v1h{a - b}z" for row, a, b in _runs(mask))


def _edges(mask: Array) -> str:
    """The border between chosen cells and other cells, as one path."""
    padded = np.pad(mask, 1)
    across = padded[1:, 1:-1] != padded[:-1, 1:-1]
    along = (padded[1:-1, 1:] != padded[1:-1, :-1]).T
    horizontal = "".join(f"M{a} {row}h{b - a}" for row, a, b in _runs(across))
    vertical = "".join(f"M{column} {a}v{b - a}" for column, a, b in _runs(along))
    return horizontal + vertical


def _runs(mask: Array) -> list[tuple[int, int, int]]:
    """``(row, first, end)`` of every run of true cells."""
    steps = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    return [(int(r), int(a), int(b)) for r, a, b in zip(rows, starts, ends, strict=True)]
