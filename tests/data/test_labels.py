"""Values are found among names by what they mean, and labels are read in no layout but theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from xmodal.data import labels
from xmodal.data.naming import are_numbers, positions
from xmodal.data.preparation import RawForm
from xmodal.errors import DataError

NAN = np.nan
FOUND: tuple[tuple[Any, tuple[str, ...], list[float]], ...] = (
    (["TRUE", "false", True, None, "yes", "1"], ("False", "True"), [1, 0, 1, NAN, NAN, NAN]),
    (["02139", 2139, 2139.0, "501", "x"], ("501", "2139"), [1, 1, 1, 0, NAN]),
    (["0.50", ".5", 0.5, "1e0", 1, "2"], ("0.5", "1.0"), [0, 0, 0, 1, 1, NAN]),
    (["02139", "2139", "1.0", 1.0, 1, "1.50"], ("02139", "1", "A"), [0, NAN, 1, 1, 1, NAN]),
    (["True", "TRUE", "maybe"], ("True", "maybe"), [0, NAN, 1]),
    # As written before as meant; what two names mean finds neither.
    (["1", "1.0", "1.00"], ("1", "1.0"), [0, 1, NAN]),
    (["02139", "2139", 2139, "02139.0"], ("02139", "2139"), [0, 1, 1, NAN]),
    (["12345678901234567", "12345678901234568"], ("12345678901234567",), [0, 0]),
    ([], ("a",), []),
    ([None, NAN], ("a", "nan"), [NAN, NAN]),
    ([2, 1], (), [NAN, NAN]),
)


@pytest.mark.parametrize(("values", "names", "expected"), FOUND)
def test_values_are_found_by_what_they_mean(
    values: Any, names: tuple[str, ...], expected: list[float]
) -> None:
    np.testing.assert_array_equal(positions(pd.Series(values, dtype=object), names), expected)


@pytest.mark.parametrize("dtype", ["int64", "Int64", "float32", "category", "str", "bool"])
def test_every_type_of_column_finds_its_own_text(dtype: str) -> None:
    column = pd.Series([1, 0, 1]).astype(dtype)
    found = pd.factorize(column, sort=True)[1]
    np.testing.assert_array_equal(positions(column, tuple(map(str, found))), [1, 0, 1])


def test_numbers_of_names() -> None:
    assert are_numbers(("1.0", "-2", "1e3"))
    assert not are_numbers(("1", "nan"))
    assert not are_numbers(("1", "x"))


# --- labels ---


@pytest.mark.parametrize("names", [("1", "2", "3"), ("1.0", "2.0", "3.0")])
@pytest.mark.parametrize(
    "y", [[1, 3], [1.0, 3.0], ["1", "3.0"], [[1], [3]], [[1, 0, 0], [0, 0, 1]]]
)
def test_classes_named_by_numbers_are_no_positions(names: tuple[str, ...], y: Any) -> None:
    assert labels.class_numbers(labels.as_labels(y), names, 0).tolist() == [0, 2]
    with pytest.raises(DataError, match=r"y: row 7 is '0'; expected one of 1.*3(\.0)?$"):
        labels.class_numbers(np.array([2, 0]), names, 6)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.array([[0.2, 0.8], [1, 0]]), r"row 5 is \[0.2, 0.8\]; expected a single 1 among 0"),
        (np.zeros((2, 3)), r"expected one class for each sample, \[n\]; got \[2, 3\]"),
        (np.array(["a", "c"]), "row 6 is 'c'; expected one of a, b, or a number 0 to 1"),
    ],
)
def test_what_is_no_class_is_refused(y: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        labels.class_numbers(y, ("a", "b"), 5)


def _fields(y: Any, **form: Any) -> Any:
    raw = RawForm((4, 6), (1, 4, 6), **form)
    shape = (2, 4, 6) if form else (1, 4, 6)
    return torch.from_numpy(labels.fields(labels.as_labels(y), raw, shape, 0))


def test_fields_are_read_in_their_layout_or_the_models_alone() -> None:
    y = torch.randn(3, 1, 4, 6)
    for given in (y, y[:, 0], y.movedim(1, 3), y[:, 0].numpy().astype(object)):
        assert torch.equal(_fields(given), y)
    for wrong in (y[:, 0].mT, y.reshape(3, 24), y.reshape(3, 2, 12), y.reshape(3, 1, 6, 4)):
        with pytest.raises(DataError, match=r"expected \[n, 1, 4, 6\] of numbers, got \[3, "):
            _fields(wrong)
    pair = torch.randn(3, 2, 4, 6)
    kept = {"label_shape": (4, 6, 2), "label_channel": 2}
    for given in (pair, pair.movedim(1, 3), pair.movedim(1, 3)[:, :, None]):
        assert torch.equal(_fields(given, **kept), pair)
    with pytest.raises(DataError, match=r"expected \[n, 4, 6, 2\]"):
        _fields(pair.movedim(1, 2), **kept)


def test_numbers_may_be_text() -> None:
    raw = RawForm((5,), (5,), label_shape=(2,))
    y = np.array([["0.50", "TRUE"], [None, "1e3"]], dtype=object)
    np.testing.assert_array_equal(labels.fields(y, raw, (2,), 0), [[0.5, 1], [NAN, 1000]])
    y[1, 1] = "tall"
    with pytest.raises(DataError, match="y: row 11 is 'tall'; expected a number"):
        labels.fields(y, raw, (2,), 10)


@pytest.mark.parametrize(
    "y", [[1.0, NAN, 2.0], [None, "a", "b"], [[1, 2], [NAN, 1], [NAN, NAN]], [NAN, NAN]]
)
def test_gaps_are_found_first(y: Any) -> None:
    y = labels.as_labels(pd.DataFrame(y).to_numpy())
    row = int(pd.isna(y).any(axis=1).argmax())
    with pytest.raises(DataError, match=f"^y: row {20 + row} has no label$"):
        labels.require_all(y, 20)
    np.testing.assert_array_equal(labels.absent(y), pd.isna(y).all(axis=1))


@pytest.mark.parametrize(
    ("y", "row"),
    [
        (np.array(["2", "NA"], dtype=object), 8),
        (np.array(["2", "NA"]), 8),
        (np.array([["1", "2"], ["3", "4"], ["5", "NA"]], dtype=object), 9),
    ],
)
def test_text_among_numbers_to_score_with_is_an_error_with_its_row(y: Any, row: int) -> None:
    form = RawForm(shape=(1,), laid=(1,))
    with pytest.raises(DataError, match=rf"y: row {row} is 'NA'; expected a number"):
        labels.fields(y, form, y.shape[1:], 7)
