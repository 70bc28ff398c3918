"""Rivals that are fitted in a Python of their own: series by aeon, tables by AutoGluon and others.

A checkpoint keeps what the model predicted for every sample of the run, found again by a digest of
the sample; MiniRocket's arrays are kept, too. Nothing is pickled.

Shapes: B and n samples, F numbers per sample, M samples known, A arrays, S classes that occur.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from xmodal.batch import Tokens
from xmodal.data import Store
from xmodal.errors import DataError
from xmodal.interfaces import (
    Context,
    Facts,
    FitData,
    FittedPredictor,
    Settings,
    Target,
    TaskFacts,
    as_bytes,
    from_bytes,
    too_large,
)
from xmodal.text import number
from xmodal_rivals.interpreters import INTERPRETERS, call
from xmodal_rivals.units import units

LEAST = -13.8  # log 1e-6: the log-odds of what no training sample has


class ElsewhereSettings(Settings):
    """Settings of every rival with a Python of its own."""

    python: str = Field(
        "", description="The Python to run it with; by default that of xmodal rivals setup."
    )


class Elsewhere(FittedPredictor):
    """A model fitted by ``worker.py`` in another interpreter."""

    names = ("digest_M2", "prediction_M", "seen_S", "joined", "length_A", "mean_K", "scale_K")
    digest_M2: Tensor
    prediction_M: Tensor
    seen_S: Tensor
    joined: Tensor
    length_A: Tensor
    mean_K: Tensor
    scale_K: Tensor

    keeps_predictions = True
    interpreter: ClassVar[str]
    model: ClassVar[str]
    forms: ClassVar[tuple[str, ...]] = ("row",)
    kinds: ClassVar[tuple[str, ...]] = ("classification", "regression")
    reads_channels: ClassVar[bool] = False
    most_outputs: ClassVar[int] = 1
    most_rows: ClassVar[int] = 100_000
    most_columns: ClassVar[int] = 100_000
    most_classes: ClassVar[int] = 1000

    Config = ElsewhereSettings

    def __init__(self, config: ElsewhereSettings, context: Context) -> None:
        super().__init__(config, context)
        self.task = context.facts.task
        self.output = context.output or self.task.target
        self.seed = int(torch.randint(2**31, (), generator=context.generator))
        self.store = context.store
        own = INTERPRETERS[self.interpreter].python(self.store)
        self.python = config.python or str(own)
        self.known: dict[bytes, int] = {}

    @classmethod
    def contents(cls, config: Any, store: Store) -> Mapping[str, str]:
        """The place of the interpreter changes no result."""
        return {"python": "its own"} if config.python else {}

    @classmethod
    def missing(cls, config: Any, store: Store) -> Iterable[str]:
        """The interpreter."""
        return INTERPRETERS[cls.interpreter].absent(store, config.python)

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Whether it predicts labels of this kind."""
        return output.kind in cls.kinds

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """Report tasks of another form, kind or size."""
        task, target = facts.task, facts.task.target
        words = {"row": "table rows", "sequence": "series", "grid": "grids"}
        if task.form not in cls.forms and not (cls.reads_channels and one_map_of_series(task)):
            reads = " and ".join(words[form] for form in cls.forms)
            yield f"{cls.model} reads {reads}, not {words[task.form]}"
        if target.kind not in cls.kinds:
            yield f"{cls.model} cannot predict {target.kind} labels"
        elif target.kind == "classification" and target.size > cls.most_classes:
            yield f"{cls.model} takes at most {cls.most_classes} classes, not {target.size}"
        elif target.kind != "classification" and target.size > cls.most_outputs:
            yield f"{cls.model} predicts at most {cls.most_outputs} outputs, not {target.size}"
        rows, columns = task.samples.get("train", 0), int(np.prod(task.shape))
        if rows > cls.most_rows:
            most, found = number(cls.most_rows), number(rows)
            yield (
                f"{cls.model} takes at most {most} training samples, not {found}; fraction: "
                "takes a share of them"
            )
        if columns > cls.most_columns:
            yield f"{cls.model} takes at most {cls.most_columns} columns, not {columns}"
        yield from (f"{cls.model} {problem}" for problem in too_large(facts))

    @property
    def fitted(self) -> bool:
        """Whether there are predictions."""
        return len(self.digest_M2) > 0

    def loaded(self) -> None:
        """Look other predictions up when they are needed."""
        self.known = {}

    def settings(self) -> dict[str, Any]:
        """What the worker passes to the library."""
        return {}

    def fit(self, data: FitData) -> None:
        """Fit in the child, and keep what it predicts for all samples."""
        x_NF, y, more_NF, more_y = data.x_NF, data.y, data.validation_x_NF, data.validation_y
        keep_N, more_keep_N = (~one[:, None].isnan().flatten(1).any(1) for one in (y, more_y))
        seen_S = torch.empty(0, dtype=torch.int64)
        if self.output.kind == "classification":
            seen_S = torch.from_numpy(np.unique(y.numpy()))
            more_keep_N &= torch.isin(more_y, seen_S)
            y, more_y = (torch.searchsorted(seen_S, one) for one in (y, more_y))
        all_NF = torch.cat([x_NF, more_NF, data.others_NF.reshape(-1, x_NF.shape[1])])
        x_NF, y, more_NF, more_y = (
            x_NF[keep_N], y[keep_N], more_NF[more_keep_N], more_y[more_keep_N]
        )  # fmt: skip
        self.mean_K, self.scale_K = torch.zeros(1), torch.ones(1)
        if self.output.kind == "regression":
            self.mean_K, self.scale_K = units(y)
            y, more_y = ((one - self.mean_K) / self.scale_K for one in (y, more_y))
        if not len(y):
            raise DataError(f"{self.model}: no training sample has all its labels")
        arrays = {
            "x": x_NF.numpy(), "y": y.numpy(), "more_x": more_NF.numpy(), "more_y": more_y.numpy(),
            "others": all_NF.numpy(),
        }  # fmt: skip
        kept: list[NDArray[Any]] = []
        if len(seen_S) == 1:
            scores = np.zeros((len(all_NF), 1), dtype=np.float32)
        else:
            scores, kept = call(self.python, self.job(len(seen_S)), arrays)
        self.seen_S = seen_S
        self.joined, self.length_A = as_bytes([_npy(one) for one in kept])
        self.digest_M2 = torch.from_numpy(np.stack([_words(one) for one in digests(all_NF)]))
        self.prediction_M = self._outputs(scores)
        self.loaded()

    def job(self, size: int, restored: int = 0) -> dict[str, Any]:
        """What the worker is told."""
        return {
            "model": self.model,
            "kind": self.output.kind,
            "size": size,
            "shape": list(self.task.shape[1:] if one_map_of_series(self.task) else self.task.shape),
            "levels": list(self.task.levels),
            "seed": self.seed,
            "threads": torch.get_num_threads(),
            "settings": self.settings(),
            "restored": restored,
        }

    def _outputs(self, scores: NDArray[Any]) -> Tensor:
        """The predictor's outputs ``[M, K]`` of the worker's scores."""
        value = torch.from_numpy(scores).float()
        if self.output.kind != "classification":
            return value * self.scale_K.cpu() + self.mean_K.cpu()
        log_MK = torch.full((len(value), self.output.size), LEAST)
        log_MK[:, self.seen_S.cpu()] = value.log_softmax(1)
        return log_MK

    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K]``. Raises DataError for samples that the run did not have."""
        self.check_fitted()
        if not self.known:
            words = self.digest_M2.cpu().numpy()
            self.known = {row.tobytes(): place for place, row in enumerate(words)}
        x_BF = features.x_BND.flatten(1).detach().float().cpu()
        places = [self.known.get(_words(one).tobytes(), -1) for one in digests(x_BF)]
        place_B = torch.tensor(places, dtype=torch.int64)
        result = self.prediction_M.cpu()[place_B]
        if (new_B := place_B < 0).any():
            result[new_B] = self.predict_new(x_BF[new_B])
        return result.to(features.x_BND.device)

    def predict_new(self, x_BF: Tensor) -> Tensor:
        """Predict samples that the run did not have, if the model was kept."""
        if not len(self.length_A):
            raise DataError(
                f"{self.model} keeps its predictions only: its library can only pickle a model. "
                f"{len(x_BF)} of these samples are none of the run's; fit it again with them as "
                "test samples"
            )
        parts = from_bytes(self.joined, self.length_A)
        arrays: dict[str, NDArray[Any]] = {"others": x_BF.numpy()}
        for place, part in enumerate(parts):
            arrays[f"kept_{place}"] = np.load(io.BytesIO(part), allow_pickle=False)
        if not Path(self.python).exists():
            raise DataError("\n".join(self.missing(self.config, self.store)))
        scores, _ = call(self.python, self.job(len(self.seen_S), len(parts)), arrays)
        return self._outputs(scores)


def one_map_of_series(task: TaskFacts) -> bool:
    """Whether a sample ``(1, C, L)`` is drawn as an image, but holds C series of L steps."""
    return task.form == "grid" and task.shape[0] == 1 and task.family == "series"


def digests(x_NF: Tensor) -> Iterable[bytes]:
    """16 bytes for every sample, a function of its numbers: -0 is 0, and every NaN is one."""
    rows = torch.where(x_NF.isnan(), torch.nan, x_NF + 0.0).numpy().astype("<f4")
    rows[np.isnan(rows)] = np.nan
    for row in rows:
        yield hashlib.blake2b(row.tobytes(), digest_size=16).digest()


def _words(digest: bytes) -> NDArray[np.int64]:
    return np.frombuffer(digest, dtype="<i8").astype(np.int64)


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


class Aeon(Elsewhere):
    """A transform of series, and the linear model or forest of aeon's classifier."""

    interpreter = "aeon"
    forms = ("sequence",)
    reads_channels = True
    kinds = ("classification", "multi-label", "regression")
    most_outputs = 1000
    uses_validation = True  # only to keep what it predicts there

    def fit(self, data: FitData) -> None:
        """As for all; missing values are refused."""
        if any(x.isnan().any() for x in (data.x_NF, data.validation_x_NF, data.others_NF)):
            raise DataError(f"{self.model} cannot read series with missing values (NaN)")
        super().fit(data)

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """As for all, and series that are too short."""
        yield from super().problems(config, facts)
        if facts.task.form != "row" and facts.task.shape[-1] < 9:
            yield f"{cls.model} needs series of 9 points or more, not {facts.task.shape[-1]}"


