"""``xmodal predict`` and ``xmodal export``: files in, files out, and what goes wrong on the way."""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

import xmodal as package
from xmodal import api
from xmodal.data import fetching
from xmodal.data.store import Store
from xmodal.inference.model import TrainedModel

from ..data.array_files import UNEQUAL, Y, cells, h5, mat5

Call = Callable[..., Any]
SERIES = [sample + 0.5 * row for row, sample in enumerate(UNEQUAL)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, ``table`` (classes) and ``field`` (dense), and inputs for them."""
    root = tmp_path_factory.mktemp("made")
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"a": random.normal(size=60), "b": random.choice(["u", "v"], 60)})
    frame["kind"] = np.where(frame["a"] > 0, "plus", "minus")
    frame.to_csv(root / "table.csv", index=False)
    frame.drop(columns="kind").to_parquet(root / "table.parquet")
    x = random.normal(size=(40, 16, 16))
    np.savez(root / "field.npz", x=x, y=x * 2 + 1)
    for name in ("table.csv", "field.npz"):
        task = f"task={{use: arrays, path: {root / name}}}"
        api.run(
            "methods/nft",
            overrides=[task],
            scale="smoke",
            directory=root / Path(name).stem,
            report=False,
        )
    return root


@pytest.fixture
def table(made: Path) -> TrainedModel:
    """The loaded run on a table."""
    return package.load(made / "table")


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_on_stdout_and_the_score_beside_it(
    xmodal: Call, made: Path, table: TrainedModel
) -> None:
    done = xmodal("predict", made / "table", made / "table.csv", "--batch", 7)
    assert done.code == 0, done.err
    frame = pd.read_csv(made / "table.csv")
    rows = _rows(done.out)
    assert list(rows[0]) == ["prediction", "p(minus)", "p(plus)"]
    assert [row["prediction"] for row in rows] == table.predict(frame, names=True).tolist()
    given = [[float(row["p(minus)"]), float(row["p(plus)"])] for row in rows]
    assert np.allclose(given, table.predict_proba(frame), atol=1e-6)
    score = table.score(frame, frame["kind"])
    assert f"samples 60, error-rate {score:.4g}" in done.err


def test_every_format_gives_the_same(xmodal: Call, made: Path, table: TrainedModel) -> None:
    x = table.raw.encode(pd.read_csv(made / "table.csv"))
    np.save("x.npy", x)
    np.savez("stored.npz", x=x)
    np.savez_compressed("packed.npz", x=np.asfortranarray(x))
    inputs = [made / "table.csv", made / "table.parquet", "x.npy", "stored.npz", "packed.npz"]
    found = []
    for number, data in enumerate(inputs):
        done = xmodal("predict", made / "table", data, "--out", f"{number}.npz")
        assert done.code == 0, done.err
        assert "predictions" in done.out
        found.append(dict(np.load(f"{number}.npz")))
    assert found[0]["classes"].tolist() == ["minus", "plus"]
    assert np.array_equal(found[0]["prediction"], table.predict(x))
    for other in found[1:]:
        assert all(np.array_equal(other[key], value) for key, value in found[0].items())


def test_fields_are_streamed_into_a_file(xmodal: Call, made: Path) -> None:
    data = np.load(made / "field.npz")
    model = package.load(made / "field")
    for name in ("out.npz", "out.npy"):
        done = xmodal("predict", made / "field", made / "field.npz", "--out", name, "--json")
        assert done.code == 0, done.err
        said = json.loads(done.out)
        assert said["samples"] == 40
        assert said["metric"]["name"] == "relative-l2"
        assert said["metric"]["value"] == pytest.approx(model.score(data["x"], data["y"]))
        found = np.load(name)
        found = found["prediction"] if name.endswith("z") else found
        assert np.array_equal(found, model.predict(data["x"]))


def test_samples_that_were_trained_on_are_counted(xmodal: Call, made: Path) -> None:
    """42 of 60 rows and 28 of 40 fields were trained on, whatever file they come back in."""
    frame = pd.read_csv(made / "table.csv")
    frame.iloc[::-1].to_parquet("turned.parquet")
    for data in (made / "table.csv", "turned.parquet"):
        done = xmodal("predict", made / "table", data, "--batch", 7)
        assert "note: 42 of 60 samples were trained on" in done.err
    frame.assign(a=frame["a"] + 1e-6).to_csv("others.csv", index=False)
    done = xmodal("predict", made / "table", "others.csv", "--json")
    assert json.loads(done.out)["trained_on"] == 0
    assert "trained on" not in done.err
    x = np.load(made / "field.npz")["x"]
    np.save("x.npy", np.asfortranarray(x.astype(">f8")))
    done = xmodal("predict", made / "field", "x.npy", "--out", "p.npz", "--json")
    assert json.loads(done.out)["trained_on"] == 28


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on ``series.mat``: sequences of 3 to 7 values called ``sig``, names called ``cls``."""
    root = tmp_path_factory.mktemp("series")
    path = mat5(root, sig=cells([s[None] for s in SERIES]), cls=cells([f"c{k}" for k in Y]))
    task = f"task={{use: arrays, path: {path}, x: sig, y: cls, lengths: pad}}"
    api.run("methods/nft", overrides=[task], scale="smoke", directory=root / "run", report=False)
    return root


def test_files_of_arrays_are_read_as_in_training(xmodal: Call, series: Path) -> None:
    """The names of training first, then usual ones, then those that the user says."""
    here = Path.cwd()
    for name in ("folder", "folder/x"):
        Path(name).mkdir()
    for row, sample in enumerate(SERIES):
        np.save(f"folder/x/s{row}.npy", sample)
    np.save("folder/labels.npy", np.array([f"c{k}" for k in Y]))
    wide = np.full((24, 7), np.nan)
    for row, sample in enumerate(SERIES):
        wide[row, : len(sample)] = sample
    np.savez("wide.npz", data=wide, other=Y)
    h5(
        here,
        lambda f: (
            f.create_dataset("s", data=np.array(SERIES, object), dtype=h5py.vlen_dtype("f4")),
            f.create_dataset("sig", data=np.zeros(24)),
        ),
    )
    found = {}
    for data, more in (
        (series / "d.mat", ()),
        ("folder", ()),
        ("wide.npz", ("--y", "other")),
        ("d.h5", ("--x", "s")),
    ):
        done = xmodal("predict", series / "run", data, "--json", *more)
        assert done.code == 0, done.err
        assert "16 of 24 samples were trained on" in done.err
        found[str(data)] = json.loads(done.out)
    first = found.pop(str(series / "d.mat"))
    assert all(other["predictions"] == first["predictions"] for other in found.values())
    assert found["folder"]["metric"] == found["wide.npz"]["metric"] == first["metric"]
    assert found["d.h5"]["metric"] is None
    assert (
        "wide.npz: samples 'data' (24, 7) float64, labels 'other' (24,) int64"
        in xmodal("predict", series / "run", "wide.npz", "--y", "other").err
    )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((4, 30))}, "the first 7 of up to 30 values are used"),
        ({"x": np.ones((4, 2, 7))}, "'x' has samples of 2 axes; expected [n, 7]"),
        ({"x": np.array([[1, np.nan, 1, 1]])}, "x: row 0 holds NaN"),
        ({"q": np.ones((4, 7))}, "no array 'x'; it has 'q' (4, 7) float64 (set --x)"),
        ({"x": np.ones((4, 7)), "y": np.array([b"\xff"] * 4)}, "'y' row 0: b'\\xff' is not UTF-8"),
        ({"x": np.ones((4, 7)) * 1j}, "'x' holds complex numbers"),
    ],
)
def test_lengths_and_names_that_do_not_fit(
    xmodal: Call, series: Path, arrays: dict[str, Any], message: str
) -> None:
    np.savez("new.npz", **arrays)
    done = xmodal("predict", series / "run", "new.npz")
    assert message in done.err
    assert done.code == (0 if "are used" in message else 4)


