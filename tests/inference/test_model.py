"""A trained model is used from its run directory alone, and predicts what the run predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import xmodal
from xmodal import api
from xmodal.data import readers
from xmodal.data.preparation import RawForm
from xmodal.errors import DataError, UsageError
from xmodal.inference.model import TrainedModel
from xmodal_arrays.task import Arrays, shares, understand
from xmodal_nasbench360.darcy import Darcy
from xmodal_openml import tables
from xmodal_openml.benchmark import Car
from xmodal_openml.task import _parts


@dataclass
class Used:
    """A finished run, loaded, with its raw test samples, their raw labels, and what it kept."""

    trained: TrainedModel
    x: Any
    y: Any
    kept: Tensor
    score: float


def _run(root: Path, *recipes: str) -> Any:
    names = [r for r in recipes if "=" not in r]
    overrides = [r for r in recipes if "=" in r]
    return api.run(*names, overrides=overrides, scale="smoke", root=root, report=False)


def _used(outcome: Any, x: Any, y: Any) -> Used:
    kept = load_file(outcome.run.path / "predictions.safetensors")["prediction"]
    return Used(xmodal.load(outcome.run.path), x, y, kept, outcome.result["test"]["metric"])


def _car(root: Path, method: str, *more: str) -> Used:
    outcome = _run(root, method, "tasks/openml/car", *more)
    table = tables.car()
    rows = _parts(table, Car.Config(), 0)[2]
    return _used(outcome, table.x_NF[rows], table.y_N[rows])


def _darcy(root: Path, method: str, *more: str) -> Used:
    from xmodal.data.store import Store
    from xmodal_nasbench360.darcy_data import generate
    from xmodal_nasbench360.darcy_samples import Grid

    outcome = _run(root, method, "tasks/darcy", *more)
    config: Darcy.Config = xmodal.load(outcome.run.path).recipe.task.config
    grid = Grid(config.resolution, config.solver_grid, config.placement)
    a, u = generate(Store(), grid, config.data_seed, 1, config.test, "")[:2]
    return _used(outcome, a, u)


def _arrays(root: Path, file: Path, method: str, *more: str) -> Used:
    """A run on a user's file, which is removed afterwards."""
    outcome = _run(root, method, f"task={{use: arrays, path: {file}}}", *more)
    settings = Arrays.Config(path=file)
    plan = understand(settings)
    rows = shares(plan, settings, 0)["test"].rows
    if file.suffix == ".csv":
        frame = pd.read_csv(file)
        x, y = frame.iloc[rows, :-1], frame.iloc[rows, -1].to_numpy()
    else:
        x, y = (np.load(file)[key][rows] for key in ("x", "y"))
    file.unlink()
    return _used(outcome, x, y)


def _table(file: Path) -> Path:
    """Numbers, categories and gaps; text labels."""
    random = np.random.default_rng(0)
    count = 80
    frame = pd.DataFrame(
        {
            "size": random.normal(3, 2, count),
            "colour": random.choice(["red", "green", "blue"], count),
            "whole": random.choice([1.0, 2.0, np.nan], count),
            "open": random.choice([True, False], count),
        }
    )
    frame.loc[::7, "colour"] = None
    frame["kind"] = np.where(frame["size"] > 3, "large", "small")
    frame.to_csv(file, index=False)
    return file


def _numbers(file: Path, y_of: Callable[[Any], Any], shape: tuple[int, ...]) -> Path:
    random = np.random.default_rng(0)
    x = random.normal(5, 3, size=(48, *shape))
    np.savez(file, x=x, y=y_of(x))
    return file


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Used]:
    """Every form of sample and kind of label, each with another method."""
    root = tmp_path_factory.mktemp("used")
    images = _numbers(root / "i.npz", lambda x: x[..., 0] + 1, (16, 16, 3))
    series = _numbers(root / "s.npz", lambda x: x.mean(axis=2), (2, 48))
    labels = _numbers(root / "l.npz", lambda x: (x[:, :3] > 5).astype(int), (12,))
    return {
        "pare classes": _car(root / "a", "methods/pare"),
        "fpt table": _arrays(root / "b", _table(root / "t.csv"), "methods/fpt"),
        "nft numbers": _arrays(root / "c", series, "methods/nft"),
        "lora dense": _darcy(root / "d", "methods/lora"),
        "nft fields": _arrays(root / "e", images, "methods/nft"),
        "lora labels": _arrays(root / "f", labels, "methods/lora", "task.form=row"),
        "trees": _car(root / "g", "methods/baseline"),
        "ridge": _darcy(root / "h", "methods/baseline"),
    }