class MiniRocket(Aeon):
    """Proportions of positive values after 10 000 fixed dilated kernels, and ridge."""

    class Config(ElsewhereSettings):
        kernels: PositiveInt = Field(10_000, description="Features of the transform.")

    citation = "Dempster, Schmidt and Webb, MiniRocket, KDD 2021"
    model = "minirocket"

    def settings(self) -> dict[str, Any]:
        """Kernels and threads."""
        return {"n_kernels": self.config.kernels, "n_jobs": torch.get_num_threads()}


class Hydra(Aeon):
    """Counts of the best matching kernel in groups of competing ones, and ridge."""

    class Config(ElsewhereSettings):
        kernels: PositiveInt = Field(8, description="Kernels in a group.")
        groups: PositiveInt = Field(64, description="Groups, per dilation.")

    citation = "Dempster, Schmidt and Webb, Hydra: competing convolutional kernels, 2023"
    model = "hydra"

    def settings(self) -> dict[str, Any]:
        """Kernels, groups and threads."""
        threads = torch.get_num_threads()
        return {
            "n_kernels": self.config.kernels, "n_groups": self.config.groups, "n_jobs": threads
        }  # fmt: skip


class Quant(Aeon):
    """Quantiles of dyadic intervals, and 200 extremely random trees."""

    class Config(ElsewhereSettings):
        depth: PositiveInt = Field(6, description="Halvings of the series.")

    citation = "Dempster, Schmidt and Webb, QUANT: a minimalist interval method, 2024"
    model = "quant"

    def settings(self) -> dict[str, Any]:
        """Depth."""
        return {"interval_depth": self.config.depth}


