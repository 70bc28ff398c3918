"""The embedder ``row-ple`` against the formulas of Gorishniy et al. (2022), number by number."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from xmodal import api
from xmodal.testing import check_embedder
from xmodal.testing.tiny import TinyBackbone, build, tiny_context, tiny_facts
from xmodal_basics.embedders.encoded_columns import EncodedColumns


def embedder(columns: int = 3, levels: tuple[int, ...] = (), **settings: Any) -> EncodedColumns:
    facts = tiny_facts("row")
    task = replace(facts.task, shape=(columns,), levels=levels or (0,) * columns)
    facts = replace(facts, task=task, grid=(columns,))
    context = tiny_context(facts, {"backbone": build(TinyBackbone, None, tiny_context(facts))})
    made: EncodedColumns = build(EncodedColumns, settings, context)
    return made


def by_the_paper(x: float, edges: list[float]) -> list[float]:
    """Equation 1: e_t is 0 below its bin (t > 1), 1 above it (t < T), and linear elsewhere."""
    last, found = len(edges) - 1, []
    for t in range(1, last + 1):
        if x < edges[t - 1] and t > 1:
            found.append(0.0)
        elif x >= edges[t] and t < last:
            found.append(1.0)
        else:
            found.append((x - edges[t - 1]) / (edges[t] - edges[t - 1]))
    return found


def test_piecewise_linear_codes_are_those_of_the_paper() -> None:
    made = embedder(bins=4)
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.gamma(2.0, size=(200, 3))).float()
    x[:, 1] = torch.round(x[:, 1] / 3)  # few values: some quantiles are equal
    x[:, 2] = 3.0
    x[5, 0] = torch.nan
    made.fit(x)
    probe = torch.linspace(-4, 12, 41)
    code = made.code(probe[:, None].expand(-1, 3))
    for column in range(3):
        known = x[:, column][~x[:, column].isnan()].numpy()
        edges = sorted(set(np.quantile(known.astype("float64"), [0, 0.25, 0.5, 0.75, 1])))
        if len(edges) == 1:
            edges.append(edges[0] + 1)
        assert (len(edges) < 5) == (column > 0)
        expected = [by_the_paper(float(value), edges) for value in probe]
        pad = [0.0] * (5 - len(edges))
        wanted = torch.tensor([[*row, *pad] for row in expected]).float()
        torch.testing.assert_close(code[:, column], wanted, atol=1e-5, rtol=1e-4)


def test_periodic_codes_are_sines_and_cosines() -> None:
    made = embedder(numbers="periodic", frequencies=5, sigma=0.5)
    x = torch.randn(7, 3)
    code = made.code(x)
    assert code.shape == (7, 3, 10)
    for column in range(3):
        for k in range(5):
            turn = 2 * math.pi * made.frequency_FK[column, k] * x[:, column]
            torch.testing.assert_close(code[:, column, k], turn.sin())
            torch.testing.assert_close(code[:, column, 5 + k], turn.cos())
    drawn = embedder(columns=400, numbers="periodic", sigma=0.5).frequency_FK
    assert float(drawn.detach().std()) == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("numbers", ["ple", "periodic"])
def test_a_token_is_its_own_columns_code_times_weights(numbers: str) -> None:
    made = embedder(levels=(0, 4, 0), numbers=numbers)
    x = torch.tensor([[0.3, 2.0, -1.0], [torch.nan, 9.0, 0.5]])
    found: Tensor = made.project(x)
    code = made.code(torch.nan_to_num(x))
    for column in (0, 2):
        expected = made.bias_FD[column] + sum(
            code[0, column, t] * made.weight_FTD[column, t] for t in range(code.shape[2])
        )
        torch.testing.assert_close(found[0, column], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[0, 1], made.category_MD[2])
    torch.testing.assert_close(found[1, 0], made.missing_FD[0])
    torch.testing.assert_close(found[1, 1], made.missing_FD[1])


@pytest.mark.parametrize("numbers", ["ple", "periodic"])
def test_contract(numbers: str) -> None:
    check_embedder(EncodedColumns, {"numbers": numbers})


def test_a_run_puts_the_bins_at_its_training_samples_and_predict_knows_them(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame({"a": random.lognormal(size=80), "b": random.normal(size=80)})
    table["label"] = np.where(table.a > 1, "x", "y")
    table.to_csv(tmp_path / "t.csv", index=False)
    done = api.run(
        "methods/nft",
        scale="smoke",
        overrides=[
            f"task={{use: arrays, path: '{tmp_path / 't.csv'}'}}",
            "embedder={use: row-ple, bins: 4}",
        ],
        root=tmp_path / "runs",
        report=False,
    ).run
    model = api.load(done.path)
    made = model.model.embedder
    assert isinstance(made, EncodedColumns)
    assert made.bins_F.tolist() == [4, 4]
    width_FT = made.width_FT
    assert float(width_FT[0, 3]) > 3 * float(width_FT[0, 0])  # as quantiles of such numbers lie
    assert len(model.predict(table[["a", "b"]])) == 80
