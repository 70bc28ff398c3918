"""``FineTuner``: scikit-learn's own checks, every form of sample and label, and no traces left."""

from __future__ import annotations

import json
import pickle
import random
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

import xmodal
from xmodal import FineTuner, api, finetuner, plugins, runs
from xmodal.data import Store, in_memory
from xmodal.engine.observe import Silent
from xmodal.engine.run import Interrupted
from xmodal.finetuner import overrides
from xmodal.interfaces import Context

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
TINY = {
    "training.max_steps": None,
    "training.batch.size": 8,
    "training.optimizer.lr": 1e-2,
    "training.schedule": {"warmup_epochs": 0},
}
ROWS = RNG.normal(size=(60, 4))
SIGNALS = RNG.normal(size=(40, 3, 24))
IMAGES = RNG.normal(size=(24, 2, 16, 16)).astype(np.float32)
NAMES = np.array(["low", "mid", "top"])[(ROWS[:, 0] > 0).astype(int) + (ROWS[:, 1] > 0)]


def tiny(method: str = "nft", **settings: Any) -> FineTuner:
    """A fit of a third of a second: two layers with random weights, a few steps."""
    return FineTuner(method, **{"scale": "smoke", "epochs": 2, "overrides": TINY, **settings})


def table() -> pd.DataFrame:
    """Numbers, text with a gap, categories, and true or false."""
    frame = pd.DataFrame(
        {
            "colour": RNG.choice(["red", "green", "blue"], 60),
            "size": ROWS[:, 0],
            "site": pd.Categorical(RNG.choice([10, 20], 60)),
            "old": ROWS[:, 1] > 0,
        }
    )
    frame.loc[3, "colour"] = None
    frame.loc[4, "size"] = np.nan
    return frame


TABLE = table()
LIKES = np.where(TABLE["colour"] == "red", "yes", "no")


# --- scikit-learn's checks ---

# They ask for 1e-7 of numbers around 1, which is the last digit of a float32.
ROUNDING = "predictions are float32: in a batch of another size their last digits differ"
EXPECTED_FAILURES = {
    "check_methods_subset_invariance": ROUNDING,
    "check_methods_sample_order_invariance": ROUNDING,
    "check_sample_weight_equivalence_on_dense_data": "steps and validation go by samples",
}


