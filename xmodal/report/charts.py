"""The chart engine: matplotlib figures, shown inside a page or saved for a paper.

A figure is drawn once, in the colours of a light page. ``save`` writes it as SVG, PDF or PNG.
``inline`` gives the same figure as SVG for a page; it replaces every colour of the palette by a CSS
variable, so that the figure follows the reader's light or dark theme.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from markupsafe import Markup

from xmodal.text import number, visible

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "page": ("#f7f7f5", "#131416"),
    "surface": ("#ffffff", "#1b1d20"),
    "ink": ("#1b1c1e", "#ececea"),
    "muted": ("#5c6067", "#a3a7ad"),
    "line": ("#e2e3e0", "#33363b"),
    "accent": ("#1f5fbf", "#7fb0f5"),
    "good": ("#17714b", "#5cc79a"),
    "bad": ("#b3372f", "#f0857c"),
    "warn": ("#8a5a00", "#e0b050"),
    "series-1": ("#2a6fcf", "#6aa5f2"),
    "series-2": ("#d2571b", "#f08a4e"),
    "series-3": ("#14875c", "#45c08f"),
    "series-4": ("#8a4fc4", "#b994ea"),
    "series-5": ("#b07c00", "#dcae42"),
    "series-6": ("#c8396e", "#f07fa6"),
    # Methods: distinct for colour-blind readers too, contrast at least 3:1 with the surface.
    "method-1": ("#056bd4", "#208bf6"),
    "method-2": ("#dd6c10", "#d67620"),
    "method-3": ("#06724c", "#20b190"),
    "method-4": ("#800888", "#b96fbd"),
    "method-5": ("#6f4e01", "#f3d255"),
    "method-6": ("#fd4a83", "#d9425c"),
    "method-7": ("#1a9ed0", "#87e1fb"),
    "method-8": ("#373e49", "#dfe8da"),
}
"""The palette: by name, the colour on a light and on a dark page. All light colours differ, so a
colour in a figure identifies its variable."""
INK, MUTED, LINE, SURFACE, BAD = (COLOURS[n][0] for n in ("ink", "muted", "line", "surface", "bad"))
SERIES = tuple(light for name, (light, _) in COLOURS.items() if name.startswith("series-"))
METHODS = tuple(light for name, (light, _) in COLOURS.items() if name.startswith("method-"))
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.8), (7, 2, 1.5, 2), (3, 1.5), (9, 3))
METHOD_DASHES = DASHES[:5]
MARKERS = ("o", "s", "^", "D", "v", "P", "p")

_VARIABLES = {light: f"var(--{name})" for name, (light, _) in COLOURS.items()}
_SETTINGS: dict[str, Any] = {
    # Keep text as text (small, searchable, in the page's font); "$" in a name is not mathematics.
    **{"svg.fonttype": "none", "svg.hashsalt": "xmodal", "text.parse_math": False},
    **{"pdf.fonttype": 42, "text.color": INK, "axes.edgecolor": MUTED, "axes.labelcolor": MUTED},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False},
    **{"axes.axisbelow": True, "axes.facecolor": "none", "axes.titlelocation": "left"},
    **{"axes.titlesize": "medium", "grid.color": LINE, "grid.linewidth": 0.8},
    **{"legend.frameon": False, "legend.fontsize": "small", "legend.handletextpad": 0.5},
}
_SETTINGS |= {
    f"{axis}tick.{key}": value
    for axis in "xy"
    for key, value in {
        **{"color": MUTED, "labelcolor": MUTED, "major.size": 0, "minor.size": 0, "major.pad": 5},
    }.items()
}
_REM_PER_INCH = 6.6
_LOG_RATIO = 30  # ranges wider than this factor are drawn on a logarithmic axis
_DPI = 160
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Chart:
    """A figure: its title, its drawing, a description in words, and what its legend explains."""

    title: str
    figure: Figure
    words: str
    keys: tuple[Curve, ...] = ()
    note: str = ""
    sub: str = ""
    """A line below the title."""

    @property
    def file(self) -> str:
        """The name of its file, without an ending."""
        return re.sub(r"[\W_]+", "-", self.title.lower()).strip("-") or "figure"

    @property
    def svg(self) -> Markup:
        """The figure for a page."""
        return self._svg

    @cached_property
    def _svg(self) -> Markup:
        return inline(self.figure, self.words, clip=False)


@dataclass(frozen=True)
class Curve:
    """One line: ``colour`` is 0 for the text colour, otherwise the number of a series."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    mark: tuple[float, float] | None = None

    @property
    def dash(self) -> tuple[float, ...]:
        """The dash pattern that identifies this line without colour."""
        return DASHES[(self.colour - 1) % len(DASHES)] if self.colour else ()