def test_json_holds_the_predictions(xmodal: Call, made: Path, table: TrainedModel) -> None:
    done = xmodal("predict", made / "table", made / "table.parquet", "--json")
    said = json.loads(done.out)
    assert said["metric"] is None
    assert (
        said["predictions"] == table.predict(pd.read_csv(made / "table.csv"), names=True).tolist()
    )


def test_unseen_categories_are_noted_once(xmodal: Call, made: Path) -> None:
    frame = pd.read_csv(made / "table.csv").assign(b="w")
    frame.to_csv("new.csv", index=False)
    done = xmodal("predict", made / "table", "new.csv", "--batch", 8)
    assert done.code == 0
    assert done.err.count("column 'b': what training never saw counts as missing") == 1


def test_an_empty_column_of_labels_is_no_score(xmodal: Call, made: Path) -> None:
    frame = pd.read_csv(made / "table.csv").assign(kind=None)
    frame.to_csv("new.csv", index=False)
    done = xmodal("predict", made / "table", "new.csv", "--batch", 20, "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert (said["metric"], said["samples"]) == (None, 60)
    assert done.err.count("y has no labels, so the predictions are not scored") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("table", "pages.parquet"), 4, "pages.parquet: cannot be read as parquet"),
        (("table", "gap.csv"), 4, "gap.csv: y: row 2 has no label"),
        (("table", "gap.csv", "--batch", 2), 4, "y: row 2 has no label, but other rows have one"),
        (("field", "wide.csv", "--out", "w.npz"), 4, "expected 256 columns and training had no"),
        (("table", "nothing.npz"), 4, "nothing.npz: no such file"),
        (("table", "x.dat"), 4, "cannot read '.dat'"),
        (("table", "x.npz"), 4, r"expected [n, 2] (columns a, b), got [5, 3]"),
        (("table", "x.npy"), 4, r"expected [n, 2] (columns a, b), got [5, 3]"),
        (
            ("table", "keys.npz"),
            4,
            "no array 'x'; did you mean 'xs'?; it has 'xs' (5, 2) float64 (set --x)",
        ),
        (("table", "uneven.npz"), 4, "x has shape [5, 2], but y [4]"),
        (("table", "objects.npz"), 4, "'x' holds Python objects (pickle), which are never read"),
        (("table", "cut.npz"), 4, "cannot be read as .npz"),
        (("table", "text.npy"), 4, "cannot be read as .npy"),
        (("table", "one.csv"), 4, "one.csv: no column 'b'; expected a, b; got a"),
        (("table", "one.parquet"), 4, "one.parquet: no column 'b'; expected a, b; got a"),
        (("table", "long.csv"), 4, "long.csv: line 3 has 3 fields, but the header 2"),
        (("table", "a.csv", "--table", "sep=;"), 2, "--table sep: unknown setting"),
        (("table", "nameless.csv"), 4, "no column 'a', 'b'; does the file lack a line of names?"),
        (("table", "void.csv"), 4, "void.csv: the file is empty"),
        (("table", "words.csv"), 4, "column 'a' must hold numbers; row 1 has 'tall'"),
        (("table", "strange.csv"), 4, "y: row 0 is 'zero'; expected one of minus, plus"),
        (("table", "empty.csv"), 4, "empty.csv: no samples; expected [n, 2]"),
        (("field", "gap.npy"), 4, "gap.npy: x: row 70 holds NaN or an infinite value"),
        (
            ("field", "gap.npy"),
            2,
            "which do not fit into lines of text; name a file",
        ),
        (("field", "gap.npy", "--out", "p.csv"), 2, "write .npz or .npy"),
        (("table", "x.npy", "--out", "p.txt"), 2, "cannot write '.txt'"),
        (("table", "x.npy", "--out", "no/p.npz"), 2, "there is no folder no"),
        (("table", "x.npy", "--out", "x.npy"), 2, "x.npy exists; --force replaces it"),
        (("tabel", "x.npy"), 2, "no run 'tabel'"),
    ],
)
def test_wrong_inputs_give_one_message_and_leave_nothing(
    xmodal: Call, made: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    _wrong_files()
    before = sorted(Path().iterdir())
    run, data, *more = arguments
    where = made / run if (made / run).exists() else run
    if run == "field" and code == 4:
        more = ["--out", "p.npz"]
    done = xmodal("predict", where, data, *more)
    assert (done.code, message in done.err) == (code, True), done.err
    assert done.err.count("error:") == 1
    assert "Traceback" not in done.err
    assert sorted(Path().iterdir()) == before


def _wrong_files() -> None:
    Path("x.dat").write_text("1 2")
    Path("text.npy").write_text("no array")
    np.savez("x.npz", x=np.zeros((5, 3)))
    np.save("x.npy", np.zeros((5, 3)))
    np.savez("keys.npz", xs=np.zeros((5, 2)))
    np.savez("uneven.npz", x=np.zeros((5, 2)), y=np.zeros(4))
    np.savez("objects.npz", x=np.array([[1], [1, 2]], dtype=object))
    Path("cut.npz").write_bytes(Path("x.npz").read_bytes()[:100])
    Path("one.csv").write_text("a\n1\n")
    pd.DataFrame({"a": [1.0]}).to_parquet("one.parquet")
    Path("long.csv").write_text("a,b\n1,u\n1,u,7\n")
    Path("nameless.csv").write_text("1.5,u\n2.5,v\n")
    Path("void.csv").touch()
    Path("words.csv").write_text("a,b\n1,u\ntall,v\n")
    Path("strange.csv").write_text("a,b,kind\n1,u,zero\n")
    Path("empty.csv").write_text("a,b,kind\n")
    Path("gap.csv").write_text("a,b,kind\n1,u,plus\n1,u,plus\n1,u,\n")
    Path("wide.csv").write_text(",".join(f"c{k}" for k in range(258)) + "\n" + "1," * 257 + "1\n")
    pd.DataFrame({"a": np.arange(60.0), "b": "u"}).to_parquet("pages.parquet")
    content = Path("pages.parquet").read_bytes()
    Path("pages.parquet").write_bytes(content[:4] + b"\xff" * 40 + content[44:])
    x = np.zeros((80, 16, 16))
    x[70, 0, 0] = np.nan
    np.save("gap.npy", x)


def test_force_replaces_and_a_damaged_input_keeps_what_was_there(xmodal: Call, made: Path) -> None:
    Path("out.npz").write_text("mine")
    with zipfile.ZipFile(made / "field.npz") as pack, zipfile.ZipFile("bad.npz", "w") as bad:
        bad.writestr("x.npy", pack.read("x.npy")[:-8])
    done = xmodal("predict", made / "field", "bad.npz", "--out", "out.npz", "--force")
    assert done.code == 4
    assert "bad.npz: 'x' is damaged or cut off: by its header, (40, 16, 16)" in done.err
    assert Path("out.npz").read_text() == "mine"
    done = xmodal("predict", made / "field", made / "field.npz", "--out", "out.npz", "--force")
    assert done.code == 0
    assert np.load("out.npz")["prediction"].shape == (40, 16, 16)


def test_a_moved_run_without_its_data_still_predicts(
    xmodal: Call, made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "table", tmp_path / "moved")
    frame = pd.read_csv(made / "table.csv")
    hidden = made / "hidden.csv"
    (made / "table.csv").rename(hidden)
    try:
        frame.to_csv("new.csv", index=False)
        assert xmodal("predict", "moved", "new.csv").code == 0
    finally:
        hidden.rename(made / "table.csv")


@pytest.mark.slow
def test_export_says_what_it_wrote_and_how_far_it_is(xmodal: Call, made: Path) -> None:
    done = xmodal("export", made / "table", "--to", "hf", "--out", "model", "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert {"README.md", "xmodal.json", "modeling.py", "embed.pt2"} <= set(said["files"])
    assert said["difference"] < 1e-5
    assert (said["samples"], said["out"]) == (4, "model")


@pytest.mark.slow
def test_neither_predicting_nor_exporting_fetches_anything(
    xmodal: Call, made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever the policy says, without a network, and with an empty cache."""

    def off(*arguments: object, **options: object) -> None:
        raise AssertionError("asked the network")

    def started(store: Store, root: Path | None = None) -> None:
        reasons.append(fetching.why_not())
        start(store, root)

    reasons: list[str] = []
    start = Store.__init__
    monkeypatch.setenv("XMODAL_FETCH", "always")
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("socket.socket.connect", off)
    monkeypatch.setattr("socket.getaddrinfo", off)
    monkeypatch.setattr("subprocess.Popen", off)
    monkeypatch.setattr(Store, "__init__", started)
    assert xmodal("predict", made / "table", made / "table.csv").code == 0
    done = xmodal("export", made / "field", "--to", "onnx", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert len(reasons) >= 3
    assert all("used as it is" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--to", "onxx", "--out", "m"), 2, "unknown exporter 'onxx'; did you mean 'onnx'?"),
        (("--to", "hf", "--out", "."), 2, "exists and is no export"),
        (("--to", "hf", "--out", "m", "--set", "tolerance"), 2, "expected key=value"),
        (("--to", "hf", "--out", "m", "--set", "tolerance=-1"), 2, "tolerance"),
        (("--to", "hf", "--out", "m", "--set", "tolerence=1"), 2, "did you mean 'tolerance'"),
    ],
)
def test_wrong_exports_give_one_message_and_leave_nothing(
    xmodal: Call, made: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    Path("mine.txt").write_text("mine")
    done = xmodal("export", made / "table", *arguments)
    assert (done.code, message in done.err) == (code, True), done.err
    assert "Traceback" not in done.err
    assert [path.name for path in Path().iterdir()] == ["mine.txt"]


def test_recordings_are_cut_as_in_training_and_predicted_as_a_whole(
    xmodal: Call, tmp_path: Path
) -> None:
    """A model of windows: one prediction a recording, the mean over its windows."""
    path = mat5(tmp_path, x=cells([s[None] for s in SERIES]), y=cells([f"c{k}" for k in Y]))
    settings = "lengths: window, length: 3, stride: 2"
    task = f"task={{use: arrays, path: {path}, {settings}}}"
    run = tmp_path / "run"
    api.run("methods/nft", overrides=[task], scale="smoke", directory=run, report=False)
    done = xmodal("predict", run, path, "--json", "--batch", 5)
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert (said["samples"], said["metric"]["name"]) == (24, "grouped-error-rate")
    assert "cut into windows of 3, every 2" in done.err
    model = package.load(run)
    by_hand = []
    for one in SERIES:
        windows = np.stack([one[i : i + 3] for i in range(0, len(one) - 2, 2)])
        by_hand.append(model.outputs(windows).mean(dim=0))
    expected = model.decide(torch.stack(by_hand), names=True).tolist()
    assert said["predictions"] == expected
    assert model.predict(SERIES, names=True).tolist() == expected
    wrong = np.mean([p != f"c{k}" for p, k in zip(expected, Y, strict=True)])
    assert said["metric"]["value"] == pytest.approx(wrong)
    trained = model.run.read("manifest.json")["facts"]["task"]["samples"]["train"]
    assert 0 < said["trained_on"] < 24
    assert trained > said["trained_on"]
    np.savez("short.npz", x=np.ones((2, 2)))
    short = xmodal("predict", run, "short.npz")
    assert short.code == 4
    assert "row 0 has shape [2]; expected a recording like [3], of at least 3 values" in short.err