@pytest.mark.slow
@parametrize_with_checks(
    [tiny(kind=kind, device="cpu") for kind in ("classification", "regression")],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
)
def test_checks_of_scikit_learn(estimator: FineTuner, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("y", [NAMES, ROWS[:, 0]], ids=["classes", "numbers"])
def test_samples_do_not_depend_on_each_other(y: Any) -> None:
    """What the two checks above are about, to six digits."""
    model = tiny().fit(ROWS, y)
    method = model.predict_proba if is_classifier(model) else model.predict
    whole, order = method(ROWS), RNG.permutation(60)
    single = np.concatenate([method(ROWS[i : i + 1]) for i in range(10)])
    np.testing.assert_allclose(single, whole[:10], rtol=0, atol=2e-6)
    np.testing.assert_allclose(method(ROWS[order]), whole[order], rtol=0, atol=2e-6)


# --- forms of samples, kinds of labels ---

KINDS: tuple[tuple[str, Any, Any, str, tuple[int, ...]], ...] = (
    ("rows, text", ROWS, NAMES, "classification", (60,)),
    ("rows, numbers", ROWS, ROWS[:, 0] * 100 + 7, "regression", (60,)),
    ("rows, outputs", ROWS, ROWS[:, :2] * 100, "regression", (60, 2)),
    ("sequences, labels", SIGNALS, (SIGNALS[:, :, 0] > 0).astype(int), "multi-label", (40, 3)),
    ("sequences, a field", SIGNALS, SIGNALS[:, 0] * 3, "dense", (40, 24)),
    ("images, classes", IMAGES, np.arange(24) % 3 + 5, "classification", (24,)),
    ("images, a field", IMAGES, IMAGES[:, 0] * 3, "dense", (24, 16, 16)),
    ("images, a mask", IMAGES, IMAGES > 0, "dense", (24, 2, 16, 16)),
)


@pytest.mark.parametrize(("x", "y", "kind", "shape"), [k[1:] for k in KINDS], ids=lambda v: "")
def test_predictions_have_the_form_of_the_labels(
    x: Any, y: Any, kind: str, shape: tuple[int, ...]
) -> None:
    model = tiny().fit(x, y)
    predicted = model.predict(x)
    assert (model.kind_, predicted.shape) == (kind, shape)
    if kind in ("classification", "multi-label"):
        assert is_classifier(model)
        assert predicted.dtype == y.dtype
        assert set(np.unique(predicted)) <= set(np.unique(y))
        assert model.predict_proba(x).shape == (len(x), len(model.classes_))
    else:
        assert is_regressor(model)
        assert not hasattr(model, "predict_proba")
        assert predicted.dtype == (bool if y.dtype == bool else np.float64)
    assert np.isfinite(model.score(x, y))


@pytest.mark.slow
def test_it_learns_and_names_classes() -> None:
    model = tiny("pare", epochs=6).fit(ROWS, NAMES)
    assert model.score(ROWS, NAMES) > 0.8
    assert list(model.classes_) == ["low", "mid", "top"]
    best = model.predict_proba(ROWS).argmax(axis=1)
    np.testing.assert_array_equal(model.classes_[best], model.predict(ROWS))
    assert [line["epoch"] for line in model.history_] == list(range(6))


def test_tables_with_text() -> None:
    model = tiny(epochs=5).fit(TABLE, LIKES)
    assert model.score(TABLE, LIKES) > 0.9
    assert list(model.feature_names_in_) == list(TABLE.columns)
    assert model.trained_.facts.task.levels == (3, 0, 2, 2)
    other = TABLE.assign(colour="violet")
    with pytest.warns(UserWarning, match=rf"\({len(other)} of {len(other)} rows") as told:
        model.trained_.outputs(other, batch=5)
    assert len(told) == 1  # for all batches
    with pytest.warns(UserWarning, match="what training never saw counts as missing"):
        unseen = model.predict_proba(other)
    np.testing.assert_array_equal(unseen, model.predict_proba(TABLE.assign(colour=None)))
    with pytest.raises(ValueError, match=r"yet now missing:\n- size"):
        model.predict(TABLE.drop(columns="size"))
    with pytest.raises(ValueError, match="'size' must hold numbers; row 0 has 'big'"):
        model.predict(TABLE.assign(size="big"))
    with pytest.raises(ValueError, match=r"Found array with 0 sample\(s\).* minimum of 1 is"):
        model.predict(TABLE.iloc[:0])


def test_arrays_of_text_are_tables() -> None:
    cells = TABLE[["colour", "size"]].to_numpy(dtype=object)
    named = tiny().fit(TABLE[["colour", "size"]], LIKES)
    plain = tiny().fit(cells, LIKES)
    assert plain.trained_.facts.task.levels == (3, 0)
    expected = named.predict_proba(TABLE[["colour", "size"]])
    np.testing.assert_array_equal(plain.predict_proba(cells), expected)
    # A batch of another size may round otherwise.
    two = plain.predict_proba(cells[:2].tolist())
    np.testing.assert_allclose(two, expected[:2], rtol=1e-5)
    with pytest.raises(ValueError, match=r"Found array with 0 sample\(s\)"):
        plain.predict(cells[:0])


CELLS = np.array([["02139", 1.5], ["K1A", 2.0], ["1.50", 0.5], ["1e3", 1.0]] * 10, dtype=object)


def test_a_column_stays_what_it_was_at_the_fit() -> None:
    """Text that looks like a number is text in every later call, and numbers are numbers."""
    model = tiny().fit(CELLS, np.arange(40) % 4 > 1)
    expected = model.trained_.prepare(model._samples(CELLS, reset=False))
    assert not expected[:, 0].isnan().any()
    for row in range(4):
        single = model._samples(CELLS[row : row + 1], reset=False)
        assert torch.equal(model.trained_.prepare(single), expected[row : row + 1])
    strings = model._samples(CELLS.astype(str), reset=False)
    assert torch.equal(model.trained_.prepare(strings), expected)
    with pytest.raises(ValueError, match="column 'x1' must hold numbers; row 0 has 'K1A'"):
        model.predict(CELLS[1:2, ::-1])


def test_validation_data_are_read_as_the_training_data_were() -> None:
    text = pd.Series(["1", "2", "A"] * 20, dtype=object)
    frame = pd.DataFrame({"code": text, "size": ROWS[:, 0], "count": np.arange(60)})
    other = pd.DataFrame({
        "code": [1.0, 2.0, np.nan] * 2,
        "size": pd.Series(["0.5", "1", None] * 2, dtype=object),
        "count": [str(k) for k in range(6)],
    })  # fmt: skip
    model = tiny().fit(frame, LIKES, validation_data=(other, LIKES[:6]))
    assert model.trained_.raw.levels == (("1", "2", "A"), (), ())
    read = model._samples(other, reset=False)
    np.testing.assert_array_equal(model.trained_.raw.encode(read)[:, 0], [0, 1, np.nan] * 2)
    with pytest.raises(ValueError, match="'count' must hold numbers; row 0 has 'many'"):
        model.fit(frame, LIKES, validation_data=(other.assign(count="many"), LIKES[:6]))


def test_validation_labels_may_be_a_column() -> None:
    y = ROWS[:, 0] * 9
    plain = tiny().fit(ROWS, y, validation_data=(ROWS[:6], y[:6]))
    column = tiny().fit(ROWS, y, validation_data=(ROWS[:6], y[:6, None]))
    assert plain.history_[-1]["validation"] == column.history_[-1]["validation"]
    with pytest.raises(ValueError, match=r"y has shape \(6, 2\), y \(60,\)"):
        tiny().fit(ROWS, y, validation_data=(ROWS[:6], np.zeros((6, 2))))


def test_classes_of_whole_floats_are_named_as_in_files() -> None:
    y = np.array([1.0, 2.0, 3.0])[np.arange(60) % 3]
    model = tiny(kind="classification").fit(ROWS, y)
    assert model.trained_.classes == ("1", "2", "3")
    assert list(model.classes_) == [1.0, 2.0, 3.0]
    assert model.trained_.score(ROWS, y) == pytest.approx(1 - model.score(ROWS, y), abs=1e-12)


def test_weights_of_fields_count_every_place() -> None:
    y = SIGNALS[:, 0] * 3
    model = tiny().fit(SIGNALS, y)
    once = np.arange(40) < 10
    assert model.score(SIGNALS, y, sample_weight=once) == pytest.approx(
        model.score(SIGNALS[:10], y[:10]), abs=1e-6
    )


@pytest.mark.slow
def test_channels_and_forms() -> None:
    y = np.arange(40) % 2
    first, last = tiny().fit(SIGNALS, y), tiny(channels="last").fit(SIGNALS.transpose(0, 2, 1), y)
    np.testing.assert_array_equal(
        first.predict_proba(SIGNALS), last.predict_proba(SIGNALS.transpose(0, 2, 1))
    )
    with pytest.raises(ValueError, match=r"shape \(3, 20\), but FineTuner is expecting \(3, 24\)"):
        first.predict(SIGNALS[:, :, :20])
    series = tiny(form="sequence").fit(SIGNALS[:, 0], y)
    assert series.trained_.facts.task.shape == (1, 24)
    photos = tiny(form="grid").fit(IMAGES[:, 0], np.arange(24) % 2)
    assert photos.trained_.facts.task.shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("x", "form", "doubt"),
    [
        (SIGNALS, "sequence", None),
        (SIGNALS.transpose(0, 2, 1), "sequence", "set channels='last'"),
        (IMAGES, "grid", None),
        (IMAGES.transpose(0, 2, 3, 1), "grid", "set channels='last'"),
        (IMAGES[:, 0], "sequence", "set form='grid'"),
        (IMAGES[:, 0], "grid", None),
        (ROWS, "row", None),
    ],
    ids=lambda v: getattr(v, "shape", v),
)
def test_doubtful_shapes(x: Any, form: Any, doubt: str | None) -> None:
    found = in_memory.doubtful(x, form, "first")
    assert found is None if doubt is None else found is not None and doubt in found