NAMES = (
    *("pare classes", "fpt table", "nft numbers", "lora dense", "nft fields", "lora labels"),
    *("trees", "ridge"),
)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_the_predictions_that_the_run_kept(runs: dict[str, Used], name: str) -> None:
    """Bit for bit, and so is the score; the arrays' files are gone by now."""
    used = runs[name]
    assert torch.equal(used.trained.outputs(used.x), used.kept)
    assert used.trained.score(used.x, used.y) == used.score


@pytest.mark.slow
def test_predictions_have_the_form_of_the_labels(runs: dict[str, Used]) -> None:
    classes = runs["pare classes"]
    index_N = classes.trained.predict(classes.x)
    assert np.array_equal(index_N, classes.kept.argmax(1).numpy())
    assert classes.trained.classes == ("unacc", "acc", "good", "vgood")
    named = classes.trained.predict(classes.x[:5], names=True)
    assert named.tolist() == [classes.trained.classes[i] for i in index_N[:5]]
    shares = classes.trained.predict_proba(classes.x)
    assert shares.shape == (len(classes.x), 4)
    assert np.allclose(shares.sum(axis=1), 1, atol=1e-6)
    assert np.array_equal(shares.argmax(axis=1), index_N)

    numbers = runs["nft numbers"]
    assert np.array_equal(numbers.trained.predict(numbers.x), numbers.kept.numpy())
    fields = runs["nft fields"]
    # The file's labels are [n, 16, 16], the model's outputs [n, 1, 16, 16].
    assert np.array_equal(fields.trained.predict(fields.x), fields.kept[:, 0].numpy())
    labels = runs["lora labels"]
    chosen = labels.trained.predict(labels.x)
    assert set(np.unique(chosen)) <= {0, 1}
    assert np.array_equal(chosen, labels.trained.predict_proba(labels.x) > 0.5)
    with pytest.raises(DataError, match="dense labels: no probabilities"):
        fields.trained.predict_proba(fields.x)


@pytest.mark.slow
def test_it_needs_neither_the_data_nor_the_pretrained_weights(
    runs: dict[str, Used], monkeypatch: pytest.MonkeyPatch
) -> None:
    from xmodal.data.store import Store

    def never(*given: Any, **named: Any) -> None:
        raise AssertionError("the data or the store were asked for")

    for cls in (Car, Darcy, Arrays):
        monkeypatch.setattr(cls, "load", never)
        monkeypatch.setattr(cls, "describe", never)
    for name in ("wheel_files", "build"):
        monkeypatch.setattr(Store, name, never)
    before = torch.get_rng_state()
    for used in runs.values():
        again = xmodal.load(used.trained.run.path)
        assert torch.equal(again.outputs(used.x), used.kept)
    assert torch.equal(torch.get_rng_state(), before)
    assert not again.model.training


def test_a_body_with_published_weights_is_built_without_them() -> None:
    from xmodal.inference.model import unpretrained
    from xmodal.settings import Use
    from xmodal_backbones.embedded import MiniLM

    use = Use("minilm-l6", MiniLM, MiniLM.Config(layers=1))
    assert unpretrained(use).config == MiniLM.Config(layers=1, pretrained=False)
    assert use.config.pretrained


@pytest.mark.slow
def test_all_forms_of_samples_are_understood(runs: dict[str, Used]) -> None:
    """Arrays, tensors, lists, float32; channels where the file has them or in front."""
    fields = runs["nft fields"]
    for x in (torch.from_numpy(fields.x), fields.x.tolist(), np.moveaxis(fields.x, 3, 1)):
        assert torch.equal(fields.trained.outputs(x), fields.kept)
    narrow = fields.trained.outputs(fields.x.astype(np.float32))
    assert torch.allclose(narrow, fields.kept, atol=1e-4)
    single = torch.cat([fields.trained.outputs(x[None]) for x in fields.x])
    assert torch.allclose(single, fields.kept, atol=1e-5)
    dense = runs["lora dense"]
    assert torch.equal(dense.trained.outputs(dense.x[:, None]), dense.kept)


@pytest.mark.slow
def test_tables_are_read_by_the_names_of_their_columns(runs: dict[str, Used]) -> None:
    table = runs["fpt table"]
    shuffled = table.x[table.x.columns[::-1]].assign(extra=1)
    assert torch.equal(table.trained.outputs(shuffled), table.kept)
    codes = table.trained.raw.encode(table.x)
    assert torch.equal(table.trained.outputs(codes), table.kept)
    assert np.isnan(codes).any()
    assert table.trained.raw.levels == ((), ("blue", "green", "red"), (), ("False", "True"))
    # Cars are codes in the task's own table; their names are understood as well.
    car = runs["pare classes"]
    names = tables.car().level_names()
    rows = {c: [names[i][int(v)] for v in car.x[:, i]] for i, c in enumerate(tables.car().columns)}
    assert torch.equal(car.trained.outputs(pd.DataFrame(rows)), car.kept)


