"""Weights of training samples: every kind of method follows the samples that count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from xmodal import api, randomness
from xmodal.errors import DataError, RecipeError
from xmodal.finetuner import FineTuner

NETWORK = [
    *("backbone=tiny", "source={use: digits, samples: 32}", "training.optimizer.lr=0.01"),
    *("training.epochs=20", "training.max_steps=null", "training.batch={size: 32, micro: null}"),
]


def test_a_pass_has_every_sample_in_proportion_to_its_weight() -> None:
    weight_N = torch.tensor([0.0, 1.0, 2.5, 0.5, 6.0])
    wanted = (5 * weight_N / weight_N.sum()).numpy()
    times = np.array(
        [
            np.bincount(randomness.weighted_order(weight_N, seed, "x").numpy(), minlength=5)
            for seed in range(2000)
        ]
    )
    assert (times.sum(1) == 5).all()
    assert (times >= np.floor(wanted)).all()
    assert (times <= np.ceil(wanted)).all()
    np.testing.assert_allclose(times.mean(0), wanted, atol=0.04)


def test_equal_weights_change_nothing() -> None:
    for count in (1, 7, 1000):
        same = randomness.weighted_order(torch.full((count,), 0.3), 5, "order", 1)
        assert torch.equal(same, randomness.permutation(count, 5, "order", 1))


def table(folder: Path, heavy: float) -> tuple[Path, np.ndarray, np.ndarray]:
    """Rows of two rules, of which one says the opposite of the other; that of half of them counts.

    Returns the file, numbers like its samples, and the answers of the rule that counts.
    """
    random = np.random.default_rng(0)
    x = random.normal(size=(480, 3)).round(3)
    first = random.random(480) < 0.5
    y = np.where(first, x[:, 0], -x[:, 0]) > 0
    lines = [
        ",".join(map(str, [*row, heavy if own else 1, "yes" if up else "no"]))
        for row, own, up in zip(x.tolist(), first, y, strict=True)
    ]
    path = folder / "rows.csv"
    path.write_text("a,b,c,w,y\n" + "\n".join(lines) + "\n")
    clear = x[np.abs(x[:, 0]) > 0.4]
    return path, clear, np.where(clear[:, 0] > 0, "yes", "no")


def arrays(folder: Path, numbers: bool = False) -> tuple[str, np.ndarray, np.ndarray]:
    """Training samples of both rules; validation and test samples of the rule that counts.

    Returns the task, and the test samples with their answers.
    """
    random = np.random.default_rng(0)
    made = {}
    for part, count in (("train", 480), ("val", 100), ("test", 200)):
        x = random.normal(size=(count, 3)).astype("float32")
        counts = random.random(count) < 0.5 if part == "train" else np.ones(count, dtype=bool)
        y = (np.where(counts, x[:, 0], -x[:, 0]) > 0).astype(float if numbers else int)
        made |= {f"x_{part}": x, f"y_{part}": y, f"w_{part}": np.where(counts, 50.0, 1.0)}
    np.savez(folder / "a.npz", **made)
    kind = "regression" if numbers else "classification"
    task = f"task={{use: arrays, path: {folder / 'a.npz'}, weight: w, form: row, kind: {kind}}}"
    return task, made["x_test"], made["y_test"]


CHEAP = ["baseline", "nearest", "residual", "xgboost", "lightgbm", "catboost"]


@pytest.mark.long
@pytest.mark.parametrize("method", ["nft", "pare", *CHEAP])
def test_a_method_follows_the_samples_that_count(method: str, tmp_path: Path) -> None:
    if method.endswith("boost") or method == "lightgbm":
        pytest.importorskip(method)
    task, x, y = arrays(tmp_path)
    more = NETWORK if method in ("nft", "pare", "residual") else []
    done = api.run(
        *(f"methods/{method}", "scales/smoke"),
        overrides=[task, *more],
        root=tmp_path / "runs",
        report=False,
    )
    assert (np.asarray(api.load(done.run.path).predict(x)) == y).mean() > 0.85


@pytest.mark.parametrize("estimator", ["ridge", "logistic"])
@pytest.mark.slow
def test_linear_models_follow_the_samples_that_count(estimator: str, tmp_path: Path) -> None:
    task, x, y = arrays(tmp_path, numbers=estimator == "ridge")
    done = api.run(
        "methods/baseline",
        overrides=[task, f"predictor.estimator={estimator}"],
        root=tmp_path / "runs",
        report=False,
    )
    found = np.asarray(api.load(done.run.path).predict(x)).ravel()
    assert ((found > 0.5) == y).mean() > 0.9


def test_what_cannot_weigh_refuses(tmp_path: Path) -> None:
    path, _, _ = table(tmp_path, 50)
    with pytest.raises(RecipeError, match="cannot weigh samples"):
        api.run("methods/quant", overrides=[f"task={{use: arrays, path: {path}, weight: w}}"])


@pytest.mark.parametrize(
    ("weight", "message"),
    [("heavy", "holds no numbers"), ("-1", "row 0 has -1, not 0 or more"), ("", "row 0 has nan")],
)
def test_wrong_weights_are_named(weight: str, message: str, tmp_path: Path) -> None:
    path, _, _ = table(tmp_path, 50)
    head, first, *rest = path.read_text().splitlines()
    *values, _, label = first.split(",")
    more = [line.replace(",1,", ",x,") for line in rest] if weight == "heavy" else rest
    path.write_text("\n".join([head, ",".join([*values, weight, label]), *more]) + "\n")
    with pytest.raises(DataError, match=message):
        api.run("methods/majority", overrides=[f"task={{use: arrays, path: {path}, weight: w}}"])


def test_weights_that_are_all_zero_are_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=random.normal(size=(40, 3)), y=np.arange(40) % 2, w=np.zeros(40))
    task = f"task={{use: arrays, path: {tmp_path / 'a.npz'}, weight: w}}"
    with pytest.raises(DataError, match="all training samples have weight 0"):
        api.run("methods/majority", overrides=[task], root=tmp_path / "runs")


@pytest.mark.slow
def test_samples_of_weight_0_might_as_well_not_be_there(tmp_path: Path) -> None:
    """Of a share of a weighted table, too: the answer is that of the samples that count."""
    random = np.random.default_rng(1)
    x, y = random.normal(size=(200, 4)).astype("float32"), np.arange(200) % 4
    counts = (y == 2).astype(float)
    made = {"x_train": x, "y_train": y, "w_train": counts, "x_test": x, "y_test": y}
    np.savez(tmp_path / "a.npz", **made)
    task = f"task={{use: arrays, path: {tmp_path / 'a.npz'}, weight: w}}"
    for method in ("majority", "nearest", "baseline"):
        done = api.run(
            f"methods/{method}", overrides=[task, "fraction=0.5"], root=tmp_path / "runs",
            report=False,
        )  # fmt: skip
        assert set(np.asarray(api.load(done.run.path).predict(x)).tolist()) == {2}, method


@pytest.mark.long
@pytest.mark.parametrize("of_text", [False, True])
def test_finetuner_takes_weights(of_text: bool, tmp_path: Path) -> None:
    _, x, y = table(tmp_path, 1)
    import pandas as pd

    both, labels = np.concatenate([x, x]), np.concatenate([y, np.where(y == "yes", "no", "yes")])
    weights = np.repeat([50.0, 1.0], len(x))
    X = pd.DataFrame(both, columns=list("abc")).assign(kind="same") if of_text else both
    model = FineTuner(method="baseline", device="cpu").fit(X, labels, sample_weight=weights)
    assert (model.predict(X)[: len(x)] == y).mean() > 0.95
    with pytest.raises(ValueError, match="sample_weight: row 0 is below 0"):
        FineTuner(method="baseline").fit(X, labels, sample_weight=-weights)