# --- small and odd data ---


@pytest.mark.slow
def test_few_samples() -> None:
    few = ROWS[:10, :1]
    model = tiny().fit(few, ["a"] * 5 + ["b"] * 4 + ["c"])
    assert list(model.classes_) == ["a", "b", "c"]
    pair = tiny(validation_fraction=0, kind="classification").fit(ROWS[:2], [1, 2])
    assert pair.predict(ROWS[:3]).shape == (3,)
    with pytest.raises(ValueError, match="3 samples, too few to hold out"):
        tiny().fit(ROWS[:3], [0, 1, 1])


def of_length(*lengths: int, channels: int = 0) -> list[Any]:
    return [np.ones((channels, length) if channels else length) for length in lengths] * 5


@pytest.mark.parametrize("channels", ["first", "last"])
def test_sequences_of_unequal_lengths(channels: str) -> None:
    """The same as an array that is filled up with the mean of each channel over its own values."""
    lengths, y = 12 + np.arange(40) % 12, np.arange(40) // 3 % 2
    x = [s[:, :length] + 3 * c for s, length, c in zip(SIGNALS, lengths, y, strict=True)]
    given = x if channels == "first" else [sample.T for sample in x]
    with pytest.warns(UserWarning, match="samples of 12 to 23 values, filled up at the end to 23"):
        model = tiny(channels=channels, epochs=8, validation_fraction=0).fit(given, y)
    assert model.form_ == "sequence"
    assert model.score(given, y) > 0.9
    means = np.concatenate(x, axis=1).mean(axis=1)
    filled = np.stack([np.concatenate([s, np.tile(means[:, None], 23 - s.shape[1])], 1) for s in x])
    same = model.predict_proba(filled if channels == "first" else filled.transpose(0, 2, 1))
    np.testing.assert_allclose(model.predict_proba(given), same, atol=1e-5)
    # Whatever else is in the list, and without any list.
    np.testing.assert_allclose(model.predict_proba(given[3:5]), same[3:5], atol=1e-5)
    one = given[3][None]
    np.testing.assert_allclose(model.predict_proba(one), same[3:4], atol=1e-5)
    long = np.concatenate([given[3]] * 3, axis=1 if channels == "first" else 0)
    with pytest.warns(UserWarning, match="are cut to 23"):
        assert model.predict_proba([long]).shape == (1, 2)


