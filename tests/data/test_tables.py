"""Tables as other programs write them; what would be misread is refused with its place."""

from __future__ import annotations

import datetime
import json
import os
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xmodal.data import tables
from xmodal.data.tables import Part, TableFormat
from xmodal.errors import DataError

NAN = np.nan
Read = tuple[tuple[str, ...], list[list[Any]], list[str]]


def read(path: Path, **settings: Any) -> Read:
    """The columns of x (all but the last), their numbers, and all notes."""
    written = TableFormat(**settings)
    opened = tables.open_table(path, written)
    part = replace(opened.whole(), where="t")
    form, notes = tables.learn([part], opened.names[:-1], (), written)
    return form.features, form.encode(part).tolist(), [*opened.notes, *notes]


def csv(folder: Path, text: str | bytes, encoding: str = "utf-8") -> Path:
    path = folder / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


# Every program's own way to write the same table: a number, a number, a text, a label.
WRITTEN = {
    "Excel, CSV UTF-8, English": (
        "size,weight,town,y\r\n"
        "1.5,1200,Köln,a\r\n"
        "-0.25,7,Oslo,b\r\n",
        "utf-8-sig",
    ),
    "Excel, CSV UTF-8, German": (
        "size;weight;town;y\r\n"
        "1,5;1200;Köln;a\r\n"
        "-0,25;7;Oslo;b\r\n",
        "utf-8-sig",
    ),
    "Excel, CSV, German": (
        "size;weight;town;y\r\n"
        "1,5;1200;Köln;a\r\n"
        "-0,25;7;Oslo;b\r\n",
        "cp1252",
    ),
    "Excel, sep=": (
        "sep=;\r\n"
        "size;weight;town;y\r\n"
        "1,5;1200;Köln;a\r\n"
        "-0,25;7;Oslo;b\r\n",
        "utf-8",
    ),
    "Excel, Unicode text": (
        "size\tweight\ttown\ty\r\n"
        "1,5\t1200\tKöln\ta\r\n"
        "-0,25\t7\tOslo\tb\r\n",
        "utf-16",
    ),
    "Excel, grouped thousands": (
        "size,weight,town,y\r\n"
        '1.5,"1,200.00",Köln,a\r\n'
        "-0.25,7.00,Oslo,b\r\n",
        "utf-8",
    ),
    "R write.csv": (
        '"","size","weight","town","y"\n'
        '"1",1.5,1200,"Köln","a"\n'
        '"2",-0.25,7,"Oslo","b"\n',
        "utf-8",
    ),
    "R write.csv, no row names": (
        '"size","weight","town","y"\n'
        '1.5,1200,"Köln","a"\n'
        '-0.25,7,"Oslo","b"\n',
        "utf-8",
    ),
    "R write.csv2": (
        '"";"size";"weight";"town";"y"\n'
        '"1";1,5;1200;"Köln";"a"\n'
        '"2";-0,25;7;"Oslo";"b"\n',
        "utf-8",
    ),
    "R write.table": (
        '"size" "weight" "town" "y"\n'
        '"1" 1.5 1200 "Köln" "a"\n'
        '"2" -0.25 7 "Oslo" "b"\n',
        "utf-8",
    ),
    "R write.table, sep=,": (
        '"size","weight","town","y"\n'
        '"1",1.5,1200,"Köln","a"\n'
        '"2",-0.25,7,"Oslo","b"\n',
        "utf-8",
    ),
    "R write.table, no quotes": (
        "size weight town y\n"
        "1 1.5 1200 Köln a\n"
        "2 -0.25 7 Oslo b\n",
        "latin-1",
    ),
    "R write.table, tabs": (
        "size\tweight\ttown\ty\n"
        "1.5\t1200\tKöln\ta\n"
        "-0.25\t7\tOslo\tb\n",
        "utf-8",
    ),
    "MATLAB writetable": (
        "size,weight,town,y\n"
        "1.5,1200,Köln,a\n"
        "-0.25,7,Oslo,b\n",
        "utf-8",
    ),
    "MATLAB, blanks": (
        "size   weight   town   y\n"
        "  1.5     1200   Köln   a\n"
        "-0.25        7   Oslo   b\n",
        "utf-8",
    ),
    "MATLAB, bars": (
        "size|weight|town|y\n"
        "1.5|1200|Köln|a\n"
        "-0.25|7|Oslo|b\n",
        "utf-8",
    ),
    "LibreOffice, text quoted": (
        '"size","weight","town","y"\n'
        '1.5,1200,"Köln","a"\n'
        '-0.25,7,"Oslo","b"\n',
        "utf-8",
    ),
    "LibreOffice, German commas": (
        "size,weight,town,y\n"
        '"1,5",1200,Köln,a\n'
        '"-0,25",7,Oslo,b\n',
        "utf-8",
    ),
    "pandas to_csv": (
        ",size,weight,town,y\n"
        "0,1.5,1200,Köln,a\n"
        "1,-0.25,7,Oslo,b\n",
        "utf-8",
    ),
    "pandas, saved twice": (
        "Unnamed: 0,size,weight,town,y\n"
        "0,1.5,1200,Köln,a\n"
        "1,-0.25,7,Oslo,b\n",
        "utf-8",
    ),
    "old Mac": (
        "size,weight,town,y\r"
        "1.5,1200,Köln,a\r"
        "-0.25,7,Oslo,b\r",
        "utf-8",
    ),
    "UTF-16 without a mark": (
        "size;weight;town;y\r\n"
        "1.5;1200;Köln;a\r\n"
        "-0.25;7;Oslo;b\r\n",
        "utf-16-le",
    ),
    "blanks after commas": (
        " size, weight, town , y\n"
        "1.5, 1200, Köln , a\n"
        "-0.25, 7, Oslo, b\n",
        "utf-8",
    ),
    "a comma too many": (
        "size,weight,town,y,\n"
        "1.5,1200,Köln,a,\n"
        "-0.25,7,Oslo,b,,\n"
        "\n",
        "utf-8",
    ),
    "single quotes": (
        "'size','weight','town','y'\n"
        "1.5,1200,'Köln','a'\n"
        "-0.25,7,'Oslo','b'\n",
        "utf-8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("program", WRITTEN)
def test_the_same_table_from_every_program(tmp_path: Path, program: str) -> None:
    text, encoding = WRITTEN[program]
    path = csv(tmp_path, text, encoding)
    opened = tables.open_table(path)
    assert opened.names == ("size", "weight", "town", "y")
    whole = opened.whole()
    assert tables.label_values(whole, ["y"]).tolist() == ["a", "b"]
    assert [cell.strip() for cell in whole.table["town"].to_pylist()] == ["Köln", "Oslo"]
    names, values, notes = read(path)
    assert (names, values) == (("size", "weight", "town"), [[1.5, 1200, 0], [-0.25, 7, 1]])
    assert "(set separator:, decimal:, encoding: or quote: to change)" in notes[0]
    index = program in (
        "R write.csv", "R write.csv2", "R write.table", "R write.table, sep=,",
        "R write.table, no quotes", "pandas to_csv", "pandas, saved twice",
    )  # fmt: skip
    assert any("left out" in note and "saved index" in note for note in notes) == index


def test_quotes_inside_quotes(tmp_path: Path) -> None:
    """Doubled, as nearly all do, or after a backslash, as R's write.table does; lines go on."""
    for text in (
        'a,b,y\n1,"x ""q"", z",u\n2,"two\nlines",v\n',
        'a,b,y\n1,"x \\"q\\", z",u\n2,"two\nlines",v\n',
    ):
        whole = tables.open_table(csv(tmp_path, text)).whole().table
        assert whole["b"].to_pylist() == ['x "q", z', "two\nlines"]


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({"decimal": ","}, [[1.234, 2], [2.5, 3]]),
        ({"decimal": "."}, [[1234, 2], [2500, 3]]),
    ],
)
def test_a_number_that_can_be_read_in_two_ways(
    tmp_path: Path, settings: dict[str, Any], values: Any
) -> None:
    path = csv(tmp_path, 'a,b,y\n"1,234",2,u\n"2,500",3,v\n')
    message = r"column 'a' can be read in two ways: row 0 has '1,234', 1234 or 1\.234; .*decimal:"
    with pytest.raises(DataError, match=message):
        read(path)
    assert read(path, **settings)[1] == values


