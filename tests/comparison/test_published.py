"""Published numbers: those of the paper as it prints them, and files that cannot be read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from xmodal.comparison.grid import find_suite, requested
from xmodal.comparison.published import PublishedNumber, published_numbers
from xmodal.errors import DataError, UsageError
from xmodal.plugins import registry
from xmodal.recipe.lookup import all_suites

ALL_TABLES = "openml-cc18 (30 tables)"
NAS_BENCH = ("cifar100", "spherical", "darcy", "psicov", "cosmic")
NAS_BENCH += ("ninapro", "fsd50k", "ecg", "satellite", "deepsea")


def table(name: str) -> list[PublishedNumber]:
    _, suite = find_suite(name, registry())
    found = published_numbers(registry(), (*suite.tasks, ALL_TABLES), [name])
    assert {n.source.rpartition(", ")[2] for n in found} == {f"Table {name[5:]}"}
    return list(found)


def test_numbers_of_every_table_are_here() -> None:
    # Rows times columns, as printed; the three summary rows of Tables 3 and 14 included.
    expected = {1: 8 * 10, 2: 5 * 8, 3: 3 * 7, 4: 6 * 10, 5: 2 * 10, 6: 3 * 7, 7: 6 * 4}
    expected |= {11: 5 * 3, 14: 33 * 7, 15: 5 * 10, 16: 2 * 4, 17: 4 * 5, 18: 4 * 4}
    assert {n: len(table(f"table{n}")) for n in expected} == expected


def test_averages_of_table_14_follow_from_its_rows() -> None:
    rows = table("table14")
    single = [row for row in rows if row.task != ALL_TABLES]
    printed = {row.method: float(row.printed) for row in rows if row.metric == "Avg. AUROC"}
    for method, average in printed.items():
        errors = [row.error for row in single if row.method == method]
        assert len(errors) == 30
        assert 1 - sum(e for e in errors if e is not None) / 30 == pytest.approx(average, abs=6e-5)
    best = {
        task: min(row.error for row in single if row.task == task and row.error is not None)
        for task in {row.task for row in single}
    }
    wins = Counter(row.method for row in single if row.error == best[row.task])
    said = {row.method: int(row.printed) for row in rows if row.metric == "# wins"}
    # Print counts one table less for LightGBM, CatBoost, ... where all methods are equal.
    assert wins["pare"] == said["pare"] == 15
    assert wins["autogluon"] == said["autogluon"]


def test_tables_1_and_15_agree_and_are_one_number_each() -> None:
    methods = {"fpt", "nft", "orca", "pare"}
    found = published_numbers(registry(), NAS_BENCH, ["table1", "table15"])
    mine = [number for number in found if number.method in methods]
    values = {(n.task, n.method): n.error for n in mine}
    assert len(values) == 40
    for number in mine:
        assert number.error == values[number.task, number.method]
    # 0.500 and 0.5 are the same error, printed twice: only equal texts are one entry.
    (darcy,) = [n for n in mine if (n.task, n.method) == ("darcy", "pare")]
    assert darcy.printed == "7.00E-03"
    assert darcy.error == 7e-3
    assert darcy.source.endswith(", Tables 1 and 15")


def test_percent_become_shares_and_dashes_nothing() -> None:
    values = {(n.task, n.method): n for n in table("table1")}
    assert values["cifar100", "pare"].error == pytest.approx(0.0625)
    assert values["ecg", "orca"].error == 0.28
    dash = [n for n in table("table2") if n.printed == "-"]
    assert {(n.task, n.method, n.error) for n in dash} == {
        ("navier-stokes", "unet", None),
        ("darcy-pdebench", "unet", None),
    }
    pinn = {n.protocol for n in table("table2") if n.method in ("pinn", "fno", "unet")}
    assert len(pinn) == 1
    assert "another protocol" in pinn.pop()


def test_suites_show_their_tables_and_other_comparisons_all() -> None:
    for one in all_suites(registry()):
        name = one.name.removeprefix("suites/")
        if name != "demo":
            shown = requested(registry(), suite=name).published
            labels = {c.label or c.use for c in find_suite(name, registry())[1].contenders}
            settings = {n.label for n in shown if n.setting}
            assert settings or {n.method for n in shown} & labels
    alone = requested(registry(), ["pare"], ["darcy"]).published
    assert {n.task for n in alone} == {"darcy"}
    assert {"pinn"} & {n.method for n in alone} == set()
    assert {"hand-designed", "pare", "mixup", "target-mask"} <= {n.method for n in alone}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task,method\n", "expected the columns task, method, setting"),
        ("task,method,setting,printed,error,metric,protocol,source\na,b,,1,x,m,p,s\n", ":2: could"),
        ("task,method,setting,printed,error,metric,protocol,source\na,b,,1\n", ":2: 4 values"),
        (
            "task,method,setting,printed,error,metric,protocol,source\na,b,,1,nan,m,p,s\n",
            ":2: the error is nan",
        ),
        ('task,method,setting,printed,error,metric,protocol,source\na,"b\n', ":2: "),
    ],
)
def test_a_damaged_file_is_named(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes/published").mkdir(parents=True)
    (tmp_path / "recipes/published/own.csv").write_text(text)
    with pytest.raises(DataError, match=f"own.csv.*{message}"):
        published_numbers(registry(), ["a"], ["own"])


def test_a_file_of_a_spreadsheet_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mark in front, other line ends, and empty lines."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes/published").mkdir(parents=True)
    header = "task,method,setting,printed,error,metric,protocol,source"
    text = f"\ufeff{header}\r\n\r\na,b,,1,0.5,m,p,s\r\n,,,,,,,\r\n"
    (tmp_path / "recipes/published/own.csv").write_bytes(text.encode())
    (found,) = published_numbers(registry(), ["a"], ["own"])
    assert (found.method, found.error) == ("b", 0.5)


def test_an_unknown_table_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'table14'"):
        published_numbers(registry(), ["a"], ["table_14"])