@dataclass(frozen=True)
class MethodStyle:
    """The style of a method everywhere on a page: colour, marker and dashes.

    Colours repeat after the eighth method; marker and dashes then differ.
    """

    position: int

    @property
    def colour(self) -> str:
        """The colour on a light page."""
        return METHODS[self.position % len(METHODS)]

    @property
    def variable(self) -> str:
        """The colour as a variable of the style sheet."""
        return _VARIABLES[self.colour]

    @property
    def marker(self) -> str:
        """The marker, by matplotlib's name."""
        return MARKERS[self._turn % len(MARKERS)]

    @property
    def dash(self) -> tuple[float, ...]:
        """The dash pattern; empty for a solid line."""
        return METHOD_DASHES[self._turn % len(METHOD_DASHES)]

    @property
    def symbol(self) -> Markup:
        """A sample of line and marker, shown in a page by ``<use href="#key-...">``."""
        return _symbol(self)

    @property
    def _turn(self) -> int:
        return self.position + self.position // len(METHODS)

    def line(self, **more: Any) -> dict[str, Any]:
        """Matplotlib arguments for a line of this method."""
        return {"color": self.colour, "linewidth": 1.8, "linestyle": dashes(self.dash), **more}

    def mark(self, size: float = 7, **more: Any) -> dict[str, Any]:
        """Matplotlib arguments for markers of this method, without a line."""
        edge = {"markeredgecolor": SURFACE, "markeredgewidth": 0.8}
        look = {"color": self.colour, "marker": self.marker, "markersize": size}
        return {"linestyle": "none", **look, **edge, **more}


# --- drawing and showing ---


