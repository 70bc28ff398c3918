"""``FineTuner``: fine-tuning as a scikit-learn estimator.

A fit writes the arrays to files, composes a recipe of method, data and backbone, and makes the run
that the command line would make; or, with method ``auto``, the search of ``xmodal fit``. A fitted
estimator keeps its model in memory.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from sklearn.base import BaseEstimator
from sklearn.metrics import accuracy_score
from sklearn.utils import (
    ClassifierTags,
    RegressorTags,
    Tags,
    assert_all_finite,
    check_array,
    check_consistent_length,
    column_or_1d,
)
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from xmodal import randomness, runs
from xmodal.data import in_memory
from xmodal.data.in_memory import CodedLabels, Form
from xmodal.data.naming import name_of
from xmodal.data.store import Store
from xmodal.errors import DataError, did_you_mean
from xmodal.fitting import AUTO, as_value_errors, run_root, search, watching
from xmodal.interfaces import Backbone
from xmodal.recipe.lookup import looks_like_path
from xmodal.settings import Use

if TYPE_CHECKING:
    from xmodal.inference.model import TrainedModel

Array = NDArray[Any]
_CHOICES = {
    "kind": ("auto", "classification", "multi-label", "regression", "dense"),
    "form": ("auto", "row", "sequence", "grid"),
    "channels": ("first", "last"),
}
_LABEL_CHECKS = {
    "dtype": None, "ensure_2d": False, "allow_nd": True, "ensure_all_finite": "allow-nan",
}  # fmt: skip
_HAVE_PROBABILITIES = ("auto", "classification", "multi-label")
_BACKBONE_RECIPES = {"image": "backbones/vision", "text": "backbones/text"}
"""What a backbone of one's own needs besides: a source of its modality."""


