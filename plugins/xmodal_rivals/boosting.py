"""Gradient-boosted trees: XGBoost, LightGBM and CatBoost, stopped early on validation.

Settings that are not given are a library's own, with learning rate 0.05, a sample of 80 % of the
rows (and, of ten columns or more, where the library does it well) for each tree, and early
stopping. Of fewer columns all are used: a tree of one column of two never learns a product. On
tables of 200 to 1000 rows that beats both the bare defaults and settings tuned on larger tables
(docs/rivals.md has the numbers). The weights of classes stay as they are. Checkpoints hold each
library's own file format.

Shapes: B and n samples, F numbers per sample, S classes that occur, M models, K outputs.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from xmodal.errors import UsageError, did_you_mean
from xmodal_rivals.boosted import Array, Boosted, Range, Split


class XGBoost(Boosted):
    """XGBoost's histogram trees; categories are split by, without one-hot coding."""

    citation = "Chen and Guestrin, XGBoost: A Scalable Tree Boosting System, KDD 2016"
    package = "xgboost"
    defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 0.05, "max_depth": 4, "subsample": 0.8, "colsample_bytree": 0.8,
    }  # fmt: skip
    samples_columns = "colsample_bytree"
    ranges: ClassVar[Mapping[str, Range]] = {
        "learning_rate": Range(0.01, 0.5, log=True),
        "max_depth": Range(1, 10, whole=True),
        "min_child_weight": Range(1e-3, 100, log=True),
        "reg_lambda": Range(1e-3, 10, log=True),
        "subsample": Range(0.5, 1.0),
        "colsample_bytree": Range(0.5, 1.0),
    }

    def train_one(
        self, training: Split, validation: Split | None, size: int, drawn: Mapping[str, Any]
    ) -> bytes:
        """Fit with native categories; keep the best round."""
        import xgboost

        objective = "reg:squarederror" if self.output.kind == "regression" else "binary:logistic"
        given: dict[str, Any] = {"objective": objective, "tree_method": "hist", "verbosity": 1}
        if size > 1:
            given |= {"objective": "multi:softprob", "num_class": size}
        given |= {"seed": self.seed, "nthread": torch.get_num_threads(), "device": "cpu"}
        watched = [] if validation is None else [(self._matrix(*validation), "validation")]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            booster = xgboost.train(
                self.parameters_of({**drawn, **given}, training),
                self._matrix(*training),
                self.config.rounds,
                evals=watched,
                early_stopping_rounds=self.config.patience if watched else None,
                verbose_eval=False,
            )
        # It goes on with a warning.
        unused = " ".join(str(one.message) for one in caught if "are not used" in str(one.message))
        for name in self.config.parameters:
            if f'"{name}"' in unused:
                raise UsageError(f"xgboost does not use the parameter '{name}'")
        if watched:
            booster = booster[: booster.best_iteration + 1]
        return bytes(booster.save_raw("ubj"))

    def _matrix(self, x_NF: Array, y_N: Any = None, weight_N: Any = None) -> Any:
        import xgboost

        types = ["c" if i in self.categories else "q" for i in range(x_NF.shape[1])]
        threads = torch.get_num_threads()
        return xgboost.DMatrix(
            x_NF,
            y_N,
            weight=weight_N,
            feature_types=types,
            enable_categorical=True,
            nthread=threads,
        )

    def read(self, text: bytes) -> Any:
        """A booster."""
        import xgboost

        return xgboost.Booster({"nthread": torch.get_num_threads()}, model_file=bytearray(text))

    def rounds_of(self, model: Any) -> int:
        """Its boosted rounds."""
        return int(model.num_boosted_rounds())

    def margin(self, model: Any, x_BF: Array) -> Any:
        """The raw margin."""
        margin_BS = model.predict(self._matrix(x_BF), output_margin=True)
        return margin_BS.reshape(len(x_BF), -1)


