"""``xmodal predict --with-input`` and ``--interval``, on runs of every kind of labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

import xmodal as package
from xmodal import api
from xmodal.inference.sureness import conformal, temperature

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs ``kind`` (classes) and ``price`` (numbers) on tables, ``series`` on an array."""
    root = tmp_path_factory.mktemp("more")
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"a": random.normal(size=160), "b": random.choice(["=u", "v"], 160)})
    frame.loc[3, "a"] = np.nan
    random_kind = np.where(frame["a"] + random.normal(size=160) > 0, "plus", "minus")
    frame.assign(kind=random_kind).to_csv(root / "kind.csv", index=False)
    price = 100 + 10 * frame["a"].fillna(0) + random.normal(size=160)
    frame.assign(price=price).to_csv(root / "price.csv", index=False)
    x = random.normal(size=(160, 1, 12))
    np.savez(root / "series.npz", x=x, y=x[:, 0, :2])
    for name in ("kind.csv", "price.csv", "series.npz"):
        task = f"task={{use: arrays, path: {root / name}}}"
        api.run("methods/nft", overrides=[task], scale="smoke", directory=root / Path(name).stem,
                report=False)  # fmt: skip
    return root


def test_the_input_stands_beside_the_predictions(xmodal: Call, made: Path) -> None:
    done = xmodal("predict", made / "kind", made / "kind.csv", "--with-input", "--batch", 50,
                  "--out", "out.csv")  # fmt: skip
    assert done.code == 0, done.err
    found = pd.read_csv("out.csv", keep_default_na=False)
    given = pd.read_csv(made / "kind.csv", keep_default_na=False, dtype=str)
    assert list(found) == ["a", "b", "kind", "prediction", "p(minus)", "p(plus)"]
    assert found["a"].astype(str).tolist() == given["a"].tolist()
    # What a spreadsheet would take for a formula stays text.
    assert found["b"].tolist() == given["b"].str.replace("=u", "'=u").tolist()
    model = package.load(made / "kind")
    said = model.predict(pd.read_csv(made / "kind.csv"), names=True).tolist()
    assert found["prediction"].tolist() == said


def test_arrays_are_written_whole_or_as_columns(xmodal: Call, made: Path) -> None:
    data = made / "series.npz"
    x = np.load(data)["x"]
    assert xmodal("predict", made / "series", data, "--with-input", "--out", "o.npz").code == 0
    assert np.array_equal(np.load("o.npz")["x"], x)
    assert xmodal("predict", made / "series", data, "--with-input", "--out", "o.csv").code == 0
    found = pd.read_csv("o.csv")
    assert list(found) == [*(f"x{c}" for c in range(12)), "y0", "y1"]
    assert np.allclose(found.iloc[:, :12], x[:, 0])
    wrong = xmodal("predict", made / "series", data, "--with-input", "--out", "o.npy")
    assert wrong.code == 2
    assert "--with-input writes CSV or .npz" in wrong.err


def test_numbers_get_the_interval_of_validation_errors(xmodal: Call, made: Path) -> None:
    done = xmodal("predict", made / "price", made / "price.csv", "--interval", "--out", "p.csv")
    assert done.code == 0, done.err
    assert "intervals hold the truth of 95%" in done.err
    kept = load_file(made / "price" / "validation.safetensors")
    half = float(conformal(kept["prediction"], kept["label"]))
    found = pd.read_csv("p.csv")
    assert list(found) == ["prediction", "low", "high"]
    assert np.allclose(found["high"] - found["prediction"], half)
    assert np.allclose(found["prediction"] - found["low"], half)
    done = xmodal("predict", made / "price", made / "price.csv", "--interval", "--json")
    first = json.loads(done.out)["predictions"][0]
    assert first == pytest.approx(dict(found.iloc[0]), rel=1e-6)


def test_several_numbers_have_an_interval_each(xmodal: Call, made: Path) -> None:
    data = made / "series.npz"
    assert xmodal("predict", made / "series", data, "--interval", "--out", "s.csv").code == 0
    assert list(pd.read_csv("s.csv")) == ["y0", "y1", "low(y0)", "low(y1)", "high(y0)", "high(y1)"]


def test_probabilities_are_calibrated_and_answers_stay(xmodal: Call, made: Path) -> None:
    data, run = made / "kind.csv", made / "kind"
    done = xmodal("predict", run, data, "--interval", "--out", "c.npz")
    assert done.code == 0, done.err
    kept = load_file(run / "validation.safetensors")
    hot = temperature(kept["prediction"].double(), kept["label"])
    assert f"temperature {hot:.3g}, of 24 validation samples" in done.err
    assert xmodal("predict", run, data, "--out", "plain.npz").code == 0
    sure, plain = np.load("c.npz"), np.load("plain.npz")
    assert np.array_equal(sure["prediction"], plain["prediction"])
    odds = [np.log(p["probability"][:, 1] / p["probability"][:, 0]) for p in (sure, plain)]
    assert np.allclose(odds[0] * hot, odds[1], atol=1e-4)


def test_a_run_without_free_validation_samples_is_refused(xmodal: Call, made: Path) -> None:
    kept = made / "price" / "validation.safetensors"
    content = kept.read_bytes()
    kept.unlink()
    try:
        done = xmodal("predict", made / "price", made / "price.csv", "--interval")
    finally:
        kept.write_bytes(content)
    assert done.code == 4
    assert "no validation samples that were not trained on" in done.err
    assert done.out == ""
