"""The 30 tables of OpenML-CC18: facts, copies and recipes agree with what is published."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xmodal import plugins
from xmodal.data import download
from xmodal.data.datasets import Preparation
from xmodal.data.obtain import DataOrder
from xmodal.data.store import Store
from xmodal.engine.build import Builder
from xmodal.engine.loop import Training
from xmodal.engine.plan import compose_plan
from xmodal.engine.step import StepRecord
from xmodal.errors import DataError
from xmodal.interfaces import Context
from xmodal.recipe.compose import compose, validate
from xmodal_openml import copies
from xmodal_openml.benchmark import BenchmarkTable, CreditG
from xmodal_openml.catalogue import TABLES, PublishedTable

from ...paths import DATA, ROOT
from . import openml_files

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
        for split in SPLITS if published.did == 1464 else SPLITS[:1]:
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

SMALL = PublishedTable(
    7, "small", 3, (3, 4), "", missing=2, levels={1: 2, 2: 2}, ignored=("an id",)
)
FILE = r"""% a comment
@RELATION 'what it is'

@ATTRIBUTE 'an id' string
@attribute "the weight" REAL
@attribute colour {'dark red', never, "it's \"black\"", ?}
@attribute Class {pos, 'a,b'}   % the label in the middle, {so}
@attribute shape { round ,'}%',flat}
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


@needs_pack
@pytest.mark.parametrize("name", ["cylinder-bands", "MiceProtein", "dresses-sales", "cmc"])
def test_a_fetched_arff_file_gives_the_pack_s_table(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row order, category codes, missing values, ignored columns: all as in TabPFN's file."""
    true = TABLES[name]
    text = openml_files.as_arff(PACK, true.did, true.ignored)
    about = openml_files.description(true.ignored)
    with openml_files.served(tmp_path / "www", {"f": text, f"{name}.json": about}) as url:
        monkeypatch.setattr(copies, "_DOWNLOADS", url + "/f?{file}")
        monkeypatch.setattr(copies, "_DESCRIPTIONS", url + f"/{name}.json?{{did}}")

        class Table(BenchmarkTable):
            published = replace(true, file=1, md5=openml_files.md5(text))

        store = Store(tmp_path / "cache")
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / f"{name}.json").write_text(about)
        order = DataOrder(folder=tmp_path / "mine")
        folder, made = Table.obtain(Table.Config(), store, order)
    assert made
    fetched, packed = copies.opened(folder), copies.read(PACK, true)
    np.testing.assert_array_equal(fetched.x_NF, packed.x_NF)
    np.testing.assert_array_equal(fetched.y_N, packed.y_N)
    assert fetched.columns == packed.columns
    assert fetched.levels == packed.levels
    assert not fetched.notes
    assert np.load(folder / "x.npy", mmap_mode="r").dtype == np.float32
    # The pack knows categories by their codes, the file by their names, in the same order.
    for names, codes in zip(fetched.level_names(), packed.level_names(), strict=True):
        assert names == tuple(openml_files.level(int(code)) for code in codes)


@needs_pack
def test_where_no_pin_is_known_the_description_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_ = task("eucalyptus")
    assert task_.state(task_.Config(), Store(tmp_path)) == "fetchable"
    text = openml_files.as_arff(PACK, 188, ())
    files = {"e.arff": text}
    with openml_files.served(tmp_path / "www", files) as url:
        monkeypatch.setattr(copies, "_DESCRIPTIONS", url + "/{did}.json")
        monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
        described = tmp_path / "www" / "188.json"
        wrong = openml_files.description((), url=f"{url}/e.arff", md5_checksum="0" * 32)
        described.write_text(wrong)
        with pytest.raises(DataError, match=r"its MD5 is"):
            task_.obtain(task_.Config(), Store(tmp_path / "one"), DataOrder())
        md5 = openml_files.md5(text)
        described.write_text(openml_files.description((), url=f"{url}/e.arff", md5_checksum=md5))
        folder, _ = task_.obtain(task_.Config(), Store(tmp_path / "one"), DataOrder())
    np.testing.assert_array_equal(
        copies.opened(folder).x_NF, copies.read(PACK, TABLES["eucalyptus"]).x_NF
    )


