"""A run goes where it was told to go or does not start; a model is used where there is a place."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import accelerate.state
import numpy as np
import pytest
import torch

import xmodal
from xmodal import FineTuner, api, randomness
from xmodal.cli.app import main
from xmodal.engine import device
from xmodal.engine.build import Builder, accelerator
from xmodal.errors import RecipeError, UsageError

ROWS = np.random.default_rng(0).normal(size=(40, 4))
LABELS = (ROWS[:, 0] > 0).astype(int)
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def tiny(**settings: Any) -> FineTuner:
    common = {"scale": "smoke", "epochs": 1, "kind": "classification"}
    return FineTuner("nft", **{**common, **settings})


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "here", lambda: ["cpu"])


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as anybody asks; nothing is computed on them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(accelerate.state, "check_cuda_p2p_ib_support", lambda: True)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> FineTuner:
    """A fit whose run says that it was on a GPU."""
    model = tiny(device="cpu", directory=tmp_path_factory.mktemp("runs")).fit(ROWS, LABELS)
    file = model.run_path_ / "resolved.yaml"
    text = file.read_text()
    assert "device: cpu\n" in text
    file.write_text(text.replace("device: cpu\n", "device: cuda\n"))
    return model


# --- names ---


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("gpu", "cuda"),
        ("gpu:1", "cuda:1"),
        ("CUDA", "cuda"),
        ("cuda:-1", "cuda:0"),
        ("cpu:0", "cpu"),
        ("cup", "cpu"),
        ("nps", "mps"),
    ],
)
def test_what_is_no_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(RecipeError, match=f"'{name}' is not a device.*did you mean '{nearest}'"):
        api.run("methods/nft", "tasks/openml/car", overrides=[f"device='{name}'"])
    with pytest.raises(UsageError, match=f"'{name}' is not a device.*did you mean '{nearest}'"):
        device.checked(name)


@pytest.mark.parametrize("name", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:11"])
def test_names_of_devices(name: str) -> None:
    assert device.well_formed(name) == name


@pytest.mark.usefixtures("two_gpus")
def test_which_devices_there_are() -> None:
    assert [n for n in device.here() if n != "mps"] == ["cpu", "cuda", "cuda:0", "cuda:1"]
    assert device.checked("auto") == torch.device("cuda")
    assert device.checked("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UsageError, match=r"no 'cuda:2' here; choose auto or one of .*, cuda:1"):
        device.checked("cuda:2")


# --- training ---


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_a_run_is_refused_before_anything_is_loaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Builder) -> None:
        raise AssertionError("data are loaded")

    monkeypatch.setattr(Builder, "data", never)
    with pytest.raises(UsageError, match=f"device: there is no '{name}' here; .* cpu"):
        api.run("methods/nft", "tasks/darcy", overrides=[f"device={name}"], root=tmp_path)
    with pytest.raises(ValueError, match=f"device: there is no '{name}' here"):
        tiny(device=name).fit(ROWS, LABELS)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("name", "expected"), [("cuda:1", "cuda:1"), ("cuda", "cuda"), ("auto", "cuda"), ("cpu", "cpu")]
)
def test_a_run_goes_where_it_is_told(
    name: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment says already, and without changing it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    if name != "auto":
        monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    before = dict(os.environ)
    try:
        assert accelerator(name, "fp32").device == torch.device(expected)
        assert dict(os.environ) == before
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("two_gpus")
def test_the_numbered_gpu_is_the_current_one() -> None:
    block = device.current("cuda:1")
    assert isinstance(block, torch.cuda.device)
    assert block.idx == 1
    assert not isinstance(device.current("cuda"), torch.cuda.device)
    with pytest.raises(UsageError, match="there is no 'cuda:7' here"):
        device.current("cuda:7")


@pytest.mark.usefixtures("two_gpus")
def test_one_gpu_is_not_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UsageError, match=r"'cuda:1' is one GPU.*write device=cuda"):
        accelerator("cuda:1", "fp32")


@pytest.mark.parametrize(("saved", "now", "gpus"), [(0, 1, 2), (1, 0, 1), (1, 1, 2), (0, 0, 1)])
def test_random_numbers_go_on_on_another_gpu(
    saved: int, now: int, gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [torch.tensor([10]), torch.tensor([11])]
    held: dict[int, int] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: saved)
    state = randomness.global_state()

    def put(value: torch.Tensor, index: int) -> None:
        assert index < gpus, "there is no such GPU"
        held[index] = int(value)

    def put_all(values: list[torch.Tensor]) -> None:
        for index, value in enumerate(values):
            put(value, index)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_rng_state", put)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", put_all)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: now)
    randomness.set_global_state(state)
    assert held[now] == 10 + saved


def test_training_and_prediction_use_the_same_kernels(
    fitted: FineTuner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CUBLAS, raising=False)
    with randomness.determinism_kept():
        randomness.use_determinism(False)
    assert CUBLAS not in os.environ
    fitted.trained_.outputs(ROWS[:2])
    assert os.environ[CUBLAS] == ":4096:8"
    monkeypatch.setenv(CUBLAS, ":16:8")
    fitted.trained_.outputs(ROWS[:2])
    assert os.environ[CUBLAS] == ":16:8"


# --- a trained model ---


@pytest.mark.usefixtures("no_gpu")
def test_an_equal_fit_that_is_done_is_used_where_it_is_wanted(fitted: FineTuner) -> None:
    again = tiny(device="cpu", directory=fitted.run_path_.parents[1]).fit(ROWS, LABELS)
    assert again.run_path_ == fitted.run_path_
    assert again.trained_.device == torch.device("cpu")
    np.testing.assert_array_equal(again.predict_proba(ROWS), fitted.predict_proba(ROWS))


@pytest.mark.usefixtures("no_gpu")
def test_a_model_of_another_machine_is_used_on_the_cpu(fitted: FineTuner) -> None:
    with pytest.warns(UserWarning, match="no device 'cuda' here; the model is used on the CPU"):
        model = xmodal.load(fitted.run_path_)
    assert torch.equal(model.outputs(ROWS), fitted.trained_.outputs(ROWS))


@pytest.mark.usefixtures("no_gpu")
def test_a_device_that_is_named_must_be_here(
    fitted: FineTuner,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UsageError, match="no 'cuda:3' here"):
        xmodal.load(fitted.run_path_, device="cuda:3")
    np.save(tmp_path / "x.npy", ROWS)
    command = ["xmodal", "predict", str(fitted.run_path_), str(tmp_path / "x.npy")]
    for name, message in (("gpu", "did you mean 'cuda'"), ("cuda", "choose auto or one of cpu")):
        monkeypatch.setattr("sys.argv", [*command, "--device", name])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("no_gpu")
def test_a_pickle_of_another_machine_is_used_on_the_cpu(fitted: FineTuner) -> None:
    state = pickle.dumps(fitted.set_params(device="cuda"))
    fitted.set_params(device="cpu")
    with pytest.warns(UserWarning, match="no device 'cuda' here; the model is used on the CPU"):
        again = pickle.loads(state)
    assert again.device == "cuda"
    np.testing.assert_array_equal(again.predict_proba(ROWS), fitted.predict_proba(ROWS))


@pytest.mark.parametrize("form", [">f4", "<f4", ">i2", "longdouble", "float16", "uint64"])
def test_numbers_of_any_byte_order_and_width(fitted: FineTuner, form: str) -> None:
    x = np.abs(ROWS * 8).round().astype(form)
    same = torch.from_numpy(x.astype(np.float64))
    assert torch.equal(fitted.trained_.outputs(x), fitted.trained_.outputs(same))
    assert np.isfinite(tiny().fit(x, LABELS).predict_proba(x)).all()
