"""Chains of real proteins: distances, missing residues, the split by clusters, the score."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from xmodal import api
from xmodal.data.loader import labels
from xmodal.data.store import Store
from xmodal.errors import DataError
from xmodal_standins import proteins
from xmodal_standins.proteins import SAMPLES, ProteinChains

from ...any_parts import PARTS


def write_pack(path: Path, chains: int = 8, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Chains that walk 3.8 angstroms a residue and fold back; the first lacks 3 residues."""
    random = np.random.default_rng(seed)
    lengths = random.integers(30, 44, chains)
    total = int(lengths.sum())
    offset = np.concatenate([[0], np.cumsum(lengths)])
    ca, res_id = np.empty((total, 3), np.float32), np.empty(total, np.int32)
    for start, end in pairwise(offset):
        angle = np.arange(end - start) * 0.5
        walk = np.stack([7.4 * np.cos(angle), 7.4 * np.sin(angle), angle / 2], 1)
        ca[start:end] = walk
        res_id[start:end] = np.arange(end - start) + 5
    ca[10 : offset[1]] += [9.0, 0, 0]  # a break, after residue 14
    res_id[10 : offset[1]] += 3
    res_id[offset[1] + 7 : offset[2]] += 300  # only the numbers jump
    pack = {
        "offset": offset,
        "ca": ca,
        "cb": ca + random.normal(0, 0.8, (total, 3)).astype(np.float32),
        "seq": random.integers(0, 20, total).astype(np.uint8),
        "ss": random.integers(0, 3, total).astype(np.uint8),
        "sasa": random.uniform(0, 200, total).astype(np.float16),
        "res_id": res_id,
        "cluster": np.array([0, 0, 1, 2, 3, 4, 5, 5])[:chains],
        "test": np.array([0, 0, 0, 0, 0, 0, 1, 1], bool)[:chains],
        **changes,
    }
    np.savez(path, **pack)
    return pack


def task(path: Path | None, cache: Path, size: int = 64) -> ProteinChains:
    config = ProteinChains.Config(path=path, size=size, **PARTS)
    return ProteinChains(config, SimpleNamespace(store=Store(cache)))  # type: ignore[arg-type]


def test_labels_are_the_distances(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "proteins_115.npz")
    data = task(tmp_path / "proteins_115.npz", tmp_path / "cache").load(0)
    rows = slice(pack["offset"][6], pack["offset"][7])
    y = data.test[0][1][0].numpy()
    length = rows.stop - rows.start
    inside = y[5 : 5 + length, 5 : 5 + length]
    expected = np.maximum(cdist(pack["cb"][rows], pack["cb"][rows]), 1)
    off = ~np.eye(length, dtype=bool)
    np.testing.assert_allclose(inside[off], expected[off], rtol=1e-5)
    assert inside[4, 4] == pytest.approx((inside[4, 3] + inside[4, 5]) / 2)
    assert np.isnan(y[:5]).all()
    assert np.isnan(y[5 + length :]).all()
    assert np.nanmax(y) > 16
    assert np.nanmax(data.train[0][1].numpy()) <= 16
    assert labels(data.test).isnan().equal(torch.stack([y for _, y in data.test]).isnan())


def test_missing_residues_leave_a_gap(tmp_path: Path) -> None:
    """Pairs across a break are as far apart in the sequence as in the whole chain."""
    pack = write_pack(tmp_path / "proteins_115.npz")
    one = {name: pack[name][: pack["offset"][1]] for name in proteins.BY_RESIDUE}
    at = proteins.places(one)
    assert at[:11].tolist() == [*range(10), 13]
    y, x = proteins.distances(one), proteins.features(one)
    assert np.isnan(y[10:13]).all()
    assert not x[0:48:2, :, 10:13].any()
    assert y[9, 13] == pytest.approx(np.linalg.norm(pack["cb"][9] - pack["cb"][10]), rel=1e-5)
    jump = slice(pack["offset"][1], pack["offset"][2])
    second = {name: pack[name][jump] for name in proteins.BY_RESIDUE}
    assert proteins.places(second).tolist() == list(range(jump.stop - jump.start))