@pytest.mark.slow
def test_an_unseen_category_counts_as_missing_and_is_said(runs: dict[str, Used]) -> None:
    table = runs["fpt table"]
    strange, gap = table.x.head(2).copy(), table.x.head(2).copy()
    strange["colour"], gap["colour"] = "mauve", None
    with pytest.warns(UserWarning, match=r"'colour'.*2 of 2 rows; first: row 0, 'mauve'; known: b"):
        given = table.trained.outputs(strange)
    assert torch.equal(given, table.trained.outputs(gap))


def test_a_table_is_read_as_training_read_it(tmp_path: Path) -> None:
    """Truth values, codes with zeros in front, decimals, gaps and text, in batches of any size."""
    random = np.random.default_rng(0)
    words = {
        "open": ["TRUE", "FALSE"],
        "shut": ["true", "false", ""],
        "zip": ["02139", "501", "10001"],
        "share": ["0.50", "1", "2.25", "0.1234567890123456789"],
        "code": ["02139", "K1A", "1.50", "1e3", "1"],
        "size": ["1", "2.50", "", "1e2"],
        "kind": ["01", "1", "A"],
    }
    file = tmp_path / "t.csv"
    pd.DataFrame({k: random.choice(v, 90) for k, v in words.items()}).to_csv(file, index=False)
    settings = Arrays.Config(path=file, categories=("zip", "share"))
    used = "task={use: arrays, path: %s, categories: [zip, share]}"
    outcome = _run(tmp_path / "run", "methods/nft", used % file)
    rows = shares(understand(settings), settings, 0)["test"].rows
    lines = file.read_text().splitlines()
    new = tmp_path / "new.csv"
    new.write_text("\n".join([lines[0], *(lines[1 + row] for row in rows)]) + "\n")
    trained = xmodal.load(outcome.run.path)
    trained.note = pytest.fail
    assert trained.classes == ("01", "1", "A")
    kept = load_file(outcome.run.path / "predictions.safetensors")
    read = {}
    for batch in (trained.recipe.evaluation_batch, 1):
        samples = readers.read(new, trained.raw, batch)
        pieces = [(trained.prepare(x), trained.labels(y)) for x, y, *_ in samples.pieces]
        assert torch.equal(torch.cat([y for _, y in pieces]), kept["label"])
        read[batch] = torch.cat([x for x, _ in pieces])
    whole, single = read.values()
    assert torch.equal(trained.forward(whole), kept["prediction"])
    assert torch.equal(single.nan_to_num(-1), whole.nan_to_num(-1))


def test_columns_without_names_are_all_taken_or_none(tmp_path: Path) -> None:
    """A run on arrays knows no names: a column too many is no feature, and y only the last."""
    form = RawForm((3,), (3,), missing=True, label_shape=())
    frame = pd.DataFrame({"a": [1.0], "b": [2.0], "c": [3.0]})
    np.testing.assert_array_equal(form.encode(frame), [[1, 2, 3]])
    for columns, labelled in ((("a", "b", "c"), False), (("a", "b", "c", "y"), True)):
        file = tmp_path / "t.csv"
        file.write_text(f"{','.join(columns)}\n{','.join(str(k) for k in range(len(columns)))}\n")
        samples = readers.read(file, form, 4)
        ((x, y, *_),) = samples.pieces
        assert (samples.labelled, y is not None) == (labelled, labelled)
        np.testing.assert_array_equal(x, [[0, 1, 2]])
    message = r"expected 3 columns and .*no names to choose by; got 4 \(id, a, b, c\)"
    with pytest.raises(DataError, match=message):
        form.encode(frame.assign(id=0)[["id", "a", "b", "c"]])
    named = pd.DataFrame({"a": [1.0], "y": [2.0], "c": [3.0]})
    named.to_csv(file, index=False)
    ((x, y, *_),) = readers.read(file, form, 4).pieces
    np.testing.assert_array_equal(x, [[1, 2, 3]])
    assert y is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: pd.Series(x[:, 0]), r"expected \[n, 6\] .*, got \[864\]"),
        (lambda x: x[:, :5], r"expected \[n, 6\] \(columns buying, .*safety\), got \[864, 5\]"),
        (lambda x: x[0], r"got one sample \[6\]; write x\[None\]"),
        (lambda x: x[:0], r"no samples; expected \[n, 6\]"),
        (lambda x: 3.0, r"expected \[n, 6\].*, got \[\]"),
        (lambda x: x + 0.5, r"column 0 \('buying'\) holds categories, coded 0 = vhigh, .* has 2.5"),
        (lambda x: x.astype(str), r"expected \[n, 6\] of numbers, got \[864, 6\] of <U32"),
        (lambda x: np.where(x > 2, np.inf, x), r"x: row \d+ holds an infinite value"),
        (lambda x: pd.DataFrame(x, columns=list("abcdef")), "no column 'buying', 'maint'.*got a,"),
        (lambda x: pd.DataFrame({"dors": [1]}), "did you mean 'dors'|no column"),
    ],
)
def test_wrong_samples_give_one_message(
    runs: dict[str, Used], change: Callable[[Any], Any], message: str
) -> None:
    used = runs["pare classes"]
    with pytest.raises(DataError, match=message) as found:
        used.trained.predict(change(used.x))
    assert "\n" not in str(found.value)