WRONG: tuple[tuple[dict[str, Any], Any, Any, str], ...] = (
    ({"method": "parr"}, ROWS, NAMES, "no recipe 'methods/parr'; did you mean 'methods/pare'"),
    ({"backbone": "tinny"}, ROWS, NAMES, "unknown backbone 'tinny'; did you mean 'tiny'"),
    ({"kind": "regresion"}, ROWS, NAMES, "did you mean 'regression'"),
    ({"scale": "smok"}, ROWS, NAMES, "no scale 'smok'; did you mean 'smoke'"),
    ({"epochs": 0}, ROWS, NAMES, "should be greater than or equal to 1, not 0"),
    ({"overrides": {"training.lr": 1}}, ROWS, NAMES, "^training.lr\n *no stage of this recipe"),
    ({"overrides": "seed=1"}, ROWS, NAMES, r"write \['seed=1'\]"),
    ({"validation_fraction": 1}, ROWS, NAMES, r"not in \[0, 1\)"),
    ({"method": 3}, ROWS, NAMES, "method=3 is not the name or the path of a recipe"),
    ({"scale": 3}, ROWS, NAMES, "scale=3 is not the name of a scale"),
    ({"overrides": 3}, ROWS, NAMES, "overrides=3: expected"),
    ({}, ROWS, pd.date_range("2020", periods=60), "y holds datetime64.*, not numbers, truth"),
    ({"form": "sequence"}, TABLE, LIKES, "needs numbers, but X has columns of text"),
    ({"form": "grid"}, ROWS, NAMES, "needs X of 3 or 4 dimensions, got 2"),
    ({}, np.zeros((4, 1, 1, 1, 1)), [0, 1, 0, 1], "Found array with dim 5"),
    ({}, TABLE.assign(days=[[1, 2]] * len(TABLE)), LIKES, "'days' holds lists"),
    ({}, np.where(SIGNALS > 2, np.nan, SIGNALS), np.arange(40) % 2, "X contains NaN"),
    ({}, ROWS, np.where(NAMES == "low", None, NAMES), "y contains NaN"),
    ({}, ROWS, pd.Series(NAMES).mask(np.arange(60) == 7), "y contains NaN: row 7 has no label"),
    ({}, ROWS, pd.Series(NAMES, dtype="string").mask(np.arange(60) == 7), "NaN: row 7 has no"),
    ({}, ROWS, np.where(np.arange(60) == 9, np.nan, ROWS[:, 0]), "y contains NaN: row 9 has"),
    ({}, ROWS, np.where(np.arange(60) == 9, np.inf, ROWS[:, 0]), "Input y contains infinity"),
    ({}, ROWS, NAMES[:5], "inconsistent numbers of samples"),
    ({}, ROWS, np.array(["a"] * 60), "one class only"),
    ({"kind": "regression"}, ROWS, np.ones(60), "^y is constant"),
    ({"kind": "regression"}, ROWS, NAMES, "Unknown label type"),
    ({"kind": "dense"}, ROWS, ROWS, "rows of a table have no places"),
    ({"kind": "multi-label"}, ROWS, np.arange(60) % 2, "rows of 0 and 1"),
    ({"kind": "classification"}, ROWS[:10], np.arange(10), "^X: 10 samples cannot be cut"),
    ({"form": "row"}, of_length(3, 4), [0, 1] * 5, "only sequences, .* may differ in length"),
    ({"channels": "last"}, of_length(3, 4, channels=2), [0, 1] * 5, "set channels='first'"),
    ({}, [np.ones(3), np.ones((2, 2))] * 5, [0, 1] * 5, "X has samples of 1 and of 2 axes"),
    ({}, [np.ones((2, 3)), np.ones((3, 4))] * 5, [0, 1] * 5, "more than axis 0: row 0"),
    ({}, [np.ones(3), np.array([1, np.nan])] * 5, [0, 1] * 5, "NaN or infinite .* row 1"),
)


