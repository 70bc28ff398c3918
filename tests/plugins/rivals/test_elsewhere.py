"""Rivals in a Python of their own, with stubs in the place of their libraries.

The child is a real process with the real worker; the libraries themselves are tested where
``xmodal rivals setup`` has installed them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import sysconfig
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xmodal.data.store import Store
from xmodal.engine.process import Stopped, watch_signals
from xmodal.errors import DataError
from xmodal.interfaces import Context, FitData, Target
from xmodal_rivals import elsewhere, worker
from xmodal_rivals.interpreters import INTERPRETERS, call

from .tables import context, data, predict, table

TWO = Target("classification", 2)
STUB = '''
"""Nearest class mean, which says what it was given."""
import json, os, socket
import numpy as np


class TabPFNClassifier:
    def __init__(self, model_path, device, random_state, categorical_features_indices):
        self.about = [open(model_path).read(), device, categorical_features_indices]

    def fit(self, x, y):
        if os.path.exists(os.environ.get("STUB_FAILS", "")):
            raise RuntimeError("the library is unhappy")
        try:
            socket.create_connection(("192.0.2.1", 80), timeout=1)
        except PermissionError as error:
            self.about.append(str(error))
        self.about += [os.environ["TABPFN_DISABLE_TELEMETRY"], os.environ["HF_HUB_OFFLINE"]]
        self.about.append(int(np.isnan(x).sum()))
        print(json.dumps(self.about))
        open(os.environ["STUB_SAYS"], "w").write(json.dumps(self.about))
        x = np.nan_to_num(x)
        self.means = np.stack([x[y == k].mean(0) for k in range(y.max() + 1)])
        return self

    def predict_proba(self, x):
        d = ((np.nan_to_num(x)[:, None] - self.means) ** 2).sum(2)
        p = np.exp(-d)
        return p / p.sum(1, keepdims=True)
'''


def around(output: Target, store: Path, *shape_and_levels: Any, **about: Any) -> Context:
    return context(output, *shape_and_levels, store=Store(store), **about)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python of its own with this one's packages and the stub."""
    folder = tmp_path_factory.mktemp("own")
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    inside = folder / "lib" / version / "site-packages"
    (inside / "tabpfn.py").write_text(STUB)
    (inside / "main.pth").write_text(sysconfig.get_paths()["purelib"])
    return str(folder / "bin" / "python")


