"""``xmodal analyse``, ``distance`` and ``sources rank``: files, pages, JSON, errors, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xmodal import api

from .. import forms

Cli = Callable[..., Any]
QUICK = ("--samples", 8, "--points", 3, "--grid", 3, "--landscape-samples", 2)
ENERGY = '''\
"""The energy distance, for tests."""
import torch
from xmodal import hookimpl
from xmodal.interfaces import Distance


@hookimpl
def xmodal_distances():
    return {"energy-of-a-test": f"{__name__}:Energy"}


class Energy(Distance):
    """2 E|x - y| - E|x - x'| - E|y - y'|."""

    def fit(self, source):
        self.x = source.x_ND

    def __call__(self, target):
        x, y = self.x, target.x_ND
        return (
            2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()
        )
'''


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs by method, and a plugin file with a distance."""
    root = tmp_path_factory.mktemp("runs")
    made = {}
    random = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = random.normal(size=(60, 46)) + y[:, None] * np.sin(np.arange(46))
    np.savez(root / "mine.npz", x=x.astype(np.float32), y=y)
    mine = [f"task={{use: arrays, path: {root / 'mine.npz'}}}"]
    for name, recipes, overrides in (
        ("pare", ("methods/pare", "tasks/darcy"), []),
        ("series", ("methods/pare", "backbones/vision"), mine),
        ("nft", ("methods/nft", "backbones/vision"), mine),
    ):
        outcome = api.run(*recipes, overrides=overrides, scale="smoke", root=root, name=name)
        made[name] = outcome.run.path
    recipes = ("tasks/darcy", "scales/smoke", "scales/smoke/darcy", "methods/baseline")
    made["baseline"] = api.run(*recipes, root=root, name="baseline", report=False).run.path
    made["plugin"] = root / "energy.py"
    made["plugin"].write_text(ENERGY)
    made["root"] = root
    return made


def _energy(finished: dict[str, Path]) -> tuple[object, ...]:
    return ("--plugin", finished["plugin"], "--distance", "energy-of-a-test")


@pytest.mark.long
@pytest.mark.parametrize("name", ["pare", "series"])
def test_analyse_draws_every_figure(xmodal: Cli, finished: dict[str, Path], name: str) -> None:
    done = xmodal("analyse", finished[name], *QUICK, *_energy(finished), "--json")
    assert done.code == 0, done.err
    (told,) = json.loads(done.out)
    # The source of Darcy flow is labelled pixel by pixel.
    assert len(told["not_drawn"]) == (name == "pare")
    figures = {"distance", "embeddings", "features", "landscape", "patches", "patches-by-k"}
    assert set(told["figures"]) == (figures if name == "series" else figures - {"features"})
    for files in told["figures"].values():
        assert {Path(file).suffix for file in files} == {".png", ".pdf", ".svg", ".json"}
        for file in map(Path, files):
            assert file.parent == finished[name] / "analysis"
            content = file.read_bytes()
            starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}
            if file.suffix in starts:
                assert content.startswith(starts[file.suffix])
            else:
                assert json.loads(content)["seed"] == 0
    numbers = json.loads((finished[name] / "analysis" / "distance.json").read_text())
    assert numbers["k"][0] == numbers["tokens"] > numbers["k"][1] > numbers["k"][2] == 0
    for space in ("embeddings", "features"):
        ends = numbers[space]
        # At k = 0 the intermediate modality is the target.
        assert ends["to_target"][-1] == pytest.approx(0, abs=1e-4)
        assert ends["to_source"][-1] == pytest.approx(ends["between"], rel=1e-4)
        assert ends["to_source"][0] < ends["between"]
    html = Path(told["page"]).read_text(encoding="utf-8")
    assert "http:" not in html
    assert "https:" not in html
    assert "<script" not in html
    assert html.count("<svg") >= 5
    assert "var(--series-1)" in html


@pytest.mark.long
def test_a_method_without_mixing_says_why(xmodal: Cli, finished: dict[str, Path]) -> None:
    done = xmodal("analyse", "nft", "--root", finished["root"], *QUICK, *_energy(finished))
    assert done.code == 0, done.err
    assert "Mixer 'none' has no count of replaced tokens" in done.err
    assert "the run kept no replaced tokens" in done.err
    numbers = json.loads((finished["nft"] / "analysis" / "distance.json").read_text())
    assert numbers["k"] == []
    assert numbers["embeddings"]["between"] > 0