@pytest.mark.parametrize(("settings", "x", "y", "message"), WRONG, ids=[w[3] for w in WRONG])
def test_what_is_wrong_is_said(settings: Any, x: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**settings).fit(x, y)


@pytest.mark.parametrize("given", [3, (ROWS, NAMES, 1), [ROWS]])
def test_validation_data_is_a_pair(given: Any) -> None:
    with pytest.raises(ValueError, match="validation_data must be a pair"):
        tiny().fit(ROWS, NAMES, validation_data=given)


def test_labels_of_other_types_are_what_they_say() -> None:
    y = in_memory.plain_labels(np.array([b"a", "ü".encode()]))
    assert y.tolist() == ["a", "ü"]
    y = in_memory.plain_labels(np.array([Decimal("0.1"), Decimal("2")], dtype=object))
    assert y.dtype == np.float64
    assert y.tolist() == [0.1, 2.0]


# --- surroundings ---


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, work = tmp_path / "temporary", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr("tempfile.tempdir", str(home))
    handler = signal.getsignal(signal.SIGINT)
    deterministic = torch.are_deterministic_algorithms_enabled()

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    drawn = []
    for fitting_between in (False, True):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        if fitting_between:
            tiny().fit(ROWS, NAMES)
        drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert signal.getsignal(signal.SIGINT) is handler
    assert list(home.iterdir()) == list(work.iterdir()) == []


@pytest.mark.slow
def test_precision_may_change_between_fits() -> None:
    for precision in ("bf16", "fp32"):
        model = tiny(overrides={**TINY, "precision": precision}).fit(ROWS, NAMES)
        assert model.trained_.recipe.precision == precision


@pytest.mark.parametrize("x", [ROWS, TABLE], ids=["array", "table"])
def test_pickles_outlive_their_files(x: Any) -> None:
    model = tiny("pare").fit(x, NAMES)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
    assert not model.trained_.run.path.exists()
    assert clone(again).get_params() == model.get_params()


@pytest.mark.slow
def test_with_other_tools() -> None:
    search = GridSearchCV(
        make_pipeline(StandardScaler(), tiny(kind="classification")),
        {"finetuner__method": ["nft", "linear-probe"]},
        cv=2,
        scoring="neg_log_loss",
    )
    search.fit(ROWS, NAMES)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert list(search.classes_) == ["low", "mid", "top"]
    assert np.isfinite(cross_val_score(tiny(), ROWS, ROWS[:, 0] * 9, cv=2)).all()