class AutoGluon(Elsewhere):
    """AutoGluon's stack of boosted trees, networks, forests and neighbours."""

    class Config(ElsewhereSettings):
        preset: str = Field("best_quality", description="One of AutoGluon's presets.")
        minutes: PositiveFloat | None = Field(
            10, description="Time limit, so that results depend on the machine; null has none."
        )

    citation = "Erickson et al., AutoGluon-Tabular, 2020"
    interpreter = model = "autogluon"

    def settings(self) -> dict[str, Any]:
        """Preset and seconds."""
        minutes = self.config.minutes
        seconds = None if minutes is None else 60 * minutes
        return {"preset": self.config.preset, "seconds": seconds}


class RealMLP(Elsewhere):
    """A network for tables with the settings its authors tuned on other tables (RealMLP-TD)."""

    citation = "Holzmueller, Grinsztajn and Steinwart, Better by Default, NeurIPS 2024"
    interpreter = "pytabkit"
    model = "realmlp"
    most_outputs = 100

    def settings(self) -> dict[str, Any]:
        """Epochs by cross-entropy, no smoothed labels: as advised for scores by probability."""
        chosen = {"val_metric_name": "cross_entropy", "use_ls": False}
        return chosen if self.output.kind == "classification" else {}


class TabM(Elsewhere):
    """An ensemble of networks that share most weights."""

    citation = "Gorishniy, Kotelnikov and Babenko, TabM, ICLR 2025"
    interpreter = "pytabkit"
    model = "tabm"

    def settings(self) -> dict[str, Any]:
        """Epochs by cross-entropy."""
        classes = self.output.kind == "classification"
        return {"val_metric_name": "cross_entropy"} if classes else {}