@contextmanager
def drawing(size: tuple[float, float], font: float = 11, layout: str | None = "constrained") -> Any:
    """A new figure of ``size`` inches in the project's style, to draw on inside the block."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_SETTINGS, "font.size": font}):
        yield Figure(figsize=size, layout=layout, facecolor=SURFACE)  # type: ignore[arg-type]


def boxed(figure: Figure, left: float, bottom: float, right: float, top: float) -> Axes:
    """Axes with these margins in inches; much faster than measuring every label."""
    width, height = (float(side) for side in figure.get_size_inches())
    inside = (width - left - right) / width, (height - bottom - top) / height
    return figure.add_axes((left / width, bottom / height, *inside))


def plain(axes: Axes, title: str = "", grid: Literal["x", "y"] | None = "y") -> None:
    """Finish axes: add a title, and a grid along ``grid``."""
    if grid:
        axes.grid(axis=grid)
    if title:
        axes.set_title(title, color=INK)


def without_ticks(axes: Axes, title: str = "") -> None:
    """Finish axes whose units have no meaning, such as those of a map."""
    plain(axes, title, grid=None)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines["bottom"].set_color(LINE)


def legend(axes: Axes, **where: Any) -> None:
    """A legend in the project's style, inside the axes."""
    axes.legend(labelcolor=INK, **where)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure to a file, ``.svg``, ``.pdf`` or ``.png``, and return its path.

    Several labelled lines get a legend below, unless the figure already has one.
    """
    import matplotlib

    kind = path.suffix[1:]
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    with matplotlib.rc_context(_SETTINGS), _own_legend(figure):
        figure.savefig(drawn, format=kind, dpi=_DPI, metadata=metadata[kind])
    content = drawn.getvalue()
    if kind == "svg":  # XML has no control characters
        content = visible(content.decode()).encode()
    path.write_bytes(content)
    return path


@contextmanager
def _own_legend(figure: Figure) -> Iterator[None]:
    """Add a legend below the figure inside the block; pages have their own legends."""
    found = figure.axes[0].get_legend_handles_labels() if figure.axes else ([], [])
    drawn = sorted(zip(*found, strict=True), key=lambda pair: _position(pair[0]))
    handles, labels = [handle for handle, _ in drawn], [label for _, label in drawn]
    if len(labels) < 2 or figure.legends or any(axes.get_legend() for axes in figure.axes):
        yield
        return
    width, height = (float(side) for side in figure.get_size_inches())
    columns = max(1, int(width / (0.55 + 0.085 * max(map(len, labels)))))
    extra = 0.22 * math.ceil(len(labels) / columns)
    _lift(figure, height, extra)
    look: dict[str, Any] = {"ncols": columns, "labelcolor": INK}
    made = figure.legend(handles, labels, loc="outside lower center", **look)
    try:
        yield
    finally:
        made.remove()
        _lift(figure, height + extra, -extra)


def _position(artist: Artist) -> int:
    """The number that ``named`` gave to an artist."""
    return int((artist.get_gid() or "").partition(":")[2] or 0)


def _lift(figure: Figure, height: float, extra: float) -> None:
    """Add ``extra`` inches below all axes of a figure of this height."""
    figure.set_size_inches(float(figure.get_size_inches()[0]), height + extra)
    if figure.get_layout_engine() is None:
        for axes in figure.axes:
            box, size = axes.get_position(), height / (height + extra)
            bottom = (box.y0 * height + extra) / (height + extra)
            axes.set_position((box.x0, bottom, box.width, box.height * size))


def inline(figure: Figure, words: str, clip: bool = True) -> Markup:
    """The figure as SVG for a page, in the page's colours and font; ``words`` describe it.

    Without ``clip``, parts beyond the limits of an axis are shown.
    """
    root = _rendered(figure, clip)
    width, height = root.attrib["viewBox"].split()[2:]
    content = _themed(root, f"{_hash(ElementTree.tostring(root, 'unicode') + words)}-")
    attributes = {"class": "chart", "role": "img", "aria-label": words}
    most = f"max-width: {float(width) / 72 * _REM_PER_INCH:.1f}rem"
    svg = ElementTree.Element(
        "svg", {**attributes, "viewBox": f"0 0 {width} {height}", "style": most}
    )
    svg.extend(content)
    return Markup(ElementTree.tostring(svg, "unicode"))


def named(artist: Artist, kind: str, position: int = 0) -> None:
    """Name an artist: the name is its class in a page, and part of a unique id in a file."""
    artist.set_gid(f"{kind}:{position}")


@cache
def _symbol(style: MethodStyle) -> Markup:
    with drawing((28 / 72, 12 / 72), layout=None) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 28), ylim=(0, 12))
        axes.set_axis_off()
        axes.plot([0, 28], [6, 6], **style.line())
        axes.plot([14], [6], **style.mark(8))
        root = _rendered(figure, clip=False)
    symbol = ElementTree.Element("symbol", {"id": f"key-{style.position}", "viewBox": "0 0 28 12"})
    symbol.extend(_themed(root, f"key-{style.position}-"))
    return Markup(ElementTree.tostring(symbol, "unicode"))


def _rendered(figure: Figure, clip: bool) -> ElementTree.Element:
    """The figure as matplotlib's SVG, with or without clip paths."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(visible(stream.getvalue()))  # XML has no control characters
    for element in () if clip else root.iter():
        element.attrib.pop("clip-path", None)
    return root


def _themed(root: ElementTree.Element, prefix: str) -> list[ElementTree.Element]:
    """The content of an SVG, without the parts that only a separate file needs.

    Ids with references get ``prefix``, because one page holds many figures. Ids set by ``named``
    become classes; all other ids are removed.
    """
    links = {e.attrib[_HREF][1:] for e in root.iter() if e.attrib.get(_HREF, "").startswith("#")}
    links |= {e.attrib["clip-path"][5:-1] for e in root.iter() if "clip-path" in e.attrib}
    return [made for child in root for made in _element(child, prefix, links)]


def _element(old: ElementTree.Element, prefix: str, links: set[str]) -> list[ElementTree.Element]:
    """The element adapted for a page: nothing, the element, or only its content."""
    tag = old.tag.removeprefix(_SVG)
    if tag in ("metadata", "style") or (tag == "clipPath" and old.attrib["id"] not in links):
        return []
    new = ElementTree.Element(tag)
    for key, value in old.attrib.items():
        if key == "id":
            if value in links:
                new.set("id", prefix + value)
            elif ":" in value:
                new.set("class", value.partition(":")[0])
        elif key == _HREF:
            new.set("href", "#" + prefix + value[1:] if value.startswith("#") else value)
        elif key == "clip-path":
            new.set(key, f"url(#{prefix}{value[5:-1]})")
        elif key == "style":
            new.set(key, _style(value))
        elif key in ("d", "x", "y"):
            new.set(key, " ".join(_rounded(word) for word in value.split()))
        elif not value.startswith("rotate(-0 "):
            new.set(key, value)
    new.text = old.text if (old.text or "").strip() else None
    new.extend([made for child in old for made in _element(child, prefix, links)])
    if tag in ("g", "defs") and not len(new):
        return []
    if tag == "path" and _style_of(new) == {"fill": "none"}:  # the bare background
        return []
    return list(new) if tag == "g" and not new.attrib else [new]