@pytest.mark.slow
def test_seed_decides() -> None:
    one, same, other = (tiny(seed=s).fit(ROWS, NAMES).predict_proba(ROWS) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    tiny(verbose=1).fit(ROWS, NAMES)
    shown = capsys.readouterr()
    assert "epoch 2/2" in shown.err
    assert shown.out == ""


# --- runs that are kept ---


@contextmanager
def stopping_at(step: int, number: signal.Signals = signal.SIGINT) -> Iterator[Any]:
    """An observer that interrupts the run at a step, as Ctrl-C does, or another signal."""

    class Stopping(Silent):
        left = step

        def record(self, record: Any) -> None:
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(number)

    yield Stopping()


@pytest.mark.long
def test_an_interrupted_fit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tiny(directory=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(finetuner, "watching", lambda verbose: stopping_at(6))
        with pytest.raises(KeyboardInterrupt):
            kept.fit(ROWS, NAMES)
    (run,) = tmp_path.glob("nft/*")
    assert runs.Run(run).state == "interrupted"
    kept.fit(ROWS, NAMES)
    assert kept.run_path_ == run
    assert runs.Run(run).state == "done"
    np.testing.assert_array_equal(
        kept.predict_proba(ROWS), tiny().fit(ROWS, NAMES).predict_proba(ROWS)
    )
    # The same fit is found again, another one gets a directory of its own.
    assert tiny(directory=tmp_path).fit(ROWS, NAMES).run_path_ == run
    assert tiny(directory=tmp_path, seed=1).fit(ROWS, NAMES).run_path_ != run
    assert len(list((tmp_path / "data").iterdir())) == 1


@pytest.mark.parametrize(("kept", "message"), [(True, "xmodal resume"), (False, "nothing is kept")])
def test_an_ended_fit_says_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool, message: str
) -> None:
    monkeypatch.setattr(finetuner, "watching", lambda verbose: stopping_at(2, signal.SIGTERM))
    with pytest.raises(Interrupted, match=message) as ended:
        tiny(directory=tmp_path if kept else None).fit(ROWS, NAMES)
    assert ended.value.exit_code == 128 + signal.SIGTERM
    assert ("xmodal resume" in str(ended.value)) is kept


# --- the same numbers as the command line ---


SETTINGS = overrides(TINY)


@pytest.mark.slow
def test_it_is_the_run_of_the_same_files(tmp_path: Path) -> None:
    parts = {"train": slice(0, 30), "val": slice(30, 45), "test": slice(45, 60)}
    arrays = {f"x_{part}": ROWS[rows] for part, rows in parts.items()}
    labels = {f"y_{part}": NAMES[rows] for part, rows in parts.items()}
    np.savez(tmp_path / "my.npz", **arrays, **labels)
    overrides = [*SETTINGS, "training.epochs=2", f"task.path={tmp_path / 'my.npz'}"]
    outcome = api.run(
        "methods/pare", "arrays/row", overrides=overrides, scale="smoke", root=tmp_path,
        report=False,
    )  # fmt: skip
    validation = arrays["x_val"], labels["y_val"]
    model = tiny("pare").fit(arrays["x_train"], labels["y_train"], validation_data=validation)
    expected = xmodal.load(outcome.run.path).outputs(ROWS)
    np.testing.assert_array_equal(model.trained_.outputs(ROWS), expected)
    score = model.score(arrays["x_test"], labels["y_test"])
    assert score == pytest.approx(1 - outcome.result["test"]["metric"], abs=1e-12)
    with pytest.raises(ValueError, match="class 'new' is not in y"):
        model.fit(ROWS, NAMES, validation_data=(ROWS[:1], ["new"]))


@pytest.mark.long
def test_it_scores_what_the_run_of_a_published_table_scores(tmp_path: Path) -> None:
    """Breast cancer (OpenML wdbc), split by its task; its rows reach the fit as raw numbers."""
    recipes = ("methods/pare", "backbones/text", "tasks/openml/wdbc")
    outcome = api.run(
        *recipes, overrides=[*SETTINGS, "training.epochs=2", "task.metric=error-rate"],
        scale="smoke", root=tmp_path, report=False,
    )  # fmt: skip
    run = xmodal.load(outcome.run.path)
    task = plugins.registry().load("task", "openml/wdbc")
    data: Any = task(task.Config(), Context.outside(Store(tmp_path))).load(0)  # type: ignore[attr-defined]
    parts = {
        role: (run.raw.invert(x).numpy(), y.numpy())
        for role in ("train", "validation", "test")
        for x, y in [getattr(data, role)[:]]
    }
    model = tiny("pare", overrides=[
        *SETTINGS,
        "task.loss={use: cross-entropy, balanced: true}",
        "training.clip=0.1",
        "training.schedule={decay: linear, decay_epochs: 60, warmup_epochs: 0}",
        "training.optimizer={use: adamw, lr: 1e-2, weight_decay: 1e-5}",
    ])  # fmt: skip
    model.fit(*parts["train"], validation_data=parts["validation"])
    score = model.score(*parts["test"])
    assert score == pytest.approx(1 - outcome.result["test"]["metric"], abs=1e-12)
    # Standardised back and forth, the numbers differ in their last bits.
    np.testing.assert_allclose(
        model.trained_.outputs(parts["test"][0]), run.outputs(parts["test"][0]), atol=1e-4
    )


def test_no_warning_is_needed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny("pare").fit(ROWS, NAMES).predict(ROWS)


# --- groups and typed frames ---


def test_groups_are_held_out_as_a_whole() -> None:
    group = np.repeat(np.arange(12), 5)
    x = np.c_[group, np.arange(60)].astype(float)
    seen = {}
    for given in (group, [f"patient {k}" for k in group], pd.Series(group, dtype="Int64")):
        for X in (x, pd.DataFrame(x, columns=["g", "n"]).assign(text="t")):
            model = tiny(validation_fraction=0.25, overrides={"task.normalize": "none"})
            data = _held_out(model, X, groups=given)
            assert len(data["train"] & data["validation"]) == 0
            assert len(data["train"] | data["validation"]) == 12
            seen[len(seen)] = len(data["validation"])
    assert set(seen.values()) == {3}
    with pytest.raises(ValueError, match="groups: row 3 has no group"):
        tiny().fit(x, LIKES, groups=np.where(np.arange(60) == 3, np.nan, group))
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[60, 59\]"):
        tiny().fit(x, LIKES, groups=group[1:])
    # Nothing is held out where validation data are given.
    tiny().fit(x, LIKES, groups=group, validation_data=(x[:5], LIKES[:5]))


def _held_out(model: FineTuner, X: Any, groups: Any) -> dict[str, set[float]]:
    """The groups (the first column of X) of the samples that train and that validate."""
    from xmodal_arrays import task

    found: dict[str, set[float]] = {}
    real = task.Arrays.load

    def load(self: Any, seed: int) -> Any:
        data = real(self, seed)
        for part in ("train", "validation"):
            found[part] = set(getattr(data, part).tensors[0][:, 0].tolist())
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task.Arrays, "load", load)
        model.fit(X, LIKES, groups=groups)
    return found


