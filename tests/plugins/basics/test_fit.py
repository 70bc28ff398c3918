"""What stage ``fit`` hands to a model, and the unit in which errors of labels count alike."""

from __future__ import annotations

import pytest
import torch

from xmodal_basics.fit import label_scale, spread

NAN = float("nan")


def test_places_are_spread_evenly() -> None:
    assert spread(10, 20).tolist() == list(range(10))
    assert spread(10, 5).tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(("count", "most"), [(900, 256), (100, 250), (100, 1000), (100, 99)])
def test_copies_cost_no_sample(count: int, most: int) -> None:
    """Eight copies of all samples: first as many samples as without copies, then copies of them."""
    rows = spread(count, most, 8 * count)
    assert len(rows) <= most
    assert rows[: min(count, most)].tolist() == spread(count, most).tolist()
    copies = min(8, max(1, most // count))
    assert (rows % count).unique().tolist() == spread(count, most).tolist()
    assert (rows // count).unique().tolist() == list(range(copies))


def test_labels_count_alike_in_any_unit() -> None:
    y_NK = torch.tensor([[1.0, 5.0, NAN, NAN], [3.0, 5.0, 2.0, NAN], [5.0, 5.0, 4.0, NAN]])
    scale_K = label_scale(y_NK, "regression")
    assert scale_K.tolist() == pytest.approx([(8 / 3) ** 0.5, 1, 1, 1])
    moved_K = label_scale(1000 * y_NK + 7e4, "regression")
    assert moved_K.tolist() == pytest.approx([1000 * (8 / 3) ** 0.5, 1, 1000, 1])
    assert label_scale(torch.tensor([0, 1, 2]), "classification").tolist() == [1]