@pytest.mark.slow
def test_a_method_without_source_or_training(
    xmodal: Cli, finished: dict[str, Path], tmp_path: Path
) -> None:
    done = xmodal(
        "analyse", finished["baseline"], *QUICK, *_energy(finished), "--output", tmp_path / "out"
    )
    assert done.code == 0, done.err
    assert "distance: the recipe has no source that this backbone can read" in done.err
    assert "landscape: this run trained no weight matrix" in done.err
    assert (tmp_path / "out" / "analysis.html").is_file()
    assert not (finished["baseline"] / "analysis").exists()


@pytest.mark.long
def test_several_runs_in_one_folder(xmodal: Cli, finished: dict[str, Path], tmp_path: Path) -> None:
    runs = finished["pare"], finished["nft"]
    done = xmodal("analyse", *runs, "--figures", "patches", "--output", tmp_path, "--json", *QUICK)
    assert done.code == 0, done.err
    pages = [Path(one["page"]) for one in json.loads(done.out)]
    assert [page.is_file() for page in pages] == [True, True]
    assert len(set(pages)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--figures", "landscap"), "unknown figure 'landscap'; did you mean 'landscape'?"),
        (("--figures", ","), "name at least one figure of: distance"),
        (("--distance", "energy-of-a-tst"), "did you mean 'energy-of-a-test'?"),
        (("--distance", "{use: energy-of-a-test, speed: 1}"), "unknown setting"),
        (("--distance", "3"), "expected the name of a distance"),
    ],
)
def test_bad_wishes(
    xmodal: Cli, finished: dict[str, Path], arguments: tuple[str, ...], message: str
) -> None:
    done = xmodal("analyse", finished["pare"], "--plugin", finished["plugin"], *arguments)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_runs_that_cannot_be_analysed(
    xmodal: Cli, finished: dict[str, Path], tmp_path: Path
) -> None:
    done = xmodal("analyse", "paer", "--root", finished["root"])
    assert done.code == 2
    assert "no run 'paer'; did you mean 'pare'?" in done.err
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "manifest.json").write_text(json.dumps(forms.manifest()))
    done = xmodal("analyse", tmp_path / "half", "--figures", "patches")
    assert done.code == 2
    assert "is not finished (state: empty)" in done.err


def test_help_is_light(process: Cli) -> None:
    done = process("--help")
    assert done.code == 0
    assert "analyse" in done.out


# --- distance ---


@pytest.mark.long
def test_distance_of_two_sources(xmodal: Cli, finished: dict[str, Path], tmp_path: Path) -> None:
    energy, picture = _energy(finished), tmp_path / "classes.png"
    few = ("--samples", 30, *energy)
    done = xmodal("distance", "digits", "fashion-mnist", *few, "--classes", picture, "--json")
    if done.code == 4:
        pytest.skip(done.err)
    assert done.code == 0, done.err
    numbers = json.loads(done.out)
    assert numbers["distance"] > 2 * max(numbers["within_first"], numbers["within_second"])
    assert numbers["samples"] == [30, 30]
    assert np.asarray(numbers["classes"]["distances"]).shape == (10, 10)
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = xmodal("distance", "digits", "fashion-mnist", *few, "--json")
    assert json.loads(again.out)["distance"] == numbers["distance"]


@pytest.mark.slow
def test_distance_of_files_by_hand(xmodal: Cli, finished: dict[str, Path], tmp_path: Path) -> None:
    """Two files of two points each, apart by 3: the energy distance is 2·3 - 0 - 0."""
    for name, value in (("a", 0.0), ("b", 3.0)):
        x = np.full((40, 4, 1), value / 2, dtype=np.float32)
        np.savez(tmp_path / f"{name}.npz", x=x, y=np.arange(40) % 2)
    done = xmodal("distance", "a.npz", "b.npz", "--samples", 8, *_energy(finished), "--json")
    assert done.code == 0, done.err
    numbers = json.loads(done.out)
    assert numbers["distance"] == pytest.approx(2 * 3.0, abs=1e-3)
    assert numbers["within_first"] == pytest.approx(0, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["embeddings", "features"])
