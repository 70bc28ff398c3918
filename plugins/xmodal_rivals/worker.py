"""Fits one model with a library that cannot live beside xmodal, in a Python of its own.

Run as ``python worker.py FOLDER``; knows the standard library, numpy and the one library that
``FOLDER/job.json`` names, and nothing of xmodal. The folder holds ``x.npy`` (n, F), ``y.npy``,
``more_x.npy`` and ``more_y.npy`` (validation), ``others.npy`` (to predict), or for a model that is
restored ``kept_0.npy`` ... and ``others.npy``. What comes back: ``prediction.npy`` for ``others``,
``kept_*.npy`` where a model is kept, and ``done.json``.

Classes are 0 .. S-1; scores are log-probabilities or decision values ``(n, S)``, log-odds of labels
``(n, K)``, or numbers ``(n, K)``. Nothing here may use the network: connections are refused.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

LEAST = 1e-6
LOCAL = ("127.0.0.1", "::1", "localhost")


def stay_here() -> None:
    """Refuse connections to other machines, and end when the program that started this ends."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        host: Any = None
        if event in ("socket.connect", "socket.sendto"):
            host = arguments[1][0] if isinstance(arguments[1], tuple) else None
        elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
            host = arguments[0]
        if host not in (None, "", *LOCAL):
            raise PermissionError(f"no network in a rival's interpreter: {host!r}")

    sys.addaudithook(watch)
    parent = os.getppid()

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        if os.name != "nt" and os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)  # and what the library has started
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


# --- aeon: transforms of series with a linear model or a forest ---


class SeriesJob:
    """A transform of aeon and, as in aeon's classifiers, ridge or extremely random trees."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.seed, self.settings = job["seed"], job["settings"]

    def shaped(self, x: Any) -> Any:
        """Series ``(n, C, L)``."""
        return np.ascontiguousarray(x.reshape(len(x), *self.job["shape"]))

    def fit(self, x: Any, y: Any, more: Any) -> None:
        """Fit the transform and the model."""
        transform = self.transform()
        features = self.scaled(transform.fit_transform(self.shaped(x)), fit=True)
        self.transformer, self.model = transform, self.head().fit(features, y)

    def transform(self) -> Any:
        from aeon.transformations.collection import convolution_based, interval_based

        if self.job["model"] == "minirocket":
            return convolution_based.MiniRocket(random_state=self.seed, **self.settings)
        if self.job["model"] == "hydra":
            return convolution_based.HydraTransformer(random_state=self.seed, **self.settings)
        return interval_based.QUANTTransformer(**self.settings)

    def head(self) -> Any:
        from sklearn import ensemble, linear_model

        numbers = self.job["kind"] == "regression"
        if self.job["model"] == "quant":
            forest = {"n_estimators": 200, "max_features": 0.1, "random_state": self.seed}
            forest["n_jobs"] = self.job["threads"]
            if numbers:
                return ensemble.ExtraTreesRegressor(**forest)
            return ensemble.ExtraTreesClassifier(criterion="entropy", **forest)
        ridge = linear_model.RidgeCV if numbers else linear_model.RidgeClassifierCV
        return ridge(alphas=np.logspace(-3, 3, 10))

    def scaled(self, features: Any, fit: bool = False) -> Any:
        """What aeon's classifier puts between the transform and the linear model."""
        if self.job["model"] == "quant":
            return np.asarray(features)
        if self.job["model"] == "minirocket":
            features = np.asarray(features)
            if fit:
                scale = features.std(axis=0)
                self.scale = np.where(scale == 0, 1.0, scale).astype(features.dtype)
            return features / self.scale
        from aeon.classification.convolution_based._hydra import _SparseScaler

        if fit:
            self.scaler = _SparseScaler()
            self.scaler.fit(features)
        return np.asarray(self.scaler.transform(features))

    def predict(self, x: Any) -> Any:
        """Scores."""
        features = self.scaled(self.transformer.transform(self.shaped(x)))
        return self.scores(features)

    def scores(self, features: Any) -> Any:
        if self.job["kind"] == "regression":
            return columns(self.model.predict(features))
        if self.job["model"] == "quant":
            p = self.model.predict_proba(features)
            if self.job["kind"] == "classification":
                return of_probabilities(p)
            several = isinstance(p, list)  # one label has no list
            return of_labels(
                *((p, self.model.classes_) if several else ([p], [self.model.classes_]))
            )
        return of_margins(self.model.decision_function(features), self.job["kind"])


