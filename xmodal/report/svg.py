"""Small drawings as inline SVG, written piece by piece: scales, ticks, marks, text.

For pictures whose every coordinate should be known, and of which a page holds a hundred. Colours
are classes of the style sheet, so one drawing serves light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

COLOURS, SHAPES = 8, 7
DASHES = ("", "6 2.5", "2 2", "8 2.5 2 2.5", "4 1.5")
CHARACTER = 0.6
"""Width of an average character, as a share of the size of the text."""


@dataclass(frozen=True)
class Style:
    """How a method looks everywhere on a page: colour, shape of its marks, dashes of its lines.

    Colours repeat after the eighth method; shape and dashes then differ.
    """

    position: int

    @property
    def name(self) -> str:
        """The class of the style sheet that sets the colour."""
        return f"m{self.position % COLOURS + 1}"

    @property
    def shape(self) -> int:
        """Which of the marks of ``mark``."""
        return (self.position + self.position // COLOURS) % SHAPES

    @property
    def dash(self) -> str:
        """A ``stroke-dasharray``; empty for a solid line."""
        return DASHES[(self.position + self.position // COLOURS) % len(DASHES)]

    @property
    def key(self) -> Markup:
        """A sample of line and mark for legends and tables."""
        line = tag("path", d="M0 6H28", class_="line", stroke_dasharray=self.dash)
        inside = tag("g", line + mark(14, 6, self.shape, 4), class_=self.name)
        return tag("svg", inside, class_="key", viewBox="0 0 28 12", aria_hidden="true")


@dataclass(frozen=True)
class Axis:
    """Maps values ``low`` .. ``high`` to ``start`` .. ``end`` (units of the drawing)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where ``value`` lies; what lies beyond an end, infinity too, is put on that end."""
        value = min(max(value, self.low), self.high)
        low, high = (self._place(end) for end in (self.low, self.high))
        share = (self._place(value) - low) / ((high - low) or 1.0)
        return self.start + share * (self.end - self.start)

    def _place(self, value: float) -> float:
        return math.log(value) if self.log else value


def tag(element: str, content: str | Markup = "", **attributes: str | float | None) -> Markup:
    """One element. Values are escaped, numbers rounded; empty attributes are left out."""
    words = []
    for name, value in attributes.items():
        if value is None or value == "":
            continue
        shown = _round(value) if isinstance(value, float) else str(value)
        key = name.rstrip("_") if name == "viewBox" else name.rstrip("_").replace("_", "-")
        words.append(f' {key}="{escape(shown)}"')
    head = f"<{element}{''.join(words)}"
    return Markup(f"{head}>{escape(content)}</{element}>" if content else f"{head}/>")


def _round(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def drawing(
    width: float, height: float, words: str, content: Iterable[Markup], kind: str = "plot"
) -> Markup:
    """The whole picture; ``words`` says what it shows to whom cannot see it.

    It is as wide as there is room, but not much wider than it is drawn.
    """
    box = f"0 0 {width:g} {height:g}"
    inside = Markup("").join(content)
    most = f"max-width: {1.25 * width:.0f}px"
    return tag("svg", inside, class_=kind, viewBox=box, style=most, role="img", aria_label=words)


def text(x: float, y: float, content: str, anchor: str = "middle", kind: str = "") -> Markup:
    """Text with its baseline at ``y``; ``anchor`` is start, middle or end."""
    at = None if anchor == "start" else anchor
    return tag("text", content, x=float(x), y=float(y), text_anchor=at, class_=kind)


def line(points: Sequence[tuple[float, float]], kind: str = "line", dash: str = "") -> Markup:
    """A line through ``points``."""
    steps = "L".join(f"{_round(x)} {_round(y)}" for x, y in points)
    return tag("path", d=f"M{steps}", class_=kind, stroke_dasharray=dash)


def rectangle(x: float, y: float, width: float, height: float, kind: str) -> Markup:
    """A rectangle."""
    at_x, at_y, across, down = (float(v) for v in (x, y, width, height))
    return tag("rect", class_=kind, x=at_x, y=at_y, width=across, height=down)


def mark(x: float, y: float, shape: int, size: float = 4.5, kind: str = "mark") -> Markup:
    """A mark of about ``size`` to each side: disc, square, triangles, diamond, pentagon, cross."""
    if shape == 0:
        return tag("circle", cx=float(x), cy=float(y), r=float(size), class_=kind)
    points = [(x + size * u, y + size * v) for u, v in OUTLINES[shape - 1]]
    steps = "L".join(f"{_round(u)} {_round(v)}" for u, v in points)
    return tag("path", d=f"M{steps}Z", class_=kind)


_PENTAGON = tuple(
    (1.15 * math.sin(2 * math.pi * i / 5), -1.15 * math.cos(2 * math.pi * i / 5)) for i in range(5)
)
_CROSS = tuple(
    zip(
        (-0.4, 0.4, 0.4, 1.1, 1.1, 0.4, 0.4, -0.4, -0.4, -1.1, -1.1, -0.4),
        (-1.1, -1.1, -0.4, -0.4, 0.4, 0.4, 1.1, 1.1, 0.4, 0.4, -0.4, -0.4),
        strict=True,
    )
)
OUTLINES: tuple[tuple[tuple[float, float], ...], ...] = (
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    ((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
    ((0, -1.3), (1.2, 0), (0, 1.3), (-1.2, 0)),
    ((0, 1.2), (1.15, -0.9), (-1.15, -0.9)),
    _CROSS,
    _PENTAGON,
)
"""Corners of the marks after the disc, around 0."""


# --- ticks -------------------------------------------------------------------------------------


def ticks(low: float, high: float, number: int = 5) -> list[float]:
    """About ``number`` round values from ``low`` to ``high``."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, number)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(s * unit for s in (1, 2, 2.5, 5, 10) if s * unit >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float, number: int = 6) -> list[float]:
    """At most about ``number`` round values on a logarithmic axis."""
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [s * 10.0**d for d in decades for s in steps]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) <= number:
            break
    if len(found) > number:
        return found[:: math.ceil(len(found) / number)]
    return found if len(found) > 1 else ticks(low, high, number - 2)


def short(value: float) -> str:
    """A tick's label."""
    label = f"{value:.6g}"
    if "e" in label:
        mantissa, exponent = label.split("e")
        label = f"{mantissa}e{int(exponent)}"
    return label.replace("-", "−")


def width_of(label: str, size: float) -> float:
    """About how wide a label is in text of this size; rather too much than too little."""
    return CHARACTER * size * len(label)