def test_distance_through_a_backbone(xmodal: Cli, finished: dict[str, Path], space: str) -> None:
    done = xmodal(
        "distance", "darcy", "digits", "--scale", "smoke", "--samples", 8, "--embed", "tiny",
        "--space", space, *_energy(finished),
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "darcy to digits" in done.out
    assert "within darcy" in done.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("drcy", "digits"), 2, "no data set 'drcy'; did you mean 'darcy'?"),
        (("digits", "digitz"), 2, "did you mean 'digits'?"),
        (("mine.npz", "digits"), 2, "no file 'mine.npz'"),
        (("methods/nft", "digits"), 2, "recipe 'methods/nft' has no task"),
        (("digits", "cifar10"), 4, "xmodal data fetch cifar10"),
        (("digits", "conll-2003"), 2, "is text, which has no raw values"),
        (
            ("digits", "digits", "--embed", "tinny"),
            2,
            "unknown backbone 'tinny'; did you mean 'tiny'?",
        ),
        (("digits", "digits", "--space", "feature"), 2, "did you mean 'features'?"),
        (("darcy", "openml/car", "--scale", "smoke"), 2, "raw values cannot be compared"),
    ],
)
def test_bad_data_sets(
    xmodal: Cli, finished: dict[str, Path], arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = xmodal("distance", *arguments, "--samples", 4, *_energy(finished))
    assert (done.code, message in done.err) == (code, True), done.err
    assert "Traceback" not in done.err


# --- sources rank ---

RANK = ("sources", "rank", "--task", "tasks/darcy", "--scale", "smoke", "--samples", 16)


@pytest.mark.slow
def test_rank_scores_what_is_there_and_says_what_is_missing(
    xmodal: Cli, finished: dict[str, Path]
) -> None:
    wanted = ("--sources", "digits-on-photos,voc-foreground,digits", "--runs", finished["root"])
    done = xmodal(*RANK, *wanted, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    best, *others = told["sources"]
    assert best["source"] == "digits-on-photos"
    assert best["scores"]["bures_otdd"] > 0
    assert best["scores"]["s_otdd"] > 0
    assert best["scores"]["log_me"] is None  # its labels are pixels
    assert best["runs"] == 1
    result = json.loads((finished["pare"] / "result.json").read_text())
    assert best["final"] == result["test"]["metric"]
    # The probe is the first epoch of the very run.
    line = (finished["pare"] / "metrics.jsonl").read_text().splitlines()[0]
    assert best["scores"]["probe"] == json.loads(line)["validation"]["metric"]
    reasons = {one["source"]: one["absent"] for one in others}
    assert "xmodal data fetch voc-foreground" in reasons["voc-foreground"]
    assert "cannot predict the source's classification labels" in reasons["digits"]
    assert told["spearman"] == {}


def test_rank_of_sources_with_classes(xmodal: Cli, tmp_path: Path, mine: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"extends: backbones/vision\ntask: {{use: arrays, path: {mine}}}\n")
    done = xmodal(
        "sources", "rank", "--task", "mine.yaml", "--scale", "smoke", "--samples", 32,
        "--sources", "digits", "--no-probe", "--by", "log_me",
    )  # fmt: skip
    assert done.code == 0, done.err
    (row,) = [line.split() for line in done.out.splitlines() if line.startswith("digits")]
    assert all(np.isfinite(float(cell)) for cell in row[1:6])
    assert row[6:8] == ["-", "-"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--sources", "digitz"), 2, "unknown source 'digitz'; did you mean 'digits'?"),
        (("--by", "logme"), 2, "did you mean 'log_me'?"),
        (("--sources", "voc-foreground"), 4, "no source can be scored for tasks/darcy"),
        (("--sources", "conll-2003", "backbone=vit-s14"), 4, "holds text"),
        (("seeed=1",), 2, "seeed"),
    ],
)
def test_bad_rankings(xmodal: Cli, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = xmodal(*RANK, *arguments)
    assert (done.code, message in done.err) == (code, True), done.err
    assert "Traceback" not in done.err