@pytest.fixture
def pfn(python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes predictors of the stub."""
    weights = tmp_path / "some.ckpt"
    weights.write_text("the weights")
    monkeypatch.setenv("STUB_SAYS", str(tmp_path / "said.json"))
    monkeypatch.setenv("STUB_FAILS", str(tmp_path / "fails"))

    def make(output: Target = TWO) -> elsewhere.TabPFN:
        config = elsewhere.TabPFN.Config(python=python, weights=str(weights))
        return elsewhere.TabPFN(config, around(output, tmp_path))

    return make


def with_others() -> FitData:
    given = data()
    return FitData(given.x_NF, given.y, given.validation_x_NF, given.validation_y, table(seed=2)[0])


def test_the_whole_way_to_a_python_of_its_own_and_back(pfn: Any, tmp_path: Path) -> None:
    given, predictor = with_others(), pfn()
    predictor.fit(given)
    said = json.loads((tmp_path / "said.json").read_text())
    missing = int((given.x_NF[:, 1] < 0).sum() + given.x_NF.isnan().sum())
    refused = "no network in a rival's interpreter: '192.0.2.1'"
    assert said == ["the weights", "cpu", [1], refused, "1", "1", missing]
    x = np.nan_to_num(np.where(given.x_NF[:, 1:2] < 0, [0, np.nan, 0], 0) + given.x_NF.numpy())
    means = np.stack([x[given.y == k].mean(0) for k in range(2)])
    expected = -((x[:, None] - means) ** 2).sum(2)
    log_p = torch.from_numpy(expected).log_softmax(1).float()
    found = predict(predictor, given.x_NF)
    torch.testing.assert_close(found, log_p.clamp(min=np.log(1e-6)), atol=1e-4, rtol=1e-4)
    # Validation and test samples in any order, and the same after a checkpoint.
    for rows in (given.validation_x_NF.flip(0), given.others_NF[::3]):
        fresh = pfn()
        fresh.load_state_dict(predictor.state_dict())
        assert torch.equal(predict(fresh, rows), predict(predictor, rows))
    assert all(value.dtype != torch.uint8 or not len(value) for value in fresh.buffers())


def test_a_sample_that_the_run_did_not_have(pfn: Any) -> None:
    predictor = pfn()
    predictor.fit(with_others())
    new = table(seed=5)[0][:4]
    with pytest.raises(DataError, match=r"tabpfn keeps its predictions only.*4 of these samples"):
        predict(predictor, new)


def test_a_crash_of_the_child_is_one_message_with_its_last_lines(pfn: Any, tmp_path: Path) -> None:
    (tmp_path / "fails").touch()
    with pytest.raises(DataError, match=r"tabpfn failed in .* \(exit 1\)") as caught:
        pfn().fit(with_others())
    assert "RuntimeError: the library is unhappy" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 7


@pytest.mark.skipif(sys.platform == "win32", reason="no process groups")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_child_and_what_it_started(
    number: signal.Signals, python: str, tmp_path: Path
) -> None:
    """The stub starts a program of its own, then never ends."""
    child = tmp_path / "slow"
    child.write_text(
        f"#!/bin/sh\nsleep 600 & echo $! > {tmp_path}/pid\nsleep 0.5\n"
        f"kill -s {number.name[3:]} {os.getpid()}\nwait\n"
    )
    child.chmod(0o755)
    with watch_signals() as stop, pytest.raises(Stopped), stop.at_once():
        call(child, {"model": "quant", "threads": 1}, {})
    assert stop.signal == number
    started = int((tmp_path / "pid").read_text())
    for _ in range(1000):
        if not Path(f"/proc/{started}").exists() or _zombie(started):
            return
        time.sleep(0.01)
    raise AssertionError("what the child has started goes on")


def _zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_child_without_its_library_says_which(python: str, tmp_path: Path) -> None:
    config = elsewhere.Quant.Config(python=python)
    predictor = elsewhere.Quant(config, around(TWO, tmp_path, (1, 12), ()))
    x, y = torch.randn(8, 12), torch.arange(8) % 2
    with pytest.raises(DataError, match="No module named 'aeon'"):
        predictor.fit(FitData(x, y, x[:0], y[:0]))
    with pytest.raises(DataError, match="cannot be run"):
        call(tmp_path / "nothing", {"model": "quant", "threads": 1}, {})


def test_one_class_needs_no_child_and_classes_keep_their_places(pfn: Any) -> None:
    x, y = table()
    single = pfn(Target("classification", 3))
    single.python = "no such program"
    single.fit(FitData(x, torch.full_like(y, 2), x[:0], y[:0]))
    assert (predict(single, x).argmax(1) == 2).all()
    gap = pfn(Target("classification", 4))
    gap.fit(FitData(x, 3 * y, x[:0], y[:0]))
    assert set(predict(gap, x).argmax(1).tolist()) == {0, 3}


def test_what_no_model_can_be_fitted_to_is_one_line(pfn: Any, tmp_path: Path) -> None:
    x, unknown = torch.randn(8, 12), torch.full((8, 1), torch.nan)
    number = Target("regression", 1)
    with pytest.raises(DataError, match="no training sample has all its labels"):
        pfn(number).fit(FitData(x[:, :3], unknown, x[:0, :3], unknown[:0]))
    series = elsewhere.Quant(elsewhere.Quant.Config(), around(number, tmp_path, (1, 12), ()))
    x[3, 4] = torch.nan
    with pytest.raises(DataError, match="quant cannot read series with missing values"):
        series.fit(FitData(x, torch.ones(8, 1), x[:0], unknown[:0]))


def test_labels_that_never_change_have_sure_odds() -> None:
    y = np.arange(6) % 2
    for columns in ([y], [y, y * 0, y * 0 + 1]):
        p, classes = zip(
            *((np.eye(2)[one][:, np.unique(one)], np.unique(one)) for one in columns), strict=True
        )
        odds = worker.of_labels(p, classes)
        assert odds.shape == (6, len(columns))
        assert ((odds > 10) == (np.stack(columns, 1) == 1)).all()
        assert ((odds < -10) == (np.stack(columns, 1) == 0)).all()


def test_digests_tell_samples_apart_by_value() -> None:
    x = torch.tensor([[0.0, float("nan"), 1.0], [-0.0, -float("nan"), 1.0], [0.0, 0.0, 1.0]])
    first, same, other = elsewhere.digests(x)
    assert first == same
    assert other != first


def test_what_is_missing_says_how_to_set_it_up(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (line,) = elsewhere.MiniRocket.missing(elsewhere.MiniRocket.Config(), store)
    folder = tmp_path / "interpreters" / "aeon"
    assert "xmodal rivals setup aeon --run" in line
    assert f"-m venv {folder} && {folder}/bin/python -m pip install aeon==1.6.0" in line
    first, weights = elsewhere.TabPFN.missing(elsewhere.TabPFN.Config(), store)
    assert "xmodal rivals setup tabpfn" in first
    assert str(tmp_path / "tabpfn") in weights
    for one in INTERPRETERS.values():
        assert all("==" in text or text == "torch" for text in one.requirements)


def test_electrodes_drawn_as_an_image_are_channels_of_one_series(tmp_path: Path) -> None:
    def told(*shape: int, family: str = "") -> list[int]:
        made = around(TWO, tmp_path, shape, (), family=family)
        shape_told: list[int] = elsewhere.Hydra(elsewhere.Hydra.Config(), made).job(2)["shape"]
        return shape_told

    assert told(1, 8, 52, family="series") == [8, 52]
    assert told(2, 50) == [2, 50]


def test_what_they_cannot_do_is_said_before_a_run(tmp_path: Path) -> None:
    def problems(component: Any, output: Target, **about: Any) -> list[str]:
        facts = around(output, tmp_path, **about).facts
        return list(component.problems(component.Config(), facts))

    series: dict[str, Any] = {"shape": (2, 50), "levels": ()}
    assert problems(elsewhere.MiniRocket, TWO, **series) == []
    assert problems(elsewhere.Hydra, Target("multi-label", 4), **series) == []
    assert problems(elsewhere.MiniRocket, TWO) == ["minirocket reads series, not table rows"]
    (short,) = problems(elsewhere.Quant, TWO, shape=(1, 5), levels=())
    assert "9 points" in short
    # Electrodes drawn as an image of one channel are series; photographs are not.
    assert problems(elsewhere.MiniRocket, TWO, shape=(1, 8, 52), levels=(), family="series") == []
    (grid,) = problems(elsewhere.MiniRocket, TWO, shape=(1, 8, 52), levels=())
    assert grid == "minirocket reads series, not grids"
    (dense,) = problems(elsewhere.Hydra, Target("dense", 1, (50,)), **series)
    assert "dense" in dense
    assert problems(elsewhere.TabPFN, TWO) == []
    (rows,) = problems(elsewhere.TabPFN, TWO, samples=20_000)
    assert rows.startswith("tabpfn takes at most 10\u202f000 training samples, not 20\u202f000")
    (classes,) = problems(elsewhere.TabPFN, Target("classification", 24))
    assert classes == "tabpfn takes at most 10 classes, not 24"
    (labels,) = problems(elsewhere.AutoGluon, Target("multi-label", 4))
    assert labels == "autogluon cannot predict multi-label labels"


# --- the libraries themselves, where they are set up ---


def own(component: Any, store: Store) -> str:
    python = INTERPRETERS[component.interpreter].python(store)
    if not python.exists():
        pytest.skip(f"xmodal rivals setup {component.interpreter} was not run")
    return str(python)


def waves(seed: int, samples: int = 60) -> tuple[Tensor, Tensor]:
    """Series of three classes: three frequencies, in noise."""
    random = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % 3
    t = torch.linspace(0, 6.28, 40)
    x = torch.sin((1 + y[:, None]) * t + torch.rand(samples, 1, generator=random))
    return x + 0.3 * torch.randn(samples, 40, generator=random), y


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MiniRocket", "Hydra", "Quant"])
def test_aeon(name: str, tmp_path: Path) -> None:
    component = getattr(elsewhere, name)
    python = own(component, Store())
    x, y = waves(0)
    others, truth = waves(1)
    output = Target("classification", 3)
    config = component.Config(python=python)
    predictor = component(config, around(output, tmp_path, (1, 40), ()))
    predictor.fit(FitData(x, y, x[:0], y[:0], others))
    log_p = predict(predictor, others)
    assert (log_p.argmax(1) == truth).float().mean() > 0.9
    if name == "MiniRocket":  # a kept model predicts samples that the run did not have
        known = predictor.digest_M2
        predictor.digest_M2 = known + 1
        predictor.loaded()
        torch.testing.assert_close(predict(predictor, others[:7]), log_p[:7], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AutoGluon", "RealMLP", "TabM"])
def test_tables_elsewhere(name: str, tmp_path: Path) -> None:
    component = getattr(elsewhere, name)
    python = own(component, Store())
    extra = {"preset": "medium_quality", "minutes": 1} if name == "AutoGluon" else {}
    predictor = component(component.Config(python=python, **extra), around(TWO, tmp_path))
    given = with_others()
    predictor.fit(given)
    log_p = predict(predictor, given.others_NF)
    assert (log_p.argmax(1) == table(seed=2)[1]).float().mean() > 0.75