class LightGBM(Boosted):
    """LightGBM; the same trees on any number of threads."""

    citation = "Ke et al., LightGBM: A Highly Efficient Gradient Boosting Decision Tree, 2017"
    package = "lightgbm"
    defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 0.05, "bagging_fraction": 0.8, "bagging_freq": 1, "feature_fraction": 0.8,
        # Its own 100 and 4 keep it from using categories of small tables.
        "min_data_per_group": 10, "max_cat_to_onehot": 8,
    }  # fmt: skip
    samples_columns = "feature_fraction"
    ranges: ClassVar[Mapping[str, Range]] = {
        "learning_rate": Range(0.01, 0.5, log=True),
        "num_leaves": Range(2, 64, log=True, whole=True),
        "min_data_in_leaf": Range(1, 50, log=True, whole=True),
        "min_data_per_group": Range(1, 100, log=True, whole=True),
        "cat_smooth": Range(0.1, 30, log=True),
        "lambda_l2": Range(1e-3, 10, log=True),
        "bagging_fraction": Range(0.5, 1.0),
        "feature_fraction": Range(0.5, 1.0),
    }

    def train_one(
        self, training: Split, validation: Split | None, size: int, drawn: Mapping[str, Any]
    ) -> bytes:
        """Fit with native categories; keep the best round."""
        import lightgbm

        # It ignores what it does not know.
        names = lightgbm.basic._ConfigAliases._get_all_param_aliases()
        known = {name for aliases in names.values() for name in aliases}
        for name in self.config.parameters:
            if name not in known:
                hint = did_you_mean(name, known)
                raise UsageError(f"lightgbm has no parameter '{name}'{hint}")
        given: dict[str, Any] = {
            "objective": "regression" if self.output.kind == "regression" else "binary",
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": torch.get_num_threads(),
            "verbosity": -1,
        }
        if size > 1:
            given |= {"objective": "multiclass", "num_class": size}

        def data(x_NF: Array, y_N: Any, weight_N: Any, **kwargs: Any) -> Any:
            return lightgbm.Dataset(
                x_NF,
                y_N,
                weight=weight_N,
                categorical_feature=list(self.categories),
                free_raw_data=True,
                **kwargs,
            )

        train = data(*training)
        watched = [] if validation is None else [data(*validation, reference=train)]
        # A round whose sample allows no split leaves no tree, but the library counts it.
        grown: list[int] = []

        def count(env: Any) -> None:
            grown.append(env.model.current_iteration())
            if not watched and grown[-1] >= self.config.rounds:
                raise lightgbm.callback.EarlyStopException(env.iteration, [])

        stop = [lightgbm.early_stopping(self.config.patience, verbose=False)] if watched else []
        booster = lightgbm.train(
            self.parameters_of({**drawn, **given}, training),
            train,
            self.config.rounds if watched else 2 * self.config.rounds,
            valid_sets=watched,
            callbacks=[count, *stop],
        )
        best = grown[booster.best_iteration - 1]
        text: str = booster.model_to_string(num_iteration=best)
        return text.encode()

    def read(self, text: bytes) -> Any:
        """A booster."""
        import lightgbm

        return lightgbm.Booster(model_str=text.decode())

    def rounds_of(self, model: Any) -> int:
        """Its iterations, of one tree per class."""
        return int(model.current_iteration())

    def margin(self, model: Any, x_BF: Array) -> Any:
        """The raw score."""
        threads = torch.get_num_threads()
        found = model.predict(x_BF, raw_score=True, num_threads=threads)
        return np.asarray(found).reshape(len(x_BF), -1)


class CatBoost(Boosted):
    """CatBoost; categories by ordered target statistics, a missing one as a category of its own."""

    citation = "Prokhorenkova et al., CatBoost: unbiased boosting with categorical features, 2018"
    package = "catboost"
    defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 0.05, "bootstrap_type": "Bernoulli", "subsample": 0.8,
        "boosting_type": "Plain",  # ordered boosting took 3 to 7 times as long and gained 0.001
    }  # fmt: skip
    ranges: ClassVar[Mapping[str, Range]] = {
        "learning_rate": Range(0.01, 0.5, log=True),
        "depth": Range(1, 8, whole=True),
        "l2_leaf_reg": Range(0.3, 30, log=True),
        "random_strength": Range(0.1, 20, log=True),
        "subsample": Range(0.5, 1.0),
    }

    def train_one(
        self, training: Split, validation: Split | None, size: int, drawn: Mapping[str, Any]
    ) -> bytes:
        """Fit; keep the best round. Nothing is written beside the run."""
        import catboost

        given: dict[str, Any] = {
            "loss_function": "RMSE" if self.output.kind == "regression" else "Logloss",
            "iterations": self.config.rounds,
            "random_seed": self.seed,
            "thread_count": torch.get_num_threads(),
            "allow_writing_files": False,
            "logging_level": "Silent",
        }
        if size > 1:
            given |= {"loss_function": "MultiClass", "classes_count": size}
        if validation is not None:
            given |= {"od_type": "Iter", "od_wait": self.config.patience, "use_best_model": True}
        settings = self.parameters_of({**drawn, **given}, training)
        if len(training[0]) < 3:  # it cannot sample from so few
            settings.pop("subsample", None)
            settings["bootstrap_type"] = "No"
        model = catboost.CatBoost(settings)
        model.fit(
            self._pool(*training), eval_set=None if validation is None else self._pool(*validation)
        )
        about = model.get_metadata()
        about["model_guid"] = about["train_finish_time"] = ""  # the only bytes that would change
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.cbm"
            model.save_model(str(path), format="cbm")
            return path.read_bytes()

    def _pool(self, x_NF: Array, y_N: Any = None, weight_N: Any = None) -> Any:
        import catboost

        numbers = [i for i in range(x_NF.shape[1]) if i not in self.categories]
        codes = np.nan_to_num(x_NF[:, list(self.categories)], nan=-1.0).astype(int)
        parts = {
            "num_feature_data": np.ascontiguousarray(x_NF[:, numbers]) if numbers else None,
            "cat_feature_data": codes.astype("S").astype(object) if self.categories else None,
        }
        return catboost.Pool(catboost.FeaturesData(**parts), y_N, weight=weight_N)

    def read(self, text: bytes) -> Any:
        """A model."""
        import catboost

        return catboost.CatBoost().load_model(blob=text, format="cbm")

    def rounds_of(self, model: Any) -> int:
        """Its trees."""
        return int(model.tree_count_)

    def margin(self, model: Any, x_BF: Array) -> Any:
        """The raw value of the formula."""
        found = model.predict(
            self._pool(x_BF),
            prediction_type="RawFormulaVal",
            thread_count=torch.get_num_threads(),
        )
        return np.asarray(found).reshape(len(x_BF), -1)