def test_the_mark_is_told_by_another_column(tmp_path: Path) -> None:
    assert read(csv(tmp_path, "a;b;y\n1,234;0,5;u\n2,500;7;v\n"))[1] == [[1.234, 0.5], [2.5, 7]]
    assert read(csv(tmp_path, "a;b;y\n1.234;0.5;u\n2.500;7;v\n"))[1] == [[1.234, 0.5], [2.5, 7]]
    # German thousands: decimal commas elsewhere make the point doubtful.
    with pytest.raises(DataError, match=r"row 0 has '1\.234', 1234 or 1\.234"):
        read(csv(tmp_path, "a;b;y\n1.234;0,5;u\n2.500;7;v\n"))
    assert read(csv(tmp_path, "a;b;y\n1.234;0,5;u\n2.500,5;7;v\n"))[1] == [[1234, 0.5], [2500.5, 7]]


def test_numbers_of_both_marks_are_doubted(tmp_path: Path) -> None:
    _, _, notes = read(csv(tmp_path, 'a,b,y\n1.5,1,u\n"2,5",2,v\n'))
    assert any(
        "column 'a' read as a category of 2 levels; its texts are numbers" in n for n in notes
    )


def test_numbers_with_units_are_doubted(tmp_path: Path) -> None:
    for first, second in (("12.5 %", "7%"), ("$3.50", "$4"), ("3 kg", "4 kg")):
        _, _, notes = read(csv(tmp_path, f"a,y\n{first},u\n{second},v\n"))
        assert any("its texts are numbers with a sign or unit" in note for note in notes), first
    _, _, notes = read(csv(tmp_path, "a,y\nred,u\n2nd street,v\n"))
    assert not any("sign or unit" in note for note in notes)


