"""The 30 tables of OpenML-CC18: facts, copies and recipes agree with what is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xmodal import plugins
from xmodal.data.datasets import Preparation
from xmodal.data.store import Store
from xmodal.interfaces import Context
from xmodal.recipe.compose import compose, validate
from xmodal_openml import copies
from xmodal_openml.benchmark import BenchmarkTable, CreditG
from xmodal_openml.catalogue import TABLES, Published

from ...paths import DATA, ROOT

PACK = DATA / "cc18_30.npz"
needs_pack = pytest.mark.skipif(not PACK.is_file(), reason=f"no published tables at {PACK}")
SPLITS = ("tabpfn", "orca")


def task(name: str) -> type[BenchmarkTable]:
    found: Any = plugins.registry().load("task", f"openml/{name}")
    return found


@needs_pack
def test_without_data_the_facts_are_those_of_the_table(tmp_path: Path) -> None:
    for name, published in TABLES.items():
        cls = task(name)
        assert cls.published is published
        for split in SPLITS:
            bare, full = (cls.Config(protocol_split=split, path=p) for p in (None, PACK))
            assert cls.describe(bare, Store(tmp_path)) == cls.describe(full, Store(tmp_path))


@needs_pack
def test_the_pack_holds_the_published_tables() -> None:
    with np.load(PACK) as pack:
        metas = {m["name"]: m for m in json.loads(str(pack["meta"]))}
        assert metas.keys() == TABLES.keys()
        for name, table in TABLES.items():
            x_NF, y_N = pack[f"{table.did}_X"], pack[f"{table.did}_y"]
            assert metas[name]["did"] == table.did
            assert x_NF.shape == (table.rows, table.columns)
            assert tuple(np.bincount(y_N)) == table.counts
            assert np.isnan(x_NF).sum() == table.missing
            assert sorted(table.levels) == metas[name]["cat"]
            # No note: the numbers have the published digest.
            assert not copies.read(PACK, table).notes


@needs_pack
def test_a_prepared_table_is_the_pack_s(tmp_path: Path) -> None:
    store = Store(tmp_path)
    config = CreditG.Config()
    assert CreditG.state(config, store) == "fetchable"
    wanted = Preparation(tmp_path, {PACK.name: PACK})
    store.make_dataset(CreditG.card(config), lambda at: CreditG.prepare(config, wanted, at))
    assert CreditG.state(config, store) == "ready"
    context = Context.outside(store)
    ready, direct = (CreditG(CreditG.Config(path=p), context).load(2) for p in (None, DATA))
    assert ready.checksum == direct.checksum
    for part in ("train", "validation", "test"):
        for a, b in zip(getattr(ready, part).tensors, getattr(direct, part).tensors, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())


def documented() -> dict[str, list[str]]:
    """The rows of the table of training settings in the documentation, by task."""
    text = (ROOT / "docs" / "tasks" / "openml.md").read_text()
    rows = text.split("## Training settings")[1].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if "| `" in row]
    return {row[0].strip("`"): row[1:] for row in cells if len(row) == 9}


def number(text: str) -> float:
    return 0.0 if text == "–" else float(text)


def test_recipes_have_the_documented_settings() -> None:
    rows = documented()
    assert rows.keys() == TABLES.keys()
    registry = plugins.registry()
    for name, row in rows.items():
        recipe = validate(compose(["methods/nft", f"tasks/{name}"], registry), registry)
        assert recipe.task.name == f"openml/{name}"
        stage: Any = recipe.stages[-1].config
        kind, *momentum = row[2].split()
        assert [stage.epochs, stage.batch.size, stage.schedule.warmup_epochs] == [
            int(row[0]), int(row[1]), int(row[7])
        ]  # fmt: skip
        assert stage.optimizer.use == kind.lower()
        assert momentum == ([f"{stage.optimizer.momentum}"] if momentum else [])
        assert [stage.optimizer.lr, stage.optimizer.weight_decay] == [*map(number, row[3:5])]
        assert (stage.clip or 0.0, recipe.backbone.config.dropout) == (*map(number, row[5:7]),)


# --- OpenML's files -------------------------------------------------------------------------------

SMALL = Published(7, "small", 3, (3, 4), "", missing=2, levels={1: 2, 2: 2}, ignored=("an id",))
FILE = r"""% a comment
@RELATION 'what it is'

@ATTRIBUTE 'an id' string
@attribute "the weight" REAL
@attribute colour {'dark red', never, "it's \"black\"", ?}
@attribute Class {pos, 'a,b'}   % the label in the middle
@attribute shape { round ,flat}
@DATA
x1, 0.1, 'dark red', pos, round
'x,2', 2e-3 ,"it's \"black\"",'a,b',?
% another
x3,?,'dark red','a,b',flat
x4,4,'dark red','a,b',flat
x5,5,'dark red',pos,round

x6,6,'it\'s "black"','a,b',round
x7,-7,'dark red',pos,round
"""
ABOUT = {
    "id": "7",
    "default_target_attribute": "Class",
    "row_id_attribute": None,
    "ignore_attribute": ["an id"],
}


def small(folder: Path, text: str = FILE, about: Any = ABOUT, end: str = ".arff") -> Path:
    (folder / "small.json").write_text(json.dumps({"data_set_description": about}))
    path = folder / f"small{end}"
    path.write_text(text)
    return path


def test_an_arff_file_is_read_as_declared(tmp_path: Path) -> None:
    table = copies.read(small(tmp_path), SMALL)
    order = np.arange(7)
    np.random.RandomState(13).shuffle(order)
    nan, weight = np.nan, np.float32(0.1)
    raw = np.array(
        [
            [weight, 0, 0],
            [np.float32(2e-3), 1, nan],
            [nan, 0, 1],
            [4, 0, 1],
            [5, 0, 0],
            [6, 1, 0],
            [-7, 0, 0],
        ]
    )
    np.testing.assert_array_equal(table.x_NF, raw[order])
    np.testing.assert_array_equal(table.y_N, np.array([0, 1, 1, 1, 0, 1, 0])[order])
    assert table.columns == ("the weight", "colour", "shape")
    assert table.level_names() == ((), ("dark red", 'it\'s "black"'), ("round", "flat"))
    assert (table.classes, table.label) == (("pos", "a,b"), "Class")
    assert any("values differ from TabPFN's file" in note for note in table.notes)