class TabPFN(Elsewhere):
    """A transformer that reads the training split as its context; pretrained on made-up tables.

    Limits are those of TabPFN v2, whose weights are free to use with attribution.
    """

    class Config(ElsewhereSettings):
        weights: str = Field(
            "", description="File with the weights; by default in the cache, in folder tabpfn."
        )

    citation = "Hollmann et al., Accurate predictions on small data, Nature 2025"
    interpreter = model = "tabpfn"
    most_rows, most_columns, most_classes = 10_000, 500, 10

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.weights = str(_weights(config, self.output.kind, context.store))

    @classmethod
    def contents(cls, config: Any, store: Store) -> Mapping[str, str]:
        """The interpreter's place changes no result, and the weights count by their name."""
        named = {"weights": Path(config.weights).name} if config.weights else {}
        return {**super().contents(config, store), **named}

    @classmethod
    def missing(cls, config: Any, store: Store) -> Iterable[str]:
        """The interpreter and the weights."""
        yield from super().missing(config, store)
        found = {kind: _weights(config, kind, store) for kind in ("classification", "regression")}
        if not any(path.is_file() for path in found.values()):
            yield (
                f"no weights of TabPFN in {found['classification'].parent}: put "
                "tabpfn-v2-classifier.ckpt there (29 MB, huggingface.co/Prior-Labs/TabPFN-v2-clf) "
                "or, for numbers, tabpfn-v2-regressor.ckpt (Prior-Labs/TabPFN-v2-reg)"
            )

    def settings(self) -> dict[str, Any]:
        """The file."""
        return {"weights": self.weights}


def _weights(config: TabPFN.Config, kind: str, store: Store) -> Path:
    if config.weights:
        return Path(config.weights).expanduser().absolute()
    name = "regressor" if kind == "regression" else "classifier"
    return store.root / "tabpfn" / f"tabpfn-v2-{name}.ckpt"