LONG = "a,b,y\n1,2,u\n3,4,v\n5,6,u"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{LONG},7\n1,2,v\n", "line 4 has 4 fields, but the header 3"),
        ("y,a,b\nu,1,2\nv,3,4,5\n", "line 3 has 4 fields, but the header 3"),
        ("y,a,b\nu,1,2,9\nv,3,4,5\n", "line 2 has 4 fields, but the header 3"),
        ("a,b,y\n9,1,2,u\n4,3,4,v\n", "line 2 has 4 fields, but the header 3"),
        (f"{LONG}\n1,2\n", "line 5 has 2 fields, but the header 3"),
        ("a;b;y\r\n1,5;2;u\r\n1;2;v;3\r\n", "line 3 has 4 fields, but the header 3"),
        ('a,b,y\n1,"2\n2",u\n\n3,4,v,5\n', "line 5 has 4 fields, but the header 3"),
        ("a,,y\n1,2,u\n3,4,v\n", "column 2 has no name"),
        ("a, a ,y\n1,2,u\n3,4,v\n", "two columns are named 'a'; rename one of them"),
        ('a,b,y\n1,"2,u\n3,4,v\n', 'line 2 or one after it: a field that begins with " does not'),
        ('a,b,y\n1,"2"x,u\n3,4,v\n', "line 2 or one after it: ',' expected after"),
        ("a,b,y\n1,2,u\n3,\0,v\n", "is not text: line 3 holds a NUL byte"),
        ("a,b,y\n1,\x01,u\n", r"is not text: line 2 holds the control character '\\x01'"),
        ("a,b,y\n", r"needs a row and two columns, has \(0, 3\)"),
        ("a,b,y\n1,,u\n2,NA,v\n", "column 'b' has no value; leave it out"),
        ("a,b,y\n1,3/4/2024,u\n2,5/6/2024,v\n", "day and month cannot be told apart"),
    ],
)
def test_what_would_be_misread_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(csv(tmp_path, text))