class MiniRocketJob(SeriesJob):
    """Its arrays are kept: the transform's, the scale, and the linear model's."""

    def fit(self, x: Any, y: Any, more: Any) -> None:
        """Fit, then predict as a restored model does."""
        super().fit(x, y, more)
        arrays = list(self.transformer.parameters)
        self.restore([*arrays, self.scale, self.model.coef_, self.model.intercept_])

    def restore(self, arrays: list[Any]) -> None:
        """Take the arrays of a fitted model."""
        self.arrays = [np.asarray(one) for one in arrays]
        *parameters, self.scale, self.weight, self.bias = self.arrays
        self.transformer = self.transform()
        # The kernels are fixed; fitting to anything sets what the parameters do not hold.
        self.transformer.fit(np.zeros((1, *self.job["shape"]), dtype=np.float32))
        self.transformer.parameters = tuple(parameters)

    def scores(self, features: Any) -> Any:
        value = features @ np.atleast_2d(self.weight).T + self.bias
        if self.job["kind"] == "classification":
            return of_margins(value[:, 0] if value.shape[1] == 1 else value, self.job["kind"])
        return columns(value)


# --- tables ---


class TableJob:
    """Reads tables: numbers with NaN, categories as codes, a missing category as a code below 0."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.settings = job, job["settings"]
        self.categories = [i for i, count in enumerate(job["levels"]) if count]
        self.numbers = job["kind"] == "regression"

    def frame(self, x: Any) -> Any:
        """A pandas frame with columns of categories."""
        import pandas

        frame = pandas.DataFrame(x, columns=[f"c{i}" for i in range(x.shape[1])])
        for i in self.categories:
            codes = np.maximum(np.nan_to_num(x[:, i], nan=-1.0), -1).astype(int)
            frame[f"c{i}"] = pandas.Categorical(codes, categories=range(-1, self.job["levels"][i]))
        return frame

    def scored(self, model: Any, x: Any) -> Any:
        if self.numbers:
            return columns(np.asarray(model.predict(x)))
        return of_probabilities(np.asarray(model.predict_proba(x)))


class AutoGluonJob(TableJob):
    """AutoGluon's predictor of one column."""

    def fit(self, x: Any, y: Any, more: Any) -> None:
        """Fit with its own folds, and the validation samples as hold-out."""
        from autogluon.tabular import TabularPredictor

        preset = self.settings["preset"]
        bagged = preset in ("best_quality", "high_quality", "good_quality", "experimental_quality")
        train, held = self.frame(x), None
        train["y"] = y[:, 0] if self.numbers else y
        if len(more[0]):
            held = self.frame(more[0])
            held["y"] = more[1][:, 0] if self.numbers else more[1]
        several = "multiclass" if self.job["size"] > 2 else "binary"
        self.model = TabularPredictor(
            label="y",
            path=str(Path(self.job["folder"]) / "autogluon"),
            problem_type="regression" if self.numbers else several,
            eval_metric="root_mean_squared_error" if self.numbers else "log_loss",
            verbosity=0,
        ).fit(
            train,
            tuning_data=held,
            use_bag_holdout=bagged and held is not None,
            presets=preset,
            time_limit=self.settings["seconds"],
            dynamic_stacking=False,
            num_cpus=self.job["threads"],
            num_gpus=0,
            ag_args_ensemble={"fold_fitting_strategy": "sequential_local"},
        )

    def predict(self, x: Any) -> Any:
        """Scores."""
        return self.scored(self.model, self.frame(x))

    def scored(self, model: Any, x: Any) -> Any:
        if self.numbers:
            return columns(np.asarray(model.predict(x)))
        p = model.predict_proba(x)[list(range(self.job["size"]))]
        return of_probabilities(p.to_numpy())