@pytest.mark.network
@pytest.mark.long
@needs_pack
def test_weka_s_own_files_are_the_published_tables() -> None:
    """Debian's weka ships two of the tables as their author wrote them, levels and all."""
    examples = [f"usr/share/doc/weka/examples/{name}.arff" for name in ("credit-g", "diabetes")]
    try:
        folder = Store().debian_files("weka", examples)
    except DataError as error:
        pytest.skip(str(error).splitlines()[0])
    for example in examples:
        table = TABLES[Path(example).stem]
        found, packed = (copies.read(path, table) for path in (folder / example, PACK))
        assert not found.notes
        np.testing.assert_array_equal(found.x_NF, packed.x_NF)
        np.testing.assert_array_equal(found.y_N, packed.y_N)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("@DATA", "@DATUM"), r"small\.arff: cannot be read as ARFF: it has no @data line"),
        (("x3,", "{0 x3,"), "sparse rows"),
        (("x4,4,", "x4,4,5,"), r"line 14 has 6 fields, expected 5"),
        (("x6,6,'it", 'x6,6,"it'), r"line 17 has an unfinished quote"),
        (("x6,6,", "x6,six,"), r"line 17: 'the weight' has 'six', which is no finite number"),
        (("x6,6,", "x6,1e999,"), r"line 17: 'the weight' has '1e999', which is no finite"),
        (("x5,5,'dark red'", "x5,5,'dark'"), r"line 15: 'colour' has 'dark', .* not among its dec"),
        (("x5,5,'dark red',pos", "x5,5,'dark red',?"), r"line 15 has no label \('Class'\)"),
        (("'an id' string", "shape string"), "two attributes are named 'shape'"),
        (("'an id' string", "'an od' string"), r"no column 'an id'; did you mean 'an od'\?"),
        (('"the weight" REAL', "\"the weight\" date 'y'"), "'the weight' is date; a column is"),
        (("@attribute Class {pos, 'a,b'}", "@attribute Class string"), "is string, not nominal"),
        (
            ("x7,-7,'dark red',pos,round\n", ""),
            r"not OpenML 7 \(small\): rows of each class: \(2, ",
        ),
        (("x3,?,", "x3,3,"), r"missing cells: 1, expected 2"),
        ((FILE[FILE.index("x1") :], ""), "it has no rows"),
    ],
)
def test_arff_files_that_are_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert FILE.count(change[0]) == 1
    with pytest.raises(DataError, match=message):
        copies.read(small(tmp_path, FILE.replace(*change)), SMALL)


@pytest.mark.parametrize("about", [{"no": 1}, [], "x"])
def test_a_description_that_is_none(tmp_path: Path, about: Any) -> None:
    path = small(tmp_path)
    path.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"small\.json: not OpenML's description"):
        copies.read(path, SMALL)


def test_ignored_columns_may_be_named_in_one_text(tmp_path: Path) -> None:
    about = ABOUT | {"ignore_attribute": "shape, colour", "row_id_attribute": "an id"}
    described = json.dumps({"data_set_description": about})
    (tmp_path / "a.json").write_text(described)
    found = copies.described(tmp_path / "a.json")
    assert found.ignored == ("an id", "shape", "colour")
    assert found.target == "Class"


@needs_pack
def test_orca_leaves_out_the_redundant_column() -> None:
    cls = task("blood-transfusion-service-center")
    context = Context.outside(Store())
    whole, orca = (cls(cls.Config(path=PACK, protocol_split=s), context) for s in SPLITS)
    x_NF = whole.table(whole.config, whole.store).x_NF
    np.testing.assert_array_equal(x_NF[:, 2], 250 * x_NF[:, 1])
    data = orca.load(0)
    assert data.raw is not None
    assert data.raw.columns == ("V1", "V2", "V4")
    assert data.train[0][0].shape == (3,)


@pytest.mark.parametrize(("name", "samples"), [("cmc", 64), ("pc4", 512), ("car", 128)])
def test_orca_as_released_aligns_with_each_table_s_number_of_samples(
    name: str, samples: int
) -> None:
    registry = plugins.registry()
    layered = compose(["methods/orca-published", f"tasks/{name}"], registry)
    recipe = validate(layered, registry)
    align: Any = recipe.stages[0].config
    assert (align.epochs, align.samples) == (20, samples)
    loss: Any = recipe.task.config.loss.config
    assert loss.balanced == "batch"


@pytest.mark.long
@needs_pack
def test_every_table_trains_two_steps() -> None:
    registry = plugins.registry()
    for name in TABLES:
        overrides = [f"task.path={PACK}"]
        made = compose_plan(
            ["methods/pare", f"tasks/{name}"], registry, Store(), overrides, "smoke"
        )
        builder = Builder(made, Store(), lambda line: None)
        training = Training(builder.session(builder.data()))
        steps = itertools.islice((r for r in training.run() if isinstance(r, StepRecord)), 2)
        losses = [step.loss for step in steps]
        assert len(losses) == 2
        assert np.isfinite(losses).all()