def test_a_long_line_beyond_the_first_ones(tmp_path: Path) -> None:
    lines = ["a,b,y", *(f"{i},{i},u" for i in range(5000)), "1,2,v,", "1,2,v,3"]
    path = csv(tmp_path, "\n".join(lines))
    with pytest.raises(DataError, match="line 5003 has 4 fields, but the header 3"):
        tables.open_table(path).whole()
    assert tables.open_table(csv(tmp_path, "\n".join(lines[:-1]))).whole().table.num_rows == 5001


def test_an_encoding_that_breaks_late(tmp_path: Path) -> None:
    """The whole file is looked at, not its beginning."""
    text = "a,b,y\n" + "1,Oslo,u\n2,Rome,v\n" * 100_000 + "3,Köln,u\n"
    opened = tables.open_table(csv(tmp_path, text, "cp1252"))
    assert opened.dialect is not None
    assert opened.dialect.encoding == "cp1252"
    assert opened.whole().table["b"][-1].as_py() == "Köln"


@pytest.mark.parametrize("settings", [{"separator": "::"}, {"encoding": "utf-99"}, {"quote": "x"}])
def test_settings_that_are_none(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"separator|encoding|quote"):
        TableFormat(**settings)


def test_settings_win(tmp_path: Path) -> None:
    path = csv(tmp_path, "a b:c,d:y\n1:Köln:u\n2:Oslo:v\n", "mac-roman")
    names, values, _ = read(path, separator=":", encoding="mac-roman")
    assert (names, values) == (("a b", "c,d"), [[1, 0], [2, 1]])
    _, values, _ = read(csv(tmp_path, "a,b,y\n1,x,u\n2,NA,v\n"), missing=("x",))
    np.testing.assert_array_equal(values, [[1, NAN], [2, 0]])
    _, values, notes = read(csv(tmp_path, "a,b,y\n1,x,u\nNA,NA,v\n3,z,v\n"), missing=("x",))
    np.testing.assert_array_equal([row[1] for row in values], [NAN, 0, 1])
    assert any("missing values are empty fields and x; found: 'x' (1)" in note for note in notes)


# --- damaged files --------------------------------------------------------------------------------


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    for end in ("csv", "parquet"):
        os.mkfifo(tmp_path / f"p.{end}")
        with pytest.raises(DataError, match="is a pipe"):
            tables.open_table(tmp_path / f"p.{end}")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="is a device"):
        tables.open_table(tmp_path / "zero.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder\.csv: is a folder"):
        tables.open_table(tmp_path / "folder.csv")


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_damage_is_an_error_that_names_the_file(tmp_path: Path, end: str) -> None:
    """Bytes changed at random: the file is read, or refused with its name; nothing else."""
    path = tmp_path / f"t.{end}"
    frame = pd.DataFrame({"a": range(40), "b": ["x", "y"] * 20, "d": ["2024-01-05"] * 40, "y": "u"})
    frame.to_csv(path, index=False) if end == "csv" else frame.to_parquet(path)
    whole, random, refused = path.read_bytes(), np.random.default_rng(0), list[str]()
    for _ in range(60):
        content = bytearray(whole)
        for place in random.integers(0, len(content), random.integers(1, 6)):
            content[place] = random.integers(256)
        cut = len(content) if random.random() < 0.7 else int(random.integers(1, len(content)))
        path.write_bytes(bytes(content[:cut]))
        try:
            read(path)
        except DataError as error:
            refused.append(str(error))
    assert all(message.startswith(("t: ", str(path))) for message in refused)
    assert 5 < len(refused) < 60


