"""OpenML tables: equal to the published file row for row, split as TabPFN splits, no leakage."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from xmodal.data.store import Store
from xmodal.errors import DataError
from xmodal.interfaces import BackboneFacts, Context, Facts, Target, TaskFacts
from xmodal_basics.metrics import AUROCError
from xmodal_openml import benchmark, tables, task
from xmodal_openml.catalogue import TABLES
from xmodal_openml.splits import hold_out, orca_split, tabpfn_order, tabpfn_split

from ...paths import DATA

PACK = DATA / "cc18_30.npz"
needs_pack = pytest.mark.skipif(not PACK.is_file(), reason=f"no published tables at {PACK}")
BUILT = {
    11: benchmark.BalanceScale,
    50: benchmark.TicTacToe,
    1510: benchmark.Wdbc,
    40975: benchmark.Car,
}


def make(cls: type[task.TableTask], **settings: Any) -> task.TableTask:
    return cls(cls.Config(**settings), Context.outside(Store()))


def table_of(one: task.TableTask) -> tables.Table:
    return one.table(one.config, one.store)


def rows_of(dataset: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return dataset.tensors


@needs_pack
@pytest.mark.parametrize("did", BUILT)
def test_built_tables_equal_the_published_file_row_for_row(did: int) -> None:
    table = table_of(make(BUILT[did]))
    order = tabpfn_order(len(table.y_N))
    with np.load(PACK) as pack:
        x_NF, y_N = pack[f"{did}_X"], pack[f"{did}_y"]
        meta = next(m for m in json.loads(str(pack["meta"])) if m["did"] == did)
    np.testing.assert_array_equal(table.x_NF[order].astype(np.float32), x_NF)
    np.testing.assert_array_equal(table.y_N[order], y_N)
    assert [i for i, level in enumerate(table.levels) if level] == meta["cat"]
    if did != 1510:  # OpenML calls the columns V1 .. V30
        assert list(table.columns) == meta["attributes"]


@needs_pack
def test_every_table_of_the_pack_loads_in_all_five_splits() -> None:
    with np.load(PACK) as pack:
        metas = json.loads(str(pack["meta"]))
    for meta in metas:
        loaded = make(task.OpenML, path=PACK, did=meta["did"])
        facts = task.OpenML.describe(loaded.config, None)  # type: ignore[arg-type]
        assert facts.shape == (meta["p"],)
        assert facts.family == "table"
        table = table_of(loaded)
        for number in range(1, 6):
            train, test = tabpfn_split(table.y_N, number)
            assert len(train) == len(test) == min(meta["n"] // 2, 1000)
            assert not set(train) & set(test)
        data = loaded.load(0)
        counts = {part: len(getattr(data, part)) for part in ("train", "validation", "test")}
        assert counts == facts.samples
        x = torch.cat([rows_of(part)[0] for part in (data.train, data.validation, data.test)])
        assert bool(torch.isnan(x).any()) == bool(np.isnan(table.x_NF).any())
        assert not torch.isinf(x).any()


@needs_pack
def test_a_pack_and_a_built_table_give_the_same_task() -> None:
    ours, theirs = make(benchmark.Car).load(3), make(task.OpenML, path=PACK, did=40975).load(3)
    for part in ("train", "validation", "test"):
        for a, b in zip(rows_of(getattr(ours, part)), rows_of(getattr(theirs, part)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("build", "counts"),
    [
        (tables.wdbc, [357, 212]),
        (tables.balance_scale, [288, 49, 288]),
        (tables.tic_tac_toe, [332, 626]),
        (tables.car, [1210, 384, 69, 65]),
    ],
)
def test_class_counts_are_openml_s(build: Any, counts: list[int]) -> None:
    table = build()
    assert np.bincount(table.y_N).tolist() == counts
    assert len(table.classes) == len(counts)
    assert len(table.columns) == len(table.levels) == table.x_NF.shape[1]


def of_a_table(classes: int) -> Facts:
    target = Target("classification", classes)
    return Facts(TaskFacts("toy", (4,), target, {}), BackboneFacts("stub", "any", 4, 4))


def upstream_split(x: torch.Tensor, y: torch.Tensor, number: int) -> torch.Tensor:
    """The published algorithm written down with global random states (returns the window's x)."""
    bptt_all = min(len(x), 2000)
    half = int(bptt_all * 0.5) if bptt_all < 2 * 1000 else 1000
    bptt = 2 * half
    torch.manual_seed(number)
    perm = torch.randperm(len(x)) if number > 1 else torch.arange(len(x))
    x, y = x[perm], y[perm]
    for seed in range(13, 21):
        random.seed(seed)
        start = random.randint(0, len(x) - bptt) if len(x) - bptt > 0 else 0
        window = y[start : start + bptt]
        same = window[:half].unique().tolist() == window[half:].unique().tolist()
        if same and window.unique().tolist() == y.unique().tolist():
            return x[start : start + bptt]
    raise AssertionError("no split")


def require_upstream_s_split(y_N: Any, number: int) -> None:
    states = random.getstate(), torch.random.get_rng_state()
    train, test = tabpfn_split(y_N, number)
    assert random.getstate() == states[0]
    assert torch.equal(torch.random.get_rng_state(), states[1])
    expected = upstream_split(torch.arange(len(y_N)), torch.from_numpy(y_N), number)
    random.setstate(states[0])
    torch.random.set_rng_state(states[1])
    assert np.concatenate([train, test]).tolist() == expected.tolist()


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("count", [569, 1000, 2000, 2311])
def test_the_split_equals_the_one_made_with_global_random_states(number: int, count: int) -> None:
    require_upstream_s_split(np.random.default_rng(count).integers(0, 3, count), number)


def test_windows_are_drawn_until_both_halves_hold_every_class() -> None:
    """Class 2 is missing in the first half of the first two windows of 6,000 rows."""
    starts = [random.Random(seed).randint(0, 4000) for seed in range(13, 21)]
    y_N = np.arange(6000) % 2
    y_N[::10] = 2
    for start in starts[:2]:
        y_N[start : start + 1000] %= 2
    train, _ = tabpfn_split(y_N, 1)
    tried = starts.index(train[0])
    assert tried >= 2
    for start in starts[:tried]:
        halves = y_N[start : start + 1000], y_N[start + 1000 : start + 2000]
        assert any(2 not in half for half in halves)
    require_upstream_s_split(y_N, 1)


@needs_pack
def test_on_every_published_table_splits_and_scores_are_the_references() -> None:
    """Splits as upstream draws them; the error is 1 - scikit-learn's AUROC, ties included."""
    rng = np.random.default_rng(0)
    for name in TABLES:
        one = make(task.OpenML, path=PACK, did=TABLES[name].did)
        table = table_of(one)
        for number in range(1, 6):
            require_upstream_s_split(table.y_N, number)
        _, test = tabpfn_split(table.y_N, 2)
        y_N, classes = table.y_N[test], len(table.classes)
        logit_NK = rng.normal(size=(len(y_N), classes)).round(1)
        logit_NK[np.arange(len(y_N)), y_N] += 1.0
        logit = torch.from_numpy(logit_NK)
        metric = AUROCError(
            AUROCError.Config(), Context.outside(Store(), facts=of_a_table(classes))
        )
        metric.reset()
        for rows in np.array_split(np.arange(len(y_N)), 3):
            metric.update(logit[rows], torch.from_numpy(y_N[rows]))
        p_NK = logit.softmax(1).numpy()
        kind = {"y_score": p_NK[:, 1]} if classes == 2 else {"y_score": p_NK, "multi_class": "ovo"}
        assert metric.compute() == pytest.approx(1 - roc_auc_score(y_N, **kind), abs=1e-12)


def test_the_order_is_numpy_s_global_shuffle_with_seed_13() -> None:
    state = np.random.get_state()
    np.random.seed(13)
    expected = np.arange(700)
    np.random.shuffle(expected)
    np.random.set_state(state)
    np.testing.assert_array_equal(tabpfn_order(700), expected)


def test_a_class_that_never_fits_both_halves_is_reported() -> None:
    y_N = np.zeros(100, dtype=np.int64)
    y_N[7] = 1
    with pytest.raises(DataError, match=r"split 2: no window of 100 rows has all 2 classes"):
        tabpfn_split(y_N, 2)
    with pytest.raises(DataError, match="protocol_split orca"):
        orca_split(y_N, 1)


@pytest.mark.parametrize("count", [5, 17, 284, 1000])
def test_validation_is_stratified_and_disjoint(count: int) -> None:
    y_N = np.random.default_rng(1).integers(0, 4, 2 * count)
    rows = np.random.default_rng(2).permutation(2 * count)[:count]
    train, validation = hold_out(rows, y_N, 1)
    assert sorted([*train, *validation]) == sorted(rows)
    for label in np.unique(y_N[rows]):
        whole, part = np.sum(y_N[rows] == label), np.sum(y_N[validation] == label)
        assert abs(part - whole / 5) <= 1
    if count >= 284:
        assert len(validation) == pytest.approx(count / 5, abs=1)


def test_the_seed_picks_the_split() -> None:
    tied, fixed = make(benchmark.Wdbc), make(benchmark.Wdbc, split=3)
    for seed in (2, 7):
        assert torch.equal(rows_of(tied.load(seed).test)[0], rows_of(fixed.load(0).test)[0])
    assert not torch.equal(rows_of(tied.load(0).test)[0], rows_of(tied.load(1).test)[0])


def test_training_rows_are_standardised_and_categories_are_codes() -> None:
    x, _ = rows_of(make(benchmark.Wdbc).load(0).train)
    torch.testing.assert_close(x.mean(0), torch.zeros(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(30), atol=1e-5, rtol=0)
    x, y = rows_of(make(benchmark.TicTacToe).load(0).train)
    assert set(x.unique().tolist()) == {0.0, 1.0, 2.0}
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)


def test_held_out_rows_do_not_change_the_training_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    before = make(benchmark.Wdbc).load(0)
    table = tables.wdbc()
    _, validation, test = task._parts(table, make(benchmark.Wdbc).config, 0)
    table.x_NF[np.concatenate([validation, test])] += 1e6
    monkeypatch.setattr(benchmark.Wdbc, "table", classmethod(lambda *_: table))
    after = make(benchmark.Wdbc).load(0)
    assert torch.equal(rows_of(before.train)[0], rows_of(after.train)[0])
    assert not torch.equal(rows_of(before.test)[0], rows_of(after.test)[0])
    assert before.checksum != after.checksum


def test_orca_s_split_is_90_to_10_and_says_what_is_ours() -> None:
    data = make(benchmark.Car, protocol_split="orca").load(0)
    assert len(data.test) == 173  # type: ignore[arg-type]
    assert any("published 90/10 split had no seed" in note for note in data.notes)


ARFF = """@relation pets
@attribute 'backbone weight' numeric
@attribute colour {black,'dark red'}
@attribute class {cat,dog}
@data
"""


def pet_rows(count: int) -> list[str]:
    colours = ["black", "'dark red'"]
    return [f"{i / 2},{colours[i // 2 % 2]},{['cat', 'dog'][i % 2]}" for i in range(count)]


def test_arff_and_csv_give_the_same_table(tmp_path: Path) -> None:
    rows = pet_rows(40)
    rows[3] = "?,?,dog"
    (tmp_path / "pets.arff").write_text(ARFF + "\n".join(rows) + "\n")
    header = "backbone weight,colour,class\n"
    (tmp_path / "pets.csv").write_text(header + "\n".join(rows).replace("'", "") + "\n")
    read = [make(task.OpenML, path=tmp_path / f"pets.{end}") for end in ("arff", "csv")]
    arff, csv = (table_of(one) for one in read)
    np.testing.assert_array_equal(arff.x_NF, csv.x_NF)
    np.testing.assert_array_equal(arff.y_N, csv.y_N)
    assert arff.levels == (0, 2)
    assert arff.classes == ("cat", "dog")
    assert np.isnan(arff.x_NF[3]).all()
    assert any("2 missing" in note for note in read[0].load(0).notes)
    # How a text is written is guessed, and so it is said.
    assert any("pets.csv: utf-8, separated by ','" in note for note in read[1].load(0).notes)


def test_codes_can_be_named_categories(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("label,a,b\n" + "\n".join(f"{i % 2},{i % 3 * 10},{i}" for i in range(30)))
    one = make(task.OpenML, path=path, target="label", categories=("a",))
    assert table_of(one).levels == (3, 0)


@pytest.mark.parametrize(
    ("name", "text", "settings", "message"),
    [
        ("pet.csv", None, {}, r"pet\.csv: no such file; did you mean 'pets\.csv'\?"),
        ("pets.txt", "a", {}, r"pets\.txt: expected \.npz, \.csv or \.arff"),
        ("bad.arff", "@nothing", {}, r"bad\.arff: cannot be read as ARFF"),
        ("long.arff", ARFF + "1,black,cat\n% a note\n2,black,dog,7\n", {}, r"line 8 has 4 fields"),
        ("gap.arff", ARFF + "1,black,cat\n2,black,?\n", {}, r"'class' .* missing in 1 rows"),
        ("none.csv", "", {}, r"none\.csv: the file is empty"),
        ("head.csv", "a,b\n", {}, r"head\.csv: needs a row and two columns"),
        (
            "t.csv",
            "label,b\n1,2\n",
            {"target": "lable"},
            r"no column 'lable'; did you mean 'label'\?",
        ),
        (
            "y.csv",
            "a,b\n1,x\n2,\n3,y\n",
            {},
            r"'b' \(the label\) is missing in 1 rows; first: row 1",
        ),
        ("r.csv", "a,b\n1,.5\n2,.7\n3,.9\n", {}, r"'b' \(the label\) has 3 distinct values"),
        (
            "i.csv",
            "a,b\n1,x\ninf,y\n2,x\n3,y\n",
            {},
            r"'a' must hold finite numbers; row 1 has 'inf'",
        ),
        ("i.arff", ARFF + "1,black,cat\n1e400,black,dog\n" * 2, {}, r"line 7: .* has '1e400'"),
        ("p.npz", "junk", {}, r"p\.npz: cannot be read as \.npz"),
    ],
)
def test_files_that_cannot_be_read(
    tmp_path: Path, name: str, text: str | None, settings: dict[str, Any], message: str
) -> None:
    (tmp_path / "pets.csv").write_text("a,b\n1,2\n")
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        make(task.OpenML, path=tmp_path / name, **settings).load(0)


def test_a_pack_says_which_tables_it_has(tmp_path: Path) -> None:
    meta = json.dumps([{"did": 5, "name": "five", "cat": [], "attributes": ["a"]}])
    np.savez(tmp_path / "pack.npz", meta=meta)
    for did in (None, 6):
        with pytest.raises(DataError, match=r"the pack has 5 \(five\)"):
            make(task.OpenML, path=tmp_path / "pack.npz", did=did).load(0)


ENTRY = {"did": 5, "name": "five", "cat": [0], "attributes": ["a", "b"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meta": "{bad"}, "not a pack of OpenML tables"),
        ({"meta": "[1, 2]"}, "not a pack of OpenML tables"),
        ({"meta": json.dumps([{"did": 5}])}, "not a pack of OpenML tables"),
        ({"meta": np.zeros(3)}, "no single value 'meta'"),
        ({"meta": json.dumps([ENTRY | {"cat": [7]}])}, "table 5 has no columns 7"),
        ({"meta": json.dumps([ENTRY | {"attributes": ["a"]}])}, "and 1 attributes do not match"),
        ({"5_X": np.full((8, 2), "a")}, r"5_X \(8, 2\) text, .*do not match"),
        ({"5_X": np.full((8, 2), np.inf)}, "row 0 has an infinite value or no label"),
        ({"5_y": np.array([0, 1, np.nan, 1, 0, 1, 0, 1])}, "row 2 has an infinite value or no lab"),
    ],
)
def test_a_pack_that_cannot_be_right(tmp_path: Path, change: Any, message: str) -> None:
    right = {"meta": json.dumps([ENTRY]), "5_X": np.arange(16.0).reshape(8, 2), "5_y": [0, 1] * 4}
    np.savez_compressed(tmp_path / "p.npz", **right | change)
    with pytest.raises(DataError, match=message):
        make(task.OpenML, path=tmp_path / "p.npz", did=5).load(0)


def test_a_damaged_pack(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    x_NF = np.random.default_rng(0).random((500, 2))
    np.savez_compressed(path, meta=json.dumps([ENTRY]), **{"5_X": x_NF, "5_y": np.arange(500) % 2})
    content = path.read_bytes()
    for damaged in (content[:3000], content[:2000] + b"???" + content[2003:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"p\.npz.* cannot be read"):
            make(task.OpenML, path=path, did=5).load(0)


def test_one_table_of_a_pack_identifies_the_data(tmp_path: Path) -> None:
    x_NF, y_N = np.arange(24.0).reshape(8, 3) + 1.7e9, np.arange(8) % 2
    metas = [{"did": n, "name": "t", "cat": [], "attributes": ["a", "b", "c"]} for n in (1, 2)]

    def pack(name: str, first: Any, second: Any) -> tuple[Any, str]:
        arrays = {"1_X": first, "1_y": y_N, "2_X": second, "2_y": y_N}
        np.savez(tmp_path / name, meta=json.dumps(metas), **arrays)
        one = make(task.OpenML, path=tmp_path / name, did=1)
        return one.contents(one.config, Store()), one.load(0).checksum

    first = pack("a.npz", x_NF, x_NF)
    assert pack("b.npz", x_NF, x_NF + 1) == first
    # float32 does not tell these numbers apart.
    changed = pack("a.npz", x_NF[::-1], x_NF)
    assert changed[0] != first[0]
    assert changed[1] != first[1]