class PyTabKitJob(TableJob):
    """RealMLP and TabM with the settings that their authors tuned."""

    def fit(self, x: Any, y: Any, more: Any) -> None:
        """Fit; the validation samples choose the epoch."""
        from pytabkit.models.sklearn import sklearn_interfaces

        self.middle = np.nanmean(np.where(np.isnan(x).all(0), 0.0, x), axis=0)
        base = {"realmlp": "RealMLP_TD", "tabm": "TabM_D"}[self.job["model"]]
        kind = "Regressor" if self.numbers else "Classifier"
        self.model = getattr(sklearn_interfaces, f"{base}_{kind}")(
            device="cpu", random_state=self.job["seed"], n_threads=self.job["threads"],
            **self.settings,
        )  # fmt: skip
        target = y[:, 0] if self.numbers and y.shape[1] == 1 else y
        held = {}
        if len(more[0]):
            more_y = more[1][:, 0] if self.numbers and y.shape[1] == 1 else more[1]
            held = {"X_val": self.known(more[0]), "y_val": more_y}
        names = [f"c{i}" for i in self.categories]
        self.model.fit(self.known(x), target, cat_col_names=names, **held)

    def known(self, x: Any) -> Any:
        """The frame with the training mean for missing numbers, which the networks cannot read."""
        middle = np.where(np.isin(np.arange(x.shape[1]), self.categories), np.nan, self.middle)
        return self.frame(np.where(np.isnan(x), middle, x).astype(np.float32))

    def predict(self, x: Any) -> Any:
        """Scores."""
        return self.scored(self.model, self.known(x))


class TabPFNJob(TableJob):
    """TabPFN with weights from a file; the training split is its context."""

    def fit(self, x: Any, y: Any, more: Any) -> None:
        """Keep the context."""
        import tabpfn

        kind = tabpfn.TabPFNRegressor if self.numbers else tabpfn.TabPFNClassifier
        self.model = kind(
            model_path=self.settings["weights"],
            device="cpu",
            random_state=self.job["seed"],
            categorical_features_indices=self.categories or None,
        ).fit(self.coded(x), y[:, 0] if self.numbers else y)

    def coded(self, x: Any) -> Any:
        """Codes as they are, a missing one as NaN."""
        coded = np.array(x, dtype=np.float32)
        for i in self.categories:
            coded[coded[:, i] < 0, i] = np.nan
        return coded

    def predict(self, x: Any) -> Any:
        """Scores."""
        return self.scored(self.model, self.coded(x))


# --- scores ---


def columns(value: Any) -> Any:
    """Numbers ``(n, K)``."""
    value = np.asarray(value)
    return value if value.ndim == 2 else value[:, None]


def of_margins(value: Any, kind: str) -> Any:
    """Decision values; two classes have one."""
    value = columns(value)
    if kind == "classification" and value.shape[1] == 1:
        return np.concatenate([np.zeros_like(value), value], axis=1)
    return value


def of_probabilities(p: Any) -> Any:
    """Log-probabilities of classes."""
    return np.log(np.maximum(np.asarray(p, dtype=np.float64), LEAST))


def of_labels(p: Any, classes: Any) -> Any:
    """Log-odds of labels: a table ``(n, classes that occur)`` and these classes for each label."""
    yes = [
        one[:, list(c).index(1)] if 1 in c else one[:, 0] * 0
        for one, c in zip(p, classes, strict=True)
    ]
    odds = np.stack(yes, axis=1).clip(LEAST, 1 - LEAST)
    return np.log(odds) - np.log(1 - odds)


MODELS: dict[str, Any] = {
    "minirocket": MiniRocketJob,
    "hydra": SeriesJob,
    "quant": SeriesJob,
    "autogluon": AutoGluonJob,
    "realmlp": PyTabKitJob,
    "tabm": PyTabKitJob,
    "tabpfn": TabPFNJob,
}


def main(folder: Path) -> None:
    """Do the job of a folder."""
    stay_here()
    warnings.filterwarnings("ignore")
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    job["folder"] = str(folder)

    def array(name: str) -> Any:
        return np.load(folder / f"{name}.npy", allow_pickle=False)

    started = time.monotonic()
    model = MODELS[job["model"]](job)
    rows = array("others")
    if job["restored"]:
        model.restore([array(f"kept_{number}") for number in range(job["restored"])])
    else:
        np.random.seed(job["seed"])
        model.fit(array("x"), array("y"), (array("more_x"), array("more_y")))
    scores = np.concatenate([model.predict(rows[i : i + 1024]) for i in range(0, len(rows), 1024)])
    np.save(folder / "prediction.npy", np.asarray(scores, dtype=np.float32))
    kept = getattr(model, "arrays", [])
    for number, one in enumerate(kept):
        np.save(folder / f"kept_{number}.npy", one)
    done = {"seconds": round(time.monotonic() - started, 1), "kept": len(kept)}
    (folder / "done.json").write_text(json.dumps(done), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