class FineTuner(BaseEstimator):  # type: ignore[misc]
    """Fine-tune a pretrained backbone on arrays or tables, with any method that has a recipe.

    Parameters
    ----------
    method : name of a method such as ``pare`` or ``nft``, or the name or path of a recipe; or
        ``auto``: the best answer that a search finds, cheap ones included.
    backbone : name or settings of a backbone. By default MiniLM-L6 for rows and sequences, and
        ViT-S/14 for images; their weights are fetched on first use.
    kind : what y is: ``classification``, ``multi-label``, ``regression``, ``dense``, or ``auto``.
    form : what a sample is: ``row``, ``sequence``, ``grid``; ``auto`` goes by the axes of X.
    channels : where sequences and grids have their channels, ``first`` or ``last``.
    scale : a scale such as ``cpu`` or ``smoke``; None keeps the method's own settings.
    epochs : passes over the training samples; None keeps the recipe's.
    time, trials : with method ``auto``, how long to search (seconds, or ``"10m"``), or how many
        trials to make, which makes the whole reproducible. By default ten minutes.
    overrides : more settings of the recipe, ``{"training.optimizer.lr": 1e-3}`` or
        ``["training.optimizer.lr=1e-3"]``.
    validation_fraction : share of the samples that is held out to choose the best epoch. With 0
        the training samples choose it.
    seed : decides the held-out samples, their order, and new weights.
    device : ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    directory : where runs are kept, and where interrupted fits continue. None keeps nothing.
    verbose : 0 is silent, 1 shows progress on stderr.

    Attributes
    ----------
    kind_, form_, classes_ (classes and labels only), n_features_in_ (axis 1 of X),
    feature_names_in_ : what the data turned out to be.
    leaderboard_, verdict_ : with method ``auto``, what was tried, best first, and whether a
        fine-tuned transformer was worth it.
    trained_ : the model, an ``xmodal.inference.model.TrainedModel``.
    history_ : one mapping for each epoch.
    result_ : the result of the run.
    run_path_ : the directory of the run; None if nothing is kept.
    """

    def __init__(
        self,
        method: str = "pare",
        backbone: str | Mapping[str, Any] | None = None,
        *,
        kind: str = "auto",
        form: str = "auto",
        channels: str = "first",
        scale: str | None = None,
        epochs: int | None = None,
        time: float | str | None = None,
        trials: int | None = None,
        overrides: Mapping[str, Any] | Sequence[str] | None = None,
        validation_fraction: float = 0.15,
        seed: int = 0,
        device: str = "auto",
        directory: str | Path | None = None,
        verbose: int = 0,
    ) -> None:
        self.method = method
        self.backbone = backbone
        self.kind = kind
        self.form = form
        self.channels = channels
        self.scale = scale
        self.epochs = epochs
        self.time = time
        self.trials = trials
        self.overrides = overrides
        self.validation_fraction = validation_fraction
        self.seed = seed
        self.device = device
        self.directory = directory
        self.verbose = verbose

    def fit(
        self,
        X: Any,
        y: Any,
        validation_data: tuple[Any, Any] | None = None,
        *,
        groups: Any = None,
        sample_weight: Any = None,
    ) -> Self:
        """Train on ``X`` ``(n, features)``, ``(n, channels, length)`` or ``(n, channels, height,
        width)`` and labels ``y``.

        ``X`` may be a list of arrays ``(length,)`` or ``(channels, length)`` of unequal lengths:
        they are filled up at the end, with the mean of each channel, to the longest.
        ``validation_data`` (X, y) chooses the best epoch instead of held-out samples. ``groups``
        ``(n,)`` says which samples belong together (a patient, a site); a group is held out as a
        whole, or not at all. ``sample_weight`` ``(n,)``: how much each sample counts in training,
        0 or more; held-out samples that choose count alike. Raises
        ValueError for data and settings that do not work, and the errors of ``xmodal.errors``.
        """
        self._check_settings()
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)
        x = self._samples(X, reset=True)
        labels = self._labels(y, x)
        parts = {in_memory.TRAIN: (x, labels.values)}
        if validation_data is not None:
            if not isinstance(validation_data, tuple | list) or len(validation_data) != 2:
                raise ValueError("validation_data must be a pair (X, y)")
            parts[in_memory.VALIDATION] = self._validation(*validation_data, labels)
        elif 0 < len(x) * self.validation_fraction < 0.5:
            raise ValueError(
                f"X has {len(x)} samples, too few to hold out {self.validation_fraction} of them; "
                "with validation_fraction=0 the training samples choose the best epoch"
            )
        together = self._groups(groups, x)
        if validation_data is not None:
            together = None  # nothing is held out
        weights = None if sample_weight is None else self._weights(sample_weight, x)
        with run_root(self.directory) as root, randomness.state_kept():
            data, layout = in_memory.write(root / "data", parts, together, weights)
            share = 0.0 if validation_data is not None else float(self.validation_fraction)
            with as_value_errors(data, kept=self.directory is not None):
                if self.method == AUTO:
                    self._search(root, data, self._task(layout, labels, share))
                else:
                    task = {"path": str(data), **self._task(layout, labels, share)}
                    self._run(root, self._settings(task))
        return self

    def predict(self, X: Any) -> Array:
        """Predictions like ``y``: classes, 0/1 labels, numbers or fields."""
        outputs = self._outputs(X)
        if self.kind_ == "classification":
            classes: Array = self.classes_[self._probabilities(outputs).argmax(axis=1)]
            return classes
        if self._binary and self.kind_ in ("multi-label", "dense"):
            outputs = (outputs > 0).to(outputs.dtype)
        values = self.trained_.raw.raw_labels(outputs).numpy()
        return np.asarray(values, dtype=self._dtype)

    @available_if(lambda self: getattr(self, "kind_", self.kind) in _HAVE_PROBABILITIES)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Array:
        """The probability of every class, or of every label, ``(n, K)``."""
        return self._probabilities(self._outputs(X))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy of classes, of rows of labels, of places of 0/1 fields; else R² by output."""
        predicted = self.predict(X)
        if self.kind_ in ("classification", "multi-label"):
            return float(accuracy_score(y, predicted, sample_weight=sample_weight))
        true, found = (self.trained_.labels(values).numpy() for values in (y, predicted))
        return in_memory.score_numbers(true, found, sample_weight, binary=self._binary)

    def __sklearn_tags__(self) -> Tags:
        tags: Tags = super().__sklearn_tags__()
        kind = getattr(self, "kind_", self.kind)
        tags.target_tags.required = True
        tags.input_tags.allow_nan = self.form in ("auto", "row")
        tags.input_tags.three_d_array = self.form != "row"
        tags.target_tags.multi_output = kind not in ("auto", "classification")
        tags.target_tags.single_output = kind in ("auto", "classification", "regression")
        if kind in ("classification", "multi-label"):
            tags.estimator_type = "classifier"
            tags.classifier_tags = ClassifierTags(multi_label=kind == "multi-label")
        elif kind in ("regression", "dense"):
            tags.estimator_type = "regressor"
            tags.regressor_tags = RegressorTags()
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        if "trained_" in state:
            state["trained_"] = state["trained_"].state()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "trained_" in state:
            self.trained_ = _trained_of(state["trained_"], self.device)

    # --- checking X and y ---

    def _check_settings(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                hint = did_you_mean(str(value), choices)
                raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}{hint}")
        if not isinstance(self.method, str | Path):
            raise ValueError(f"method={self.method!r} is not the name or the path of a recipe")
        if not isinstance(self.scale, str | None):
            raise ValueError(f"scale={self.scale!r} is not the name of a scale")
        if self.method != AUTO and (self.time, self.trials) != (None, None):
            raise ValueError("time and trials mean something with method='auto' only")
        if self.method == AUTO and (self.scale, self.epochs) != (None, None):
            raise ValueError("scale and epochs mean nothing with method='auto', which decides them")
        if self.method == AUTO and self.validation_fraction == 0:
            raise ValueError("validation_fraction=0: method='auto' chooses by held-out samples")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction={self.validation_fraction!r}; not in [0, 1)")

    def _samples(self, X: Any, reset: bool) -> Any:
        """X, checked: an array with channels first, or an Arrow table.

        ``reset``: X decides what samples are, else it must be like the X of ``fit``.
        """
        if reset:
            X, self._time = in_memory.one_length(X, self.form, self.channels)
        elif self._time is not None:
            X = in_memory.as_long(X, self.sample_shape_, self._time)
        X = in_memory.without_index(X, warn=reset)
        names = None if reset else self._columns
        table = in_memory.as_table(X, names) if reset or names else None
        if table is None:
            X = validate_data(self, X, reset=reset, allow_nd=True, **self._limits(reset))
            shape = X.shape[1:]
        else:
            validate_data(self, X, reset=reset, skip_check_array=True)
            least = self._limits(reset)["ensure_min_samples"]
            in_memory.require_size(table, least, type(self).__name__)
            shape = table.shape[1:]
        if reset:
            self._columns: list[str] | None = None if table is None else table.column_names
            form = self.form if self._time is None else "sequence"
            self.form_ = in_memory.form_of(len(shape) + 1, form, text=table is not None)
            self.sample_shape_: tuple[int, ...] = shape
        elif shape != self.sample_shape_:
            raise ValueError(
                f"X has samples of shape {shape}, but {type(self).__name__} is expecting "
                f"{self.sample_shape_} as input"
            )
        if table is not None:
            return table
        if self.form_ != "row" and self._time is None:
            assert_all_finite(X, input_name="X")
        if reset and (doubt := in_memory.doubtful(X, self.form_, self.channels)):
            warnings.warn(doubt, stacklevel=3)
        return in_memory.channels_first(X, self.form_, self.channels)

    @staticmethod
    def _limits(reset: bool) -> dict[str, Any]:
        # One sample cannot be held out from; missing values of rows are embedded.
        return {"ensure_all_finite": "allow-nan", "ensure_min_samples": 2 if reset else 1}

    def _labels(self, y: Any, x: Any) -> CodedLabels:
        """y, checked and coded; sets the attributes that say what labels are."""
        y = self._label_array(y)
        check_consistent_length(x, y)
        if self.kind == "classification":
            check_classification_targets(y)
        if self.kind == "classification" or (self.kind == "auto" and y.shape[1:] == (1,)):
            y = column_or_1d(y, warn=True)
        labels = in_memory.code_labels(y, self.kind, self.form_, x.shape[1:])
        self.kind_ = labels.kind
        self._binary = labels.binary
        self._dtype = y.dtype if labels.binary and labels.kind != "regression" else np.float64
        if labels.classes is not None:
            self.classes_ = labels.classes
        elif labels.kind == "multi-label":
            self.classes_ = np.arange(y.shape[1])
        return labels

    def _label_array(self, y: Any) -> Array:
        """y as an array of text, numbers or booleans, without gaps."""
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None"
            )
        y = check_array(y, input_name="y", estimator=self, **_LABEL_CHECKS)
        return in_memory.plain_labels(y)

    def _groups(self, groups: Any, x: Any) -> Array | None:
        """Groups as numbers or text, ``[n]``, without gaps."""
        if groups is None:
            return None
        found = column_or_1d(groups, dtype=object)
        check_consistent_length(x, found)
        missing = np.flatnonzero(pandas.isna(found))
        if len(missing):
            raise ValueError(f"groups: row {missing[0]} has no group")
        plain = np.array(found.tolist())
        return plain if plain.dtype.kind in "iubU" else np.array(list(map(name_of, found)))

    @staticmethod
    def _weights(sample_weight: Any, x: Any) -> Array:
        """The weights as numbers, 0 or more, ``[n]``."""
        weights: Array = column_or_1d(sample_weight, dtype=np.float64)
        check_consistent_length(x, weights)
        assert_all_finite(weights, input_name="sample_weight")
        if (weights < 0).any():
            raise ValueError(f"sample_weight: row {np.flatnonzero(weights < 0)[0]} is below 0")
        if not weights.any():
            raise ValueError("sample_weight: all weights are zero")
        return weights

    def _validation(self, X: Any, y: Any, labels: CodedLabels) -> tuple[Any, Array]:
        """Samples and labels that choose the best epoch, read as those of ``fit`` were."""
        x = self._samples(X, reset=False)
        y = self._label_array(y)
        check_consistent_length(x, y)
        return x, in_memory.same_labels(y, labels)

    # --- the run and its model ---

    def _task(self, layout: Mapping[str, Any], labels: CodedLabels, share: float) -> dict[str, Any]:
        """The data as settings of the task.

        ``layout`` says how their files are to be read; ``share`` of the samples is held out.
        """
        task = {
            "kind": labels.kind,
            "split": [1 - share, share, 0.0],
            "split_seed": None,
            "lengths": None if self._time is None else "pad",
            **layout,
        }
        if labels.classes is not None:
            task["classes"] = [name_of(value) for value in labels.classes.tolist()]
        return task

    def _settings(self, task: Mapping[str, Any]) -> list[str]:
        """The estimator's parameters and its data as settings of the recipe."""
        chosen = {f"task.{key}": value for key, value in task.items()}
        chosen |= {"seed": self.seed, "device": self.device, "saving.keep": 1}
        if self.backbone is not None:
            chosen["backbone"] = self.backbone
        if self.epochs is not None:
            chosen["training.epochs"] = self.epochs
        return [*overrides(chosen), *overrides(self.overrides)]

    def _run(self, root: Path, settings: Sequence[str]) -> None:
        from xmodal import api

        with watching(self.verbose) as observer:
            outcome = api.run(
                *recipes(str(self.method), self.backbone, self.form_),
                overrides=settings,
                scale=self.scale,
                root=root,
                name=runs.valid_name(Path(self.method).stem) or "run",
                report=self.directory is not None,
                observer=observer,
            )
        self.trained_ = api.load(outcome.run.path, self.device)
        self.result_ = dict(outcome.result)
        self.history_ = outcome.run.metrics()
        self.run_path_ = None if self.directory is None else outcome.run.path

    def _search(self, root: Path, data: Path, task: Mapping[str, Any]) -> None:
        from xmodal import api

        found = search(
            data,
            {"form": self.form_, **task},
            [] if self.backbone is None else overrides({"backbone": self.backbone}),
            [*overrides({"device": self.device}), *overrides(self.overrides)],
            self.time,
            self.trials,
            self.seed,
            root / "fits",
            self.verbose,
        )
        self.trained_ = api.load(found.model, self.device)
        self.leaderboard_ = [dict(entry.plain()) for entry in found.entries]
        self.verdict_ = found.verdict
        self.result_ = dict(runs.Run(found.model).read("result.json"))
        self.history_ = runs.Run(found.model).metrics()
        self.run_path_ = None if self.directory is None else found.model

    def _outputs(self, X: Any) -> Any:
        """The outputs of the model for X, on the CPU: ``[n, K]`` or ``[n, K, *shape]``."""
        check_is_fitted(self, "trained_")
        x = self._samples(X, reset=False)
        try:
            return self.trained_.outputs(x)
        except DataError as error:
            raise ValueError(str(error)) from error

    def _probabilities(self, outputs: Any) -> Array:
        p_NK: Array = self.trained_.probabilities(outputs).astype(np.float64)
        return p_NK / p_NK.sum(axis=1, keepdims=True) if self.kind_ == "classification" else p_NK