def test_channels(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "proteins_115.npz")
    x = task(tmp_path / "proteins_115.npz", tmp_path / "cache").load(0).test[1][0]
    rows = slice(pack["offset"][7], pack["offset"][8])
    for n in (0, 11, 29):
        residue = rows.start + n
        own = 2 * int(pack["seq"][residue])
        assert x[own, 9, 5 + n] == 1  # down the column
        assert x[own + 1, 5 + n, 9] == 1  # along the row
        assert x[0:40:2, 9, 5 + n].sum() == 1
        assert x[40:46:2, 9, 5 + n].tolist() == np.eye(3)[pack["ss"][residue]].tolist()
        assert x[46, 9, 5 + n] == pytest.approx(float(pack["sasa"][residue]) / 100, rel=1e-3)
    assert x[48, 5 + 3, 5 + 20] == pytest.approx(np.log(18) / 6)


def test_clusters_stay_together(tmp_path: Path) -> None:
    write_pack(tmp_path / "proteins_115.npz")
    one = task(tmp_path, tmp_path / "cache")
    data = one.load(0)
    clusters = [set(data.groups[part].tolist()) for part in ("train", "validation", "test")]
    assert not clusters[0] & clusters[1]
    assert clusters[2] == {5}
    assert sum(len(data.groups[part]) for part in data.groups) == 8
    sizes = ProteinChains.describe(one.config, one.store).samples
    assert sizes == {part: len(groups) for part, groups in data.groups.items()}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cluster": np.array([0, 0, 1, 2, 3, 4, 4, 5])}, "cluster 4 has chains for training and"),
        ({"ss": np.full(300, 3, np.uint8)}, "'ss' is uint8 of shape"),
        ({"offset": np.arange(5)}, "does not fit 8 chains"),
    ],
)
def test_packs_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    write_pack(tmp_path / "proteins_115.npz", **changes)
    with pytest.raises(DataError, match=reason):
        task(tmp_path, tmp_path / "cache").load(0)


def test_without_a_pack(tmp_path: Path) -> None:
    one = task(None, tmp_path)
    assert ProteinChains.describe(one.config, one.store).samples == SAMPLES
    with pytest.raises(DataError, match="xmodal data fetch proteins --from FOLDER"):
        one.load(0)


def test_the_real_pack(shared_data: Path, tmp_path: Path) -> None:
    one = task(shared_data / "proteins_115.npz", tmp_path, size=512)
    data = one.load(0)
    assert ProteinChains.describe(one.config, one.store).samples == SAMPLES
    with np.load(shared_data / "proteins_115.npz", allow_pickle=False) as pack:
        lengths = np.diff(pack["offset"])
        gaps = pack["n_gaps"]
    y = labels(data.test)
    # Every chain has at least 14 long-range contacts (said of the pack), and fits on the canvas.
    contacts = (y <= 8) & torch.ones_like(y, dtype=torch.bool).triu(24)
    assert contacts.flatten(1).sum(1).min() >= 14
    known = (~y[:, 0, :, :].isnan()).any(1).sum(1).numpy()
    test = np.arange(115)[-len(lengths) :][np.isin(np.arange(115), data.test.rows)]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(known, lengths[test])
    assert gaps.sum() == 12


def test_two_steps_at_smoke_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path / "cache"))
    write_pack(tmp_path / "proteins_115.npz")
    done = api.run(
        "methods/nft",
        "tasks/proteins",
        scale="smoke",
        overrides=[f"task.path={tmp_path / 'proteins_115.npz'}"],
        root=tmp_path / "runs",
        report=False,
    )
    assert done.run.read("result.json")["test"]["metric"] > 0