def test_frames_of_every_type_are_read() -> None:
    import decimal

    import pyarrow as pa

    frame = pd.DataFrame({
        "price": [decimal.Decimal(f"{k}.5") for k in range(60)],
        "day": pd.date_range("2024-01-01", periods=60),
        "iso": [f"2024-01-{k % 28 + 1:02d}" for k in range(60)],
        "odd": pd.Series([1.5, pd.NA] * 30, dtype=object),
        "code": pd.Categorical([30, 4] * 30),
        "open": [True, False] * 30,
    })  # fmt: skip
    model = tiny().fit(frame, LIKES)
    raw = model.trained_.raw
    # All days of "iso" are of one month.
    assert len(raw.columns) == 1 + 7 + 5 + 1 + 1 + 1
    assert raw.levels[-2:] == (("4", "30"), ("False", "True"))
    x = raw.encode(frame)
    np.testing.assert_array_equal(x[:, 0], np.arange(60) + 0.5)
    np.testing.assert_array_equal(x[:, 1], 19723 + np.arange(60))
    np.testing.assert_array_equal(x[:2, -3:], [[1.5, 1, 1], [np.nan, 0, 0]])
    expected = model.predict_proba(frame)
    np.testing.assert_array_equal(model.predict_proba(pa.Table.from_pandas(frame)), expected)
    with pytest.raises(ValueError, match="X: column 'odd_col' holds lists"):
        tiny().fit(frame.assign(odd_col=[[1]] * 60), LIKES)
    with pytest.raises(ValueError, match="X: column 'odd_col' has no value"):
        tiny().fit(frame.assign(odd_col=None), LIKES)
    for empty in (pd.DataFrame(), pd.DataFrame(index=range(60))):
        with pytest.raises(ValueError, match=r"Found array with 0 feature\(s\)"):
            tiny().fit(empty, LIKES[: len(empty)])


