"""How a text table (CSV) is written: encoding, separator, quotes. Detects it and reads the rows.

Every cell is text here; ``columns`` finds out what it means. The file is read from front to back
in bounded memory. Whatever does not fit the header is refused with its line number, because a
field too many or too few would shift all columns after it.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from xmodal.errors import DataError
from xmodal.settings import Settings

MISSING = (
    *("NA", "N/A", "n/a", "#N/A", "<NA>", "#NA", "NaN", "nan", "-nan", "-NaN", "NULL", "null"),
    *("None", "?", ".", "#DIV/0!", "#VALUE!", "#NUM!", "NaT"),
)
"""Words that mean that a value is missing, unless ``missing`` names others."""
SEPARATORS = {"\t": "tabs", ";": "';'", "|": "'|'", ",": "','", " ": "blanks"}
"""In the order of precedence: a comma may be a decimal comma, and a blank part of a text."""
_SIGNS = {
    **{"tab": "\t", "\\t": "\t", "space": " ", "blank": " ", "bar": "|", "colon": ":"},
    **{"comma": ",", "semicolon": ";", "point": "."},
}
"""Signs by name: some mean something else on a command line or in YAML."""
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_BLOCK = 1 << 20
_LONGEST_LINE = 1 << 26
_HEAD_LINES, _HEAD_SIZE = 200, 1 << 16
_JUNK = re.compile("[\x00-\x08\x0e-\x19\x7f]")


class TableFormat(Settings):
    """How a table is written, where it is not as it seems, and which words mean missing."""

    separator: str = Field(
        "auto",
        description="CSV: what separates fields, such as ',' or ';'; or comma, semicolon, tab, "
        "space, bar, colon.",
    )
    decimal: Literal["auto", ".", ","] = Field(
        "auto",
        description="CSV: the decimal mark, '.' or ',' (or point, comma); the other mark then "
        "groups thousands.",
    )
    encoding: str = Field("auto", description="CSV: such as utf-8, utf-16, cp1252 or latin-1.")
    quote: Literal["auto", '"', "'"] = Field("auto", description="CSV: what encloses fields.")
    missing: tuple[str, ...] = Field(
        MISSING,
        description="Words that mean that a value is missing, as an empty field does. In columns "
        "of labels only the empty field does.",
    )

    @field_validator("separator", "decimal", mode="before")
    @classmethod
    def _sign(cls, value: object) -> object:
        return _SIGNS.get(value, value) if isinstance(value, str) else value

    @field_validator("separator")
    @classmethod
    def _one_character(cls, value: str) -> str:
        if value != "auto" and (len(value) != 1 or value in "\"'\r\n"):
            raise ValueError(
                "separator is one character, or comma, semicolon, tab, space, bar, colon"
            )
        return value

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            if value != "auto":
                "".encode(value)
        except LookupError:
            raise ValueError(f"there is no encoding '{value}'") from None
        return value


@dataclass(frozen=True)
class Dialect:
    """How a text table is written.

    escape: what stands before a quote inside quotes; empty: such a quote is doubled.
    skip: lines above the header (Excel's ``sep=;``).
    row_names: every line begins with a name of its row, for which the header has no field, as R
        writes it.
    decimal: the mark for numbers that can be read in two ways. ``forced``: for all numbers.
    """

    encoding: str = "utf-8"
    separator: str = ","
    quote: str = '"'
    escape: str = ""
    skip: int = 0
    row_names: bool = False
    decimal: str = "."
    forced: bool = False

    def state(self) -> dict[str, Any]:
        """The dialect as plain values."""
        return asdict(self)

    def said(self) -> str:
        """The dialect in words."""
        apart = SEPARATORS.get(self.separator, f"'{self.separator}'")
        quoted = "" if self.quote == '"' else f", quoted by {self.quote}"
        marks = f", decimal '{self.decimal}'" if self.forced else ""
        return f"{self.encoding}, separated by {apart}{marks}{quoted}"


def detect(
    path: Path, settings: TableFormat, like: Dialect | None = None, columns: Sequence[str] = ()
) -> Dialect:
    """How ``path`` is written, where ``settings`` do not say it.

    Of several dialects that fit, the result is the one whose header has all of ``columns``, then
    the one ``like`` the training file's. Raises DataError for what is not text.
    """
    encoding = _encoding(path) if settings.encoding == "auto" else settings.encoding
    if settings.encoding == "auto" and encoding == "cp1252" and like is not None:
        # Every byte is a character in these encodings: nothing in the file tells them apart.
        encoding = like.encoding if _single_byte(like.encoding) else encoding
    known = like or Dialect()
    base = Dialect(
        encoding,
        decimal=known.decimal if settings.decimal == "auto" else settings.decimal,
        forced=settings.decimal != "auto" or (known.forced and settings.decimal == "auto"),
    )
    head = _head(path, encoding)
    first = head[0].strip().strip('"') if head else ""
    if re.fullmatch("sep=.", first, re.IGNORECASE):
        base, head = replace(base, skip=1, separator=first[-1]), head[1:]
        marks = [first[-1]]
    else:
        marks = [known.separator, *SEPARATORS] if like else [*SEPARATORS]
    if settings.separator != "auto":
        marks = [settings.separator]
    if settings.quote == "auto":
        single = bool(head) and head[0].lstrip().startswith("'") and '"' not in "".join(head)
        base = replace(base, quote="'" if single else '"')
    else:
        base = replace(base, quote=settings.quote)
    escapes = ["", "\\"] if "\\" + base.quote in "".join(head) else [""]
    found = [
        _tried(head, replace(base, separator=mark, escape=escape))
        for mark in dict.fromkeys(marks)
        for escape in escapes
    ]
    # The largest: has the columns, fits, has several fields; else the widest header.
    return max(found, key=lambda one: one.worth({*columns})).dialect


@dataclass(frozen=True)
class _Tried:
    """A dialect, the header that it gives, and whether the first lines fit that header."""

    dialect: Dialect
    header: list[str]
    fits: bool

    def worth(self, columns: set[str]) -> tuple[bool, bool, int, bool]:
        """What speaks for it, the strongest first."""
        has_columns = bool(columns) and columns <= {*self.header}
        # A header of text has blanks of its own, so only lines that fit make blanks separators.
        width = 0 if self.dialect.separator == " " else len(self.header)
        several = self.fits and len(self.header) > 1
        return has_columns, several, 1 if several else width, self.fits


def _tried(head: list[str], dialect: Dialect) -> _Tried:
    rows: list[tuple[int, list[str]]] = []
    try:
        rows.extend(_parsed(head, dialect))
    except csv.Error:
        # The last record may go on beyond the first lines.
        if len(rows) < 2 or len(head) < _HEAD_LINES:
            return _Tried(dialect, _header(rows[0][1]) if rows else [], False)
    if not rows:
        return _Tried(dialect, [], False)
    header, body = _header(rows[0][1]), [fields for _, fields in rows[1:]]
    if _have_row_names(header, body, head, dialect):
        return _Tried(replace(dialect, row_names=True), header, True)
    width = len(header)
    fits = all(
        len(fields) == width or (len(fields) > width and not any(fields[width:])) for fields in body
    )
    return _Tried(dialect, header, fits)


def _header(fields: list[str]) -> list[str]:
    """The names; fields without a name after the last one are none."""
    names = [name.strip() for name in fields]
    while len(names) > 1 and not names[-1]:
        names.pop()
    return names


def _have_row_names(
    header: list[str], body: list[list[str]], head: list[str], dialect: Dialect
) -> bool:
    """R's layout: one more field than the header, and first a quoted name or the row's number."""
    if not body or any(len(fields) != len(header) + 1 or not fields[-1] for fields in body):
        return False
    quoted = all(line.lstrip().startswith(dialect.quote) for line in head[1:] if line.strip())
    counted = [fields[0] for fields in body] == [str(1 + index) for index in range(len(body))]
    return quoted or (counted and len(header) > 1 and len(body) > 1)


def rows(path: Path, dialect: Dialect) -> tuple[list[str], Iterator[list[str]]]:
    """The names of the columns, and then the fields of every row, as many as there are names.

    With ``row_names`` the first name is empty. Raises DataError with the line.
    """
    lines = _lines(path, dialect.encoding)
    for _ in range(dialect.skip):
        next(lines, "")
    records = _records(path, lines, dialect)
    _, fields = next(records, (0, []))
    names = _header(fields)
    if dialect.row_names:
        names = ["", *names]
    return names, _fitting(path, records, len(names), len(_header(fields)))


def fields_of(
    path: Path, lines: Iterable[str], dialect: Dialect, width: int
) -> Iterator[list[str]]:
    """The ``width`` fields of every row in ``lines``, which follow ``skip`` lines of a file.

    Raises DataError with the line.
    """
    return _fitting(path, _records(path, iter(lines), dialect), width, width)


def _records(path: Path, lines: Iterator[str], dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """The line and the fields of every record. Raises DataError."""
    at = 0
    try:
        for at, fields in _parsed(lines, dialect):
            yield at + dialect.skip, fields
    except csv.Error as error:
        line = at + dialect.skip + 1
        cause = str(error)
        if "unexpected end" in cause:
            cause = f"a field that begins with {dialect.quote} does not end"
        elif "field larger" in cause:
            cause += f"; does a field that begins with {dialect.quote} not end?"
        raise DataError(
            f"{path}: cannot be read as csv: line {line} or one after it: {cause}"
        ) from error


def _parsed(lines: Iterable[str], dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """The last line and the fields of every record that is not blank. Raises csv.Error."""
    blanks = dialect.separator == " "
    reader = csv.reader(
        (line.replace("\t", " ").strip() for line in lines) if blanks else lines,
        delimiter=dialect.separator,
        quotechar=dialect.quote,
        doublequote=not dialect.escape,
        escapechar=dialect.escape or None,
        skipinitialspace=True,
        strict=True,
    )
    for fields in reader:
        if len(fields) > 1 or (fields and fields[0].strip()):
            yield reader.line_num, fields


def _fitting(
    path: Path, records: Iterator[tuple[int, list[str]]], width: int, named: int
) -> Iterator[list[str]]:
    for line, fields in records:
        if len(fields) == width:
            yield fields
            continue
        if len(fields) < width or any(field.strip() for field in fields[width:]):
            raise DataError(
                f"{path}: line {line} has {len(fields)} fields, but the header {named}; a field "
                "too many or too few would shift the columns"
            )
        yield fields[:width]


def _head(path: Path, encoding: str) -> list[str]:
    """The first lines, a few at least."""
    head, size = [], 0
    for line in _lines(path, encoding):
        head.append(line)
        size += len(line)
        if len(head) >= _HEAD_LINES or (len(head) > 20 and size > _HEAD_SIZE):
            break
    wrong = next((i for i, line in enumerate(head) if _JUNK.search(line)), None)
    if wrong is not None:
        found = _JUNK.search(head[wrong])
        assert found is not None
        raise DataError(
            f"{path}: is not text: line {wrong + 1} holds the control character {found[0]!r}"
        )
    return head


def _lines(path: Path, encoding: str) -> Iterator[str]:
    try:
        with path.open(encoding=encoding, newline="") as stream:
            number = 0
            while line := stream.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE:
                    raise DataError(f"{path}: line {number} is longer than 64 MB; is it a table?")
                yield line
    except UnicodeError as error:
        raise DataError(f"{path}: cannot be read as {encoding}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _single_byte(encoding: str) -> bool:
    try:
        return len(bytes(range(160, 256)).decode(encoding)) == 96
    except UnicodeError:
        return False


def _encoding(path: Path) -> str:
    """UTF-8, UTF-16 or UTF-32, if all of the file is; else cp1252. Raises DataError."""
    try:
        with path.open("rb") as stream:
            block = stream.read(_BLOCK)
            for bom, name in _BOMS.items():
                if block.startswith(bom):
                    return name
            even, odd = block[::2].count(0), block[1::2].count(0)
            if max(even, odd) > len(block) // 5 and min(even, odd) <= len(block) // 50:
                return "utf-16-le" if odd > even else "utf-16-be"
            decoder, utf8, lines = codecs.getincrementaldecoder("utf-8")(), True, 1
            while block:
                if b"\0" in block:
                    line = lines + block[: block.index(b"\0")].count(b"\n")
                    raise DataError(f"{path}: is not text: line {line} holds a NUL byte")
                lines += block.count(b"\n")
                try:
                    utf8 = utf8 and decoder.decode(block) is not None
                except UnicodeDecodeError:
                    utf8 = False
                block = stream.read(_BLOCK)
            if utf8:
                try:
                    decoder.decode(b"", final=True)
                except UnicodeDecodeError:
                    utf8 = False
            return "utf-8" if utf8 else "cp1252"
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