# --- typed tables ---------------------------------------------------------------------------------

DAY = datetime.date(2024, 2, 29)


def typed() -> pd.DataFrame:
    hours = pd.Timestamp("2024-02-29 06:00")
    return pd.DataFrame({
        "price": [Decimal("1.25"), None],
        "day": [DAY, DAY + datetime.timedelta(1)],
        "time": [hours, hours + pd.Timedelta(hours=12)],
        "took": pd.to_timedelta(["1 days", "90 s"]),
        "seen": [True, False],
        "count": pd.array([1, None], dtype="Int64"),
        "flag": pd.array([None, True], dtype="boolean"),
        "name": pd.array(["p", None], dtype="string"),
        "code": pd.Categorical([20, 10]),
        "odd": pd.Series([1.5, pd.NA], dtype=object),
        "arrow": pd.Series([Decimal("2.5"), None], dtype=pd.ArrowDtype(pa.decimal128(6, 2))),
        "y": ["u", "v"],
    })  # fmt: skip


def test_typed_columns_are_numbers_and_categories(tmp_path: Path) -> None:
    frame = typed()
    frame.drop(columns="odd").assign(odd=[1.5, None])[frame.columns].to_parquet(
        tmp_path / "t.parquet"
    )
    names, values, _ = read(tmp_path / "t.parquet")
    found = dict(zip(names, np.array(values).T.tolist(), strict=True))
    year = 2 * np.pi * np.array([59, 60]) / 366  # 29 February is day 59 of 366, counted from 0
    np.testing.assert_allclose(found["price"], [1.25, NAN])
    np.testing.assert_allclose(found["day"], [19782, 19783])
    np.testing.assert_allclose(found["day: sine of the year"], np.sin(year))
    np.testing.assert_allclose(found["day: cosine of the year"], np.cos(year))
    # A Thursday and a Friday, days 3 and 4 of the week.
    week = 2 * np.pi * np.array([3, 4]) / 7
    np.testing.assert_allclose(found["day: sine of the week"], np.sin(week))
    assert "day: sine of the day" not in found
    # Of a single day, only the time of day varies.
    assert [name for name in names if name.startswith("time")] == [
        "time", "time: sine of the day", "time: cosine of the day",
    ]  # fmt: skip
    month = 2 * np.pi * np.array([28 / 29, 0])  # the last day of February, the first of March
    np.testing.assert_allclose(found["day: sine of the month"], np.sin(month), atol=1e-12)
    np.testing.assert_allclose(found["day: cosine of the month"], np.cos(month), atol=1e-12)
    np.testing.assert_allclose(found["time"], [19782.25, 19782.75])
    np.testing.assert_allclose(found["time: sine of the day"], [1, -1])
    np.testing.assert_allclose(found["time: cosine of the day"], [0, 0], atol=1e-12)
    np.testing.assert_allclose(found["took"], [86400, 90])
    for name, expected in {
        "seen": [1, 0], "count": [1, NAN], "flag": [NAN, 0], "name": [0, NAN], "code": [1, 0],
        "odd": [1.5, NAN], "arrow": [2.5, NAN],
    }.items():  # fmt: skip
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


def test_a_frame_is_read_as_its_file_was(tmp_path: Path) -> None:
    frame = typed()
    table = tables.of(frame)
    assert table is not None
    part = Part("x", table)
    form, _ = tables.learn([part], table.column_names[:-1])
    pq.write_table(table, tmp_path / "t.parquet")
    whole = tables.open_table(tmp_path / "t.parquet").whole()
    np.testing.assert_array_equal(form.encode(whole), form.encode(part))
    assert tables.TableForm.of(form.state()) == form