def recipes(method: str, backbone: Any, form: Form) -> list[str]:
    """The recipes of a fit: the method, the form of the data, and what the backbone needs."""
    named = "/" in method or looks_like_path(method)
    found = [method if named else f"methods/{method}", f"arrays/{form}"]
    modality = None if backbone is None else _modality(backbone)
    return [*found, _BACKBONE_RECIPES[modality]] if modality in _BACKBONE_RECIPES else found


def _modality(backbone: Any) -> str | None:
    """What a backbone was trained on: text or images. None if its settings are wrong."""
    adapter: TypeAdapter[Use[Backbone]] = TypeAdapter(Use[Backbone])
    try:
        use = adapter.validate_python(backbone)
    except ValidationError:
        return None  # an error that composing the recipe reports better
    modality: str = use.component.describe(use.config, Store()).modality
    return modality


def overrides(settings: Mapping[str, Any] | Sequence[str] | None) -> list[str]:
    """Settings as ``key=value``. Raises ValueError for a single text, and for other things."""
    if isinstance(settings, Mapping):
        return [f"{key}={json.dumps(value, default=_as_json)}" for key, value in settings.items()]
    if isinstance(settings, str):
        raise ValueError(f"overrides={settings!r}: write [{settings!r}] or {{key: value}}")
    if not isinstance(settings, Sequence | None):
        raise ValueError(f"overrides={settings!r}: expected ['key=value'] or {{key: value}}")
    return list(settings or ())


def _as_json(value: Any) -> Any:
    """A NumPy number or a path as a value of JSON."""
    return value.item() if hasattr(value, "item") else str(value)


def _trained_of(state: Mapping[str, Any], device: str) -> TrainedModel:
    """The model of a pickled estimator; on the CPU if ``device`` is not here."""
    from xmodal.engine.device import checked, or_cpu
    from xmodal.inference.model import TrainedModel

    return TrainedModel.of(state, checked(or_cpu(device, warnings.warn)), "the pickled estimator")