@pytest.mark.slow
def test_gaps_are_refused_where_training_had_none(runs: dict[str, Used]) -> None:
    series = runs["nft numbers"]
    x = np.concatenate([series.x] * 20)
    x[100, 0, 3] = np.nan
    with pytest.raises(DataError, match="row 100 holds NaN or an infinite value"):
        series.trained.predict(x)
    table = runs["fpt table"].x.assign(size="tall")
    with pytest.raises(DataError, match="column 'size' must hold numbers; row 0 has 'tall'"):
        runs["fpt table"].trained.predict(table)


@pytest.mark.slow
def test_labels_are_names_or_numbers(runs: dict[str, Used]) -> None:
    car = runs["pare classes"].trained
    for y in (["acc", "vgood"], [1, 3], [1.0, 3.0], np.eye(4)[[1, 3]], [[1], [3]]):
        assert car.labels(y).tolist() == [1, 3]
    for y in (["acc", "good?"], [1, 4], [0.5, 1]):
        with pytest.raises(DataError, match=r"expected one of unacc, .*, or a number 0 to 3"):
            car.labels(y)
    with pytest.raises(DataError, match="x has 864 samples, but y 2"):
        car.score(runs["pare classes"].x, [1, 3])
    series = runs["nft numbers"].trained
    with pytest.raises(DataError, match="y: row 1 has no label"):
        series.labels([[1, 2], [3, np.nan]])
    with pytest.raises(DataError, match=r"y: expected \[n, 2\] of numbers, got \[4, 3\]"):
        series.labels(np.zeros((4, 3)))


@pytest.mark.slow
def test_runs_without_a_model_are_refused(runs: dict[str, Used], tmp_path: Path) -> None:
    import shutil

    with pytest.raises(UsageError, match="no run"):
        xmodal.load(tmp_path)
    run = runs["ridge"].trained.run.path
    for folder, message in (
        ("checkpoints", "no trained model yet"),
        ("inputs", "does not say how its samples were prepared"),
    ):
        copy = tmp_path / folder
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns(folder))
        with pytest.raises(DataError, match=message):
            xmodal.load(copy)
    copy = tmp_path / "damaged"
    shutil.copytree(run, copy)
    file = next(copy.glob("checkpoints/best-*/tensors.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match="damaged"):
        xmodal.load(copy)


def _forms() -> Iterator[RawForm]:
    double = torch.float64
    yield RawForm((4,), (4,))
    yield RawForm((5, 6, 3), (3, 5, 6), channel=2)
    scale = torch.full((3, 1, 1), 2.0, dtype=double)
    yield RawForm((5, 6, 3), (3, 5, 6), channel=2, mean=scale, scale=scale)
    yield RawForm((5, 6), (1, 5, 6), mean=scale[:1], scale=scale[:1], extra=torch.ones(2, 5, 6))


@pytest.mark.parametrize("form", list(_forms()))
def test_preparation_can_be_undone(form: RawForm) -> None:
    x = torch.randn(3, *form.shape, dtype=torch.float64)
    prepared = form.apply(x)
    more = 0 if form.extra is None else len(form.extra)
    assert prepared.shape == (3, form.laid[0] + more, *form.laid[1:])
    assert prepared.dtype == torch.float32
    assert torch.allclose(form.invert(prepared), x, atol=1e-5)
    assert RawForm.of(form.state()) == form


def test_what_is_no_code_of_a_category_counts_as_missing() -> None:
    form = RawForm((2,), (2,), columns=("a", "b"), levels=((), ("u", "v")), missing=True)
    a = torch.tensor([0.5, -1.0, 7.0, 0.0, 1.0, torch.nan], dtype=torch.float64)
    prepared = form.apply(torch.stack([a, a], dim=1))
    assert torch.equal(prepared[:5, 0], a[:5].float())
    assert prepared[:, 1].isnan().tolist() == [True, True, True, False, False, True]
    whole = torch.tensor([[3, 0], [4, 1]])
    assert torch.equal(form.apply(whole), whole.float())


@pytest.mark.slow
def test_kept_samples_are_raw_again(runs: dict[str, Used]) -> None:
    for name in ("nft fields", "lora dense", "pare classes", "nft numbers"):
        used = runs[name]
        assert np.allclose(used.trained.samples(), used.x[:4], atol=1e-4)