def test_dates_as_they_are_written(tmp_path: Path) -> None:
    days = np.array([19753, 19782])  # 31 January and 29 February 2024
    for first, second in (
        ("2024-01-31", "2024-02-29"),
        ("31.01.2024", "29.02.2024"),
        ("31.1.2024", "29.2.2024"),
        ("2024/01/31", "2024/02/29"),
        ("31/01/2024", "29/02/2024"),
        ("01/31/2024", "02/29/2024"),
        ("31-Jan-2024", "29-Feb-2024"),
        ("31 Jan 2024", "29 Feb 2024"),
        ("31 January 2024", "29 February 2024"),
        ('"Jan 31, 2024"', '"Feb 29, 2024"'),
        ("31.01.2024 12:00 AM", "29.02.2024 12:00 AM"),
        ("2024-01-31T00:00:00Z", "2024-02-29T02:00:00+02:00"),
    ):
        names, values, _ = read(csv(tmp_path, f"d,y\n{first},u\n{second},v\n,u\n"))
        assert len(names) == 7, first
        np.testing.assert_array_equal(np.array(values)[:, 0], [*days, NAN])
    for text, expected in (("1 days 02:00:00", 93600), ("26:00:00", 93600), ("02:30", 9000)):
        assert read(csv(tmp_path, f"d,y\n{text},u\n{text},v\n"))[1] == [[expected]] * 2


def test_only_the_parts_of_dates_that_vary_are_features(tmp_path: Path) -> None:
    for days, cycles in (
        (("2024-01-05", "2024-01-05"), []),
        (("2024-01-05", "2025-01-05"), ["week"]),  # a Friday, a Sunday
        (("2024-01-05", "2024-01-12"), ["month"]),
        (("2024-01-05", "2024-02-02"), ["year", "month"]),  # two Fridays
        (("2024-01-05T10:00", "2024-01-05T11:00"), ["day"]),
        (("2024-01-05T10:00", "2024-02-06T10:00"), ["year", "month", "week"]),
    ):
        names, _, notes = read(csv(tmp_path, f"d,y\n{days[0]},u\n{days[1]},v\n"))
        assert [n.rpartition(" ")[2] for n in names if "sine of" in n][::2] == cycles, days
        assert ("and sine and cosine of the " in str(notes)) is bool(cycles)


def test_later_dates_give_the_parts_that_varied_in_training(tmp_path: Path) -> None:
    part = tables.open_table(csv(tmp_path, "d,y\n2024-01-05,u\n2024-01-12,v\n")).whole()
    form, _ = tables.learn([part], ["d"])
    kept = tables.TableForm.of(json.loads(json.dumps(form.state())))
    assert kept == form
    later = tables.open_table(csv(tmp_path, "d,y\n2026-07-31T12:00,u\n,u\n")).whole()
    angle = 2 * np.pi * 30.5 / 31
    expected = [[20665.5, np.sin(angle), np.cos(angle)], [NAN] * 3]
    np.testing.assert_allclose(kept.encode(later), expected)
    for text in ("d,y\n,u\n", "d,y\nNA,u\n,v\n"):  # none of these rows has a date
        none = tables.open_table(csv(tmp_path, text)).whole()
        assert np.isnan(kept.encode(none)).all()


def test_runs_that_do_not_say_what_varies_keep_their_features() -> None:
    state = {"columns": [{"name": "d", "kind": "date", "levels": [], "clock": True, "form": ""}],
             "dialect": tables.Dialect().state(), "missing": []}  # fmt: skip
    cycles = ("year", "week", "day")
    waves = [f"d: {wave} of the {cycle}" for cycle in cycles for wave in ("sine", "cosine")]
    assert tables.TableForm.of(state).features == ("d", *waves)


@pytest.mark.parametrize("cell", ["Fri Jan 5 10:00:00 2024", "2024, May 3rd", "5/6/24 noon"])
def test_dates_in_a_form_that_is_not_known_are_a_category_with_a_warning(
    tmp_path: Path, cell: str
) -> None:
    names, _, notes = read(csv(tmp_path, f'd,y\n"{cell}",u\n"{cell} x",v\n'))
    assert names == ("d",)
    assert any("look like dates, in no form that is known" in note for note in notes)