@pytest.mark.parametrize(
    "classes", [[-1, 1], [1.0, 2.0], [False, True], ["NA", "None"], np.array([3, 100], np.int8)]
)
def test_classes_keep_their_values(classes: Any) -> None:
    y = np.array([classes[k % 2] for k in range(60)])
    model = tiny().fit(ROWS, y)
    assert model.kind_ == "classification"
    assert model.classes_.tolist() == list(classes)
    assert model.classes_.dtype == y.dtype
    assert set(model.predict(ROWS).tolist()) <= {*classes}
    assert model.trained_.score(ROWS, y) == pytest.approx(1 - model.score(ROWS, y), abs=1e-12)


def test_a_directory_that_is_none_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "run" / "samples").mkdir(parents=True)
    (tmp_path / "run" / "xmodal-run.tag").write_text("")
    before = sorted(tmp_path.rglob("*"))
    for place in ("file", "file/x", "run", "run/samples"):
        with pytest.raises(ValueError, match=r"^directory=.*(in its way|lies inside of the run)"):
            tiny(directory=tmp_path / place).fit(ROWS, NAMES)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_saved_index_is_left_out() -> None:
    frame = pd.DataFrame({"Unnamed: 0": np.arange(60), "a": ROWS[:, 0]})
    for X in (frame, frame.assign(text="t")):
        with pytest.warns(UserWarning, match="left out: the first column, 'Unnamed: 0'"):
            model = tiny().fit(X, LIKES)
        assert list(model.feature_names_in_) == list(X.columns[1:])
        expected = model.predict_proba(X)
        np.testing.assert_array_equal(model.predict_proba(X.iloc[:, 1:]), expected)


# --- the search for the best answer ---

AUTO = FineTuner(method="auto", trials=1, device="cpu", kind="classification")


@pytest.mark.long
@pytest.mark.parametrize(
    "check",
    ["check_fit_idempotent", "check_estimators_pickle", "check_dict_unchanged",
     "check_fit2d_1sample", "check_n_features_in", "check_estimators_unfitted"],
)  # fmt: skip
def test_checks_of_scikit_learn_of_a_search(check: str) -> None:
    getattr(estimator_checks, check)("FineTuner", clone(AUTO))


@pytest.mark.long
def test_a_search_finds_and_keeps_the_best_answer(tmp_path: Path) -> None:
    model = FineTuner(method="auto", trials=2, device="cpu", directory=tmp_path)
    model.fit(ROWS, NAMES, groups=np.arange(60) // 2)
    scores = [line["score"] for line in model.leaderboard_]
    assert scores == sorted(scores)
    assert model.score(ROWS, NAMES) > 0.8
    assert list(model.classes_) == ["low", "mid", "top"]
    assert model.predict_proba(ROWS[:3]).shape == (3, 3)
    assert "no transformer was tried" in model.verdict_
    assert xmodal.load(model.run_path_).run.path == model.run_path_
    record = json.loads(next(tmp_path.glob("fits/*/fit.json")).read_text())
    # Nothing was set apart to test, so there is no test score.
    assert record["test"]["metric"] is None
    assert "no test samples" in record["test"]["sentence"]
    copied = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copied.predict_proba(ROWS), model.predict_proba(ROWS))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "pare", "time": 60}, "method='auto' only"),
        ({"method": "auto", "epochs": 3}, "epochs mean nothing"),
        ({"method": "auto", "time": 60, "trials": 3}, "either how much time"),
        ({"method": "auto", "time": "soon"}, "time: 'soon' is not a duration"),
        ({"method": "auto", "trials": 1, "validation_fraction": 0}, "chooses by held-out"),
    ],
)
def test_complaints_of_a_search(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FineTuner(**settings).fit(ROWS, NAMES)
