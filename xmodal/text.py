"""Formats numbers, names and lists in the same way in messages, in reports and in figures.

Numbers have four significant digits and units; missing numbers are a dash. Names can come from
anybody's files: what could steer a terminal is shown, and what is long is cut.
"""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

MISSING = "–"
MOST_NAMES, MOST_LETTERS = 12, 80
"""How many names a message lists, and how many characters of each."""
MOST_KNOWN = 40
"""How many valid names a message lists, where one is unknown."""
_MARKUP = re.compile(r"[\\`*|\[\]]|(?<![^\W_])_|_(?![^\W_])|^[#+-]")
"""What Markdown reads as markup; an underscore within a word it does not."""
_FORMULA = tuple("=+-@\t＝＋－＠")
_JOINERS = "\u200c\u200d"


def number(value: float | int | None, digits: int = 4) -> str:
    """``value`` with ``digits`` significant digits; a dash for None."""
    if value is None:
        return MISSING
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", "\u202f")
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "not a number")
    if value and not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    if not value:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}".replace("-", "−")


def count(value: int | None) -> str:
    """A large count in short form: 87.8 M; a dash for None."""
    if value is None:
        return MISSING
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= unit:
            return f"{number(value / unit, 3)} {name}"
    return str(value)


def duration(seconds: float | None) -> str:
    """Seconds as ``42.1 s``, ``3 min 12 s`` or ``2 h 05 min``."""
    if seconds is None:
        return MISSING
    if seconds < 0.001:
        return "< 1 ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(value: float | None) -> str:
    """Bytes with three digits, in units of 1000: ``1.36 GB``; a dash for None and 0."""
    if not value:
        return MISSING
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        # A value that would be shown as 1000 of a unit is 1 of the next unit.
        if value >= 0.9995 * unit:
            return f"{number(max(value / unit, 1.0), 3)} {name}"
    return f"{value:.0f} B"


def plural(amount: int, one: str) -> str:
    """``1 epoch``, ``2 epochs``."""
    return f"{number(amount)} {one}{'' if amount == 1 else 's'}"


def mean_sd(mean: float | None, sd: float | None) -> str:
    """``0.0989 ± 0.0042``: two digits of the deviation, at least three of the mean."""
    if mean is None or sd is None or not math.isfinite(mean):
        return number(mean)
    if not sd:
        return f"{number(mean, 3)} ± 0"
    size = max(abs(mean), sd)
    if not 1e-4 <= size < 1e6:
        unit = math.floor(math.log10(size))
        return f"({mean_sd(mean / 10**unit, sd / 10**unit)})e{unit}".replace("-", "−")
    # Keep three digits of the mean if the deviation is large, and at most four if it is tiny.
    first = math.floor(math.log10(abs(mean) or sd))
    places = max(0, min(max(1 - math.floor(math.log10(sd)), 2 - first), 3 - first))
    spread = f"{sd:.{places}f}"
    if not float(spread):
        spread = f"< {10.0**-places:.{places}f}"
    return f"{mean:.{places}f} ± {spread}".replace("-", "−")


def percent(log_ratio: float) -> str:
    """A log-ratio as a change: ``−12.7 %``."""
    if log_ratio > 700:  # exp is infinite
        return "+∞ %"
    return f"{100 * math.expm1(log_ratio):+.1f} %".replace("-", "−")


def percents(low: float, high: float) -> str:
    """An interval of log-ratios as changes: ``−12.7 % to +1.0 %``."""
    return f"{percent(low)} to {percent(high)}"


def probability(p: float) -> str:
    """A p value or probability with two digits; never rounded to 0 or 1."""
    if 0 < p < 0.0001:
        return "< 0.0001"
    if 0.999 < p < 1:
        return "> 0.999"
    return f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def spans(numbers: Iterable[int]) -> str:
    """Whole numbers in short form: ``0–2, 5``."""
    runs: list[list[int]] = []
    for value in sorted(set(numbers)):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}–{r[-1]}" for r in runs)


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def shortlist(names: Iterable[object], most: int = MOST_NAMES) -> str:
    """Names in a message, ``a, b, c``; of many only the first ``most``: ``a, b, ... (3000)``.

    Every name is shown by ``shown``.
    """
    names = list(names)
    text = ", ".join(map(shown, names[:most]))
    return text if len(names) <= most else f"{text}, ... ({len(names)})"


def shown(value: object, most: int = MOST_LETTERS) -> str:
    """A name or a value within a line of a message: visible, on one line, and not too long."""
    text = str(value)
    line = visible(text[:most], line_breaks=False)
    return line if len(text) <= most else f"{line}... ({len(text)} characters)"


def visible(text: str, line_breaks: bool = True) -> str:
    """The text with escapes such as ``\\x1b`` for characters that cannot be seen.

    These could steer a terminal (control characters), change the order of what is read
    (directions), or fail to be written (halves of surrogate pairs). ``line_breaks``: leave line
    feeds and tabs as they are.
    """
    if text.isprintable():  # nearly all text is, and is asked for by the thousand
        return text
    kept = "\n\t" if line_breaks else ""
    hidden = {letter for letter in set(text) if letter not in kept and _hidden(letter)}
    return text.translate({ord(c): c.encode("unicode_escape").decode("ascii") for c in hidden})


def markdown(value: object) -> str:
    """A name or a sentence as text in Markdown: on one line, without markup of its own or HTML."""
    text = html.escape(visible(str(value), line_breaks=False), quote=False)
    return _MARKUP.sub(r"\\\g<0>", text)


def spreadsheet(value: object) -> str:
    """A cell of a CSV file that no spreadsheet takes for a formula.

    Text that begins like one gets an apostrophe in front; numbers keep their signs.
    """
    text = visible(str(value))
    return f"'{text}" if text[:1] in _FORMULA and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _hidden(letter: str) -> bool:
    # Joiners are format characters, but needed to write Persian, Hindi and families of emoji.
    return unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") and letter not in _JOINERS