@pytest.mark.parametrize(
    ("cells", "held"),
    [
        (pa.array([[1], [2]]), r"holds lists \(list<.*int64>\)"),
        (pa.array([{"a": 1}, {"a": 2}]), r"holds structures \(struct<a: int64>\)"),
        (pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int8())), r"holds structures \(map<"),
        (pa.array([b"\xff", b"\xfe"]), "holds bytes"),
        (pa.nulls(2), "has no value"),
        (pa.array([None, None], pa.float64()), "has no value"),
    ],
)
def test_columns_that_hold_no_values_are_named(tmp_path: Path, cells: Any, held: str) -> None:
    pq.write_table(pa.table({"odd_col": cells, "y": ["u", "v"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=f"column 'odd_col' {held}"):
        read(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "two columns are named 'a'"),
        (pd.DataFrame({"a": [1 + 2j]}, dtype=object), "column 'a' holds complex"),
        (pd.DataFrame({"a": [[1], "x"]}), "column 'a' holds lists or objects"),
    ],
)
def test_frames_that_cannot_be_read(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tables.of(frame)


def test_a_group_of_rows_larger_than_memory_is_read_in_pieces(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((4, 500_000))
    table = pa.table({name: values[k] for k, name in enumerate("abcd")})
    path = tmp_path / "t.parquet"
    pq.write_table(table, path, row_group_size=500_000, use_dictionary=False, compression="NONE")
    before, most, total = pa.total_allocated_bytes(), 0, 0.0
    for part in tables.open_table(path, batch=1000).pieces():
        most = max(most, pa.total_allocated_bytes() - before)
        total += float(np.sum(part.table["d"].to_numpy()))
    assert total == pytest.approx(values[3].sum())
    assert path.stat().st_size > 16_000_000
    assert most < 1_000_000


def test_identifiers_longer_than_float64_are_refused(tmp_path: Path) -> None:
    ids = [2**62 + row for row in range(9)]
    text = csv(tmp_path, "a,b,y\n" + "\n".join(f"{n},{n},u" for n in ids))
    pq.write_table(pa.table({"a": ids, "y": ids}), tmp_path / "t.parquet")
    for path in (text, tmp_path / "t.parquet"):
        with pytest.raises(DataError, match=r"column 'a' holds whole numbers up to 4\.61e\+18"):
            read(path)
    # Times in ns are as large, but far apart.
    times = [1_700_000_000_000_000_001 + 3_600_000_000_000 * row for row in range(9)]
    lines = "\n".join(f"{n},u" for n in times)
    assert read(csv(tmp_path, f"a,y\n{lines}"))[1][8][0] == float(times[8])
    assert read(csv(tmp_path, "a,y\n1e20,u\n1e20,v"))[1] == [[1e20], [1e20]]


@pytest.mark.parametrize("value", ["u", "1,5 kg", "2024-01-02", "02:00:00"])
def test_notes_on_many_columns_of_a_kind_are_cut(tmp_path: Path, value: str) -> None:
    names = ",".join(f"c{i}" for i in range(50))
    line = ",".join([f'"{value}"'] * 50)
    notes = read(csv(tmp_path, f"{names},y\n{line},u\n{line},v\n"))[2]
    assert sum("' read as " in note for note in notes) == 12
    assert sum("and more columns are read as" in note for note in notes) == 1


def test_durations_that_nothing_can_hold_are_words(tmp_path: Path) -> None:
    _, values, notes = read(csv(tmp_path, "a,y\n99999999999 days,u\n3 days,v\n"))
    assert values == [[1.0], [0.0]]
    assert any("'a' read as a category" in note for note in notes)


# --- what training learned holds later ------------------------------------------------------------


def learned(path: Path, **settings: Any) -> tables.TableForm:
    written = TableFormat(**settings)
    opened = tables.open_table(path, written)
    part = replace(opened.whole(), where="t")
    return tables.learn([part], opened.names[:-1], (), written)[0]


def later(path: Path, form: tables.TableForm, batch: int, **settings: Any) -> Any:
    opened = tables.open_table(path, TableFormat(**settings), form, batch)
    pieces = [form.encode(piece) for piece in opened.pieces()]
    return np.concatenate(pieces).tolist()


def test_a_file_written_otherwise_is_read_alike_or_refused(tmp_path: Path) -> None:
    form = learned(csv(tmp_path, "a;b;c;y\n1,5;x;31.12.2024;u\n2;1e3;01.02.2024;v\n"))
    values = [[1.5, 1, 20088], [2, 0, 19754]]
    for text in (
        "a;b;c\n1,5;x;31.12.2024\n2;1000.0;01.02.2024\n",
        "c,a,b\n2024-12-31,1.5,x\n2024-02-01,2,1e3\n",
        "a\tb\tc\tother\n1.5\tx\t31-Dec-2024\t\n2.0\t1e3\t01-Feb-2024\t\n",
    ):
        for batch in (1, 9):
            found = np.array(later(csv(tmp_path, text), form, batch))
            expected = np.array(values)
            if "1000.0" in text:
                expected[1, 1] = NAN  # another text; training had text here
            np.testing.assert_array_equal(found[:, :3], expected)
    # 1.234 in a table of decimal commas: another program's 1.234, or 1234?
    doubtful = csv(tmp_path, "a;b;c\n1.234;x;31.12.2024\n")
    with pytest.raises(DataError, match=r"row 0 has '1\.234', 1234 or 1\.234"):
        later(doubtful, form, 4)
    later_on = csv(tmp_path, "a;b;c\n" + 5 * "1;x;31.12.2024\n" + "1.234;x;31.12.2024\n")
    with pytest.raises(DataError, match=r"row 5 has '1\.234', 1234 or 1\.234"):
        later(later_on, form, 2)
    doubtful = csv(tmp_path, "a;b;c\n1.234;x;31.12.2024\n")
    assert later(doubtful, form, 4, decimal=".")[0][0] == 1.234
    with pytest.raises(DataError, match=r"column 'c' must hold dates.*row 0 has '12/31/2024'"):
        later(csv(tmp_path, "a;b;c\n1;x;12/31/2024\n"), form, 4)
    with pytest.raises(DataError, match=r"column 'a' must hold numbers; row 1 has 'tall'"):
        later(csv(tmp_path, "a;b;c\n1;x;31.12.2024\ntall;x;31.12.2024\n"), form, 4)


def test_words_that_mean_missing_are_those_of_training(tmp_path: Path) -> None:
    form = learned(csv(tmp_path, "a,b,y\n1,NA,u\n-9,w,v\n2,x,v\n"), missing=("-9",))
    assert form.levels == ((), ("NA", "w", "x"))
    found = later(csv(tmp_path, "a,b\n-9,NA\n3,-9\n"), form, 1)
    np.testing.assert_array_equal(found, [[NAN, 0], [3, NAN]])
    said: list[str] = []
    empty = pa.table({"a": pa.nulls(2), "b": pa.nulls(2)})
    assert np.isnan(form.encode(Part("x", empty), said.append)).all()
    assert said == []
    form.encode(Part("x", pa.table({"a": [1.0, 2.0], "b": ["x", "new"]}), None, 5), said.append)
    assert (
        "'b': what training never saw counts as missing (1 of 2 rows; first: row 6, 'new'"
        in said[0]
    )


@pytest.mark.long
def test_many_columns_cost_what_they_are(tmp_path: Path) -> None:
    """Twenty thousand columns are read; nothing is looked up column by column among all."""
    names = [f"c{i}" for i in range(20_000)]
    row = ",".join("0.5" for _ in names)
    path = csv(tmp_path, f"{','.join(names)},y\n{row},u\n{row},v\n")
    form = learned(path)
    assert len(form.columns) == 20_000
    assert later(path, form, 1)[1][-1] == 0.5