def _style_of(element: ElementTree.Element) -> dict[str, str]:
    parts = (part.partition(":") for part in element.attrib.get("style", "").split(";"))
    return {key.strip(): value.strip() for key, _, value in parts if key.strip()}


def _style(text: str) -> str:
    """The declarations of a style, in the page's colours and font."""
    element = ElementTree.Element("g", style=text)
    return "; ".join(
        f"{key}: {_VARIABLES.get(value, value)}"
        for key, value in _style_of(element).items()
        if key != "font-family"
    )


def _rounded(word: str) -> str:
    """A coordinate with two decimals; path commands are not changed."""
    return word if word.isalpha() else f"{float(word):.2f}".rstrip("0").rstrip(".")


def _hash(content: str) -> str:
    """A short, reproducible name for ``content``."""
    return "c" + hashlib.sha256(content.encode()).hexdigest()[:8]


# --- lines over one axis ---


def series(position: int) -> int:
    """The colour number of the ``position``-th series; colours repeat after the sixth."""
    return position % len(SERIES) + 1


def dashes(pattern: Sequence[float]) -> Any:
    """A dash pattern in matplotlib's form."""
    return (0, tuple(pattern)) if pattern else "solid"


def curves(
    title: str,
    lines: Sequence[Curve],
    x_label: str = "epoch",
    borders: Sequence[float] = (),
    note: str = "",
    height: float = 2.3,
) -> Chart:
    """Lines over one axis, logarithmic if the range is wide; a mark is a ring on a line."""
    with drawing((4.3, height)) as figure:
        axes = figure.add_subplot()
        plain(axes)
        for border in borders:
            axes.axvline(border, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
        for line in lines:
            _draw(axes, line)
        whole = all(float(v).is_integer() for line in lines for v in line.y)
        number_axes(axes, whole, [v for line in lines for v in line.y])
        axes.set_xlabel(x_label)
    keys = tuple(lines) if len(lines) > 1 else ()
    return Chart(title, figure, _describe(title, lines, x_label), keys, note)


def _draw(axes: Axes, line: Curve) -> None:
    ink = SERIES[line.colour - 1] if line.colour else INK
    look: dict[str, Any] = {"color": ink, "linewidth": 1.9, "linestyle": dashes(line.dash)}
    few: dict[str, Any] = {"marker": "o", "markersize": 4} if len(line.x) == 1 else {}
    axes.plot(line.x, line.y, label=line.label, **look, **few)
    if line.mark is not None:
        ring: dict[str, Any] = {"markerfacecolor": SURFACE, "markeredgewidth": 2, "markersize": 8}
        axes.plot(*[[value] for value in line.mark], "o", color=ink, zorder=4, **ring)


def number_axes(axes: Axes, whole: bool, values: Sequence[float]) -> bool:
    """Put a few round numbers on both axes; y is logarithmic if the range of ``values`` is wide.

    ``whole``: y has only whole numbers. Returns whether y is logarithmic.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=whole))
    axes.ticklabel_format(axis="y", scilimits=(-3, 5), useOffset=False)
    finite = [v for v in values if math.isfinite(v)]
    if not finite or min(finite) <= 0 or max(finite) / min(finite) <= _LOG_RATIO:
        return False
    axes.set_yscale("log")
    # The default labels are powers in mathematical notation, which is turned off here.
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    return True


def log_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About ``count`` round values on a logarithmic axis, at most."""
    from matplotlib.ticker import MaxNLocator

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [s * 10.0**d for d in decades for s in steps]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) <= count:
            break
    if len(found) > count:
        return found[:: math.ceil(len(found) / count)]
    if len(found) > 1:
        return found
    near = MaxNLocator(max(2, count - 2), steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(f"{v:.12g}") for v in near if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]


def _describe(title: str, lines: Sequence[Curve], x_label: str) -> str:
    parts = []
    for line in lines:
        if line.y:
            ends = f"{number(line.y[0])} to {number(line.y[-1])}"
            parts.append(f"{line.label} goes from {ends} over {len(line.y)} points")
    return f"{title} by {x_label}: " + "; ".join(parts)
