"""``FineTuner``: fine-tuning as a scikit-learn estimator.

It composes a recipe (method, data, backbone) and makes the run that the command line would make. A
fitted estimator keeps its model in memory.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from sklearn.base import BaseEstimator
from sklearn.metrics import accuracy_score, r2_score
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

from xmodal import runs
from xmodal.data import in_memory
from xmodal.data.in_memory import Form, GivenLabels
from xmodal.data.store import Store
from xmodal.errors import DataError, Problem, RecipeError, UsageError, did_you_mean
from xmodal.interfaces import Backbone
from xmodal.recipe.compose import COMMAND_LINE, looks_like_path
from xmodal.recipe.recipe import Recipe
from xmodal.settings import Use

if TYPE_CHECKING:
    from xmodal.engine.run import Observer

    pass
    from xmodal.inference.model import TrainedModel

Array = NDArray[Any]
_CHOICES = {
    "kind": ("auto", "classification", "multi-label", "regression", "dense"),
    "form": ("auto", "row", "sequence", "grid"),
    "channels": ("first", "last"),
}
_LABELS = {"dtype": None, "ensure_2d": False, "allow_nd": True, "ensure_all_finite": "allow-nan"}
_PROBABLE = ("auto", "classification", "multi-label")


class FineTuner(BaseEstimator):  # type: ignore[misc]
    """Fine-tune a pretrained backbone on arrays or tables, with any method that has a recipe.

    Parameters
    ----------
    method : a method's name such as ``pare`` or ``nft``, or the name or path of a recipe.
    backbone : a backbone's name or settings; by default MiniLM-L6 for rows and sequences, ViT-S/14
    for images, whose weights are fetched on first use. kind : what y is: ``classification``,
    ``multi-label``, ``regression``, ``dense``; or ``auto``. form : what a sample is: ``row``,
    ``sequence``, ``grid``; ``auto`` goes by the axes of X. channels : ``first`` or ``last``, for
    sequences and grids. scale : a scale such as ``cpu`` or ``smoke``; None is the method's own
    settings. epochs : passes over the training samples; None is the recipe's. overrides : further
    settings of the recipe, ``{"training.optimizer.lr": 1e-3}`` or
    ``["training.optimizer.lr=1e-3"]``. validation_fraction : share of the samples that is held out
    to choose the best epoch; 0 chooses it by the training samples. seed : draws the held-out
    samples, the order, new weights. device : ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    directory : where runs are kept and interrupted fits go on; None keeps nothing on disk. verbose
    : 0 is silent, 1 shows progress on stderr.

    Attributes
    ----------
    kind_, form_, classes_ (classes and labels only), n_features_in_ (axis 1 of X),
    feature_names_in_ : what was found.
    trained_ : the model, ``xmodal.inference.model.Trained``.
    history_ : one mapping an epoch.  result_ : the run's result.
    run_path_ : the run's directory; None where nothing is kept.
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
        self.overrides = overrides
        self.validation_fraction = validation_fraction
        self.seed = seed
        self.device = device
        self.directory = directory
        self.verbose = verbose

    def fit(self, X: Any, y: Any, validation_data: tuple[Any, Any] | None = None) -> Self:
        """Train on ``X`` ``(n, features)``, ``(n, channels, length)`` or ``(n, channels, height,
        width)`` and labels ``y``.

        ``validation_data`` (X, y) chooses the best epoch instead of held-out samples. Raises
        ValueError for data and settings that do not work, and kinds of ``xmodal.errors``.
        """
        self._check_settings()
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)
        x = self._samples(X, reset=True)
        labels = self._labels(y, x)
        parts = {in_memory.TRAIN: (x, labels.values)}
        if validation_data is not None:
            parts[in_memory.VALIDATION] = self._validation(*validation_data, labels)
        elif 0 < len(x) * self.validation_fraction < 0.5:
            raise ValueError(
                f"X has {len(x)} samples, too few to hold out {self.validation_fraction} of them; "
                "with validation_fraction=0 the training samples choose the best epoch"
            )
        with folder(self.directory) as root, undisturbed():
            data, told = in_memory.write(root / "data", parts)
            with explained(data, kept=self.directory is not None):
                self._run(data, root, labels, told, held=validation_data is not None)
        return self

    def predict(self, X: Any) -> Array:
        """Predictions in the form of ``y``: classes, 0/1 labels, numbers or fields."""
        outputs = self._outputs(X)
        if self.kind_ == "classification":
            classes: Array = self.classes_[self._probabilities(outputs).argmax(axis=1)]
            return classes
        if self._binary and self.kind_ in ("multi-label", "dense"):
            outputs = (outputs > 0).to(outputs.dtype)
        values = self.trained_.raw.raw_labels(outputs).numpy()
        return np.asarray(values, dtype=self._dtype)

    @available_if(lambda self: getattr(self, "kind_", self.kind) in _PROBABLE)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Array:
        """The probability of every class, or of every label, ``(n, K)``."""
        return self._probabilities(self._outputs(X))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy (of whole rows for several labels, of places for 0/1 fields), else R²."""
        predicted = self.predict(X)
        if self.kind_ in ("classification", "multi-label"):
            return float(accuracy_score(y, predicted, sample_weight=sample_weight))
        if self.kind_ == "regression":
            return float(r2_score(y, predicted, sample_weight=sample_weight))
        weight = None if sample_weight is None else np.repeat(sample_weight, predicted[0].size)
        score = accuracy_score if self._binary else r2_score
        return float(score(np.ravel(y), predicted.ravel(), sample_weight=weight))

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
            state["trained_"] = packed(state["trained_"])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "trained_" in state:
            self.trained_ = unpacked(state["trained_"], self.device)

    # --- reading what is given ---

    def _check_settings(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                hint = did_you_mean(str(value), choices)
                raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}{hint}")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction={self.validation_fraction!r}; not in [0, 1)")

    def _samples(self, X: Any, reset: bool) -> Any:
        """X, checked: an array with channels first, or a frame of numbers and text."""
        known = None if reset else self._columns
        frame = in_memory.as_frame(X, known) if reset or known else None
        if frame is None:
            X = validate_data(self, X, reset=reset, allow_nd=True, **self._limits(reset))
            shape = X.shape[1:]
        else:
            validate_data(self, X, reset=reset, skip_check_array=True)
            numbers = frame.select_dtypes("number").to_numpy(float)
            check_array(numbers, ensure_min_features=0, input_name="X", **self._limits(reset))
            shape = frame.shape[1:]
        if reset:
            self._columns: in_memory.Columns | None = (
                None if frame is None else in_memory.columns_of(frame)
            )
            self.form_ = in_memory.form_of(len(shape) + 1, self.form, text=frame is not None)
            self.sample_shape_ = shape
        elif shape != self.sample_shape_:
            raise ValueError(
                f"X has samples of shape {shape}, but {type(self).__name__} is expecting "
                f"{self.sample_shape_} as input"
            )
        if frame is not None:
            return frame
        if self.form_ != "row":
            assert_all_finite(X, input_name="X")
        if reset and (doubt := in_memory.doubtful(X, self.form_, self.channels)):
            warnings.warn(doubt, stacklevel=3)
        return in_memory.channels_first(X, self.form_, self.channels)

    @staticmethod
    def _limits(reset: bool) -> dict[str, Any]:
        # One sample cannot be held out from; missing values of rows are embedded.
        return {"ensure_all_finite": "allow-nan", "ensure_min_samples": 2 if reset else 1}

    def _labels(self, y: Any, x: Any) -> in_memory.GivenLabels:
        """y, checked and coded; sets what the estimator knows of its labels."""
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
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None"
            )
        y = check_array(y, input_name="y", estimator=self, **_LABELS)
        return in_memory.plain_labels(y)

    def _validation(self, X: Any, y: Any, labels: in_memory.GivenLabels) -> tuple[Any, Array]:
        x = self._samples(X, reset=False)
        y = self._label_array(y)
        check_consistent_length(x, y)
        return x, in_memory.same_labels(y, labels)

    # --- the run and its model ---

    def _run(
        self,
        data: Path,
        root: Path,
        labels: in_memory.GivenLabels,
        told: dict[str, Any],
        held: bool,
    ) -> None:
        from xmodal import api
        from xmodal.inference.model import load_trained

        given = settings(self, data, told, labels, held)
        recipes = layers(self.method, self.backbone, self.form_)
        with watching(self.verbose) as observer:
            outcome = api.run(
                *recipes,
                overrides=[*given, *overrides(self.overrides)],
                scale=self.scale,
                root=root,
                name=Path(self.method).stem,
                report=self.directory is not None,
                observer=observer,
            )
        self.trained_ = load_trained(outcome.run.path, self.device)
        self.result_ = dict(outcome.result)
        self.history_ = outcome.run.metrics()
        self.run_path_ = None if self.directory is None else outcome.run.path

    def _outputs(self, X: Any) -> Any:
        """What the model gives for X, on the CPU: ``[n, K]`` or ``[n, K, *shape]``."""
        check_is_fitted(self, "trained_")
        x = self._samples(X, reset=False)
        try:
            return self.trained_.outputs(x)
        except DataError as error:
            raise ValueError(str(error)) from error

    def _probabilities(self, outputs: Any) -> Array:
        p_NK: Array = self.trained_.probabilities(outputs).astype(np.float64)
        return p_NK / p_NK.sum(axis=1, keepdims=True) if self.kind_ == "classification" else p_NK


_BACKBONES = {"image": "backbones/vision", "text": "backbones/text"}


def layers(method: str, backbone: Any, form: Form) -> list[str]:
    """The recipes of a fit: the method, the caller's data, and what goes with a backbone of
    its own.
    """
    named = "/" in method or looks_like_path(method)
    recipes = [method if named else f"methods/{method}", f"arrays/{form}"]
    modality = None if backbone is None else _modality(backbone)
    return [*recipes, _BACKBONES[modality]] if modality in _BACKBONES else recipes


def _modality(backbone: Any) -> str | None:
    """What a backbone was trained on, to go with a source of that; None if its settings are
    wrong.
    """
    adapter: TypeAdapter[Use[Backbone]] = TypeAdapter(Use[Backbone])
    try:
        use = adapter.validate_python(backbone)
    except ValidationError:
        return None  # composing the recipe says what is wrong
    modality: str = use.component.describe(use.config, Store()).modality
    return modality


def overrides(settings: Mapping[str, Any] | Sequence[str] | None) -> list[str]:
    """``key=value`` for every setting. Raises ValueError for what is neither."""
    if isinstance(settings, Mapping):
        return [f"{key}={json.dumps(value, default=_plain)}" for key, value in settings.items()]
    if isinstance(settings, str):
        raise ValueError(f"overrides={settings!r}: write [{settings!r}] or {{key: value}}")
    return list(settings or ())


def settings(
    tuner: FineTuner, data: Path, told: Mapping[str, Any], labels: GivenLabels, held: bool
) -> list[str]:
    """What the estimator's parameters and the data in ``data`` say, as overrides.

    ``told`` is what the task has to be told of the files; ``held``: they say what validates.
    """
    share = 0.0 if held else float(tuner.validation_fraction)
    task = {
        "path": str(data),
        "kind": labels.kind,
        "channels": "first",
        "split": [1 - share, share, 0.0],
        "split_seed": None,
        **told,
    }
    if labels.classes is not None:
        task["classes"] = [_class_name(value) for value in labels.classes.tolist()]
    chosen = {f"task.{key}": value for key, value in task.items()}
    chosen |= {"seed": tuner.seed, "device": tuner.device, "saving.keep": 1}
    if tuner.backbone is not None:
        chosen["backbone"] = tuner.backbone
    if tuner.epochs is not None:
        chosen["training.epochs"] = tuner.epochs
    return overrides(chosen)


def _class_name(value: Any) -> str:
    """A class as text: whole numbers without decimals, as they are named in files."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _plain(value: Any) -> Any:
    """Numbers of NumPy, and paths, as JSON knows them."""
    return value.item() if hasattr(value, "item") else str(value)


@contextmanager
def folder(directory: str | Path | None) -> Iterator[Path]:
    """Where data and runs go: ``directory``, or a folder that is removed afterwards."""
    if directory is not None:
        yield Path(directory).expanduser().resolve()
        return
    with tempfile.TemporaryDirectory(prefix="xmodal-", ignore_cleanup_errors=True) as made:
        yield Path(made)


@contextmanager
def explained(data: Path, kept: bool) -> Iterator[None]:
    """Turn the engine's complaints about data and settings into ValueErrors in a caller's words.

    ``kept``: the run outlives the fit, so that an interrupted one can be continued.
    """
    from xmodal.engine.run import Interrupted

    try:
        yield
    except RecipeError as error:
        raise ValueError("\n".join(map(_without_place, error.problems))) from error
    except UsageError as error:
        raise ValueError(str(error)) from error
    except DataError as error:
        if str(data) not in str(error):
            raise
        raise ValueError(_in_arguments(str(error), data)) from error
    except Interrupted as error:
        if not kept:
            error.args = ("interrupted; nothing is kept. With directory= the fit would go on.",)
        if error.exit_code == 130:
            raise KeyboardInterrupt from error
        raise


def _without_place(problem: Problem) -> str:
    """A problem without the place that overrides seem to come from."""
    own = problem.where.startswith(COMMAND_LINE)
    return str(problem).removeprefix(problem.where).strip() if own else str(problem)


def _in_arguments(text: str, data: Path) -> str:
    """A message about files of ``data`` as one about X and y."""
    for name in ("x", "y"):
        text = text.replace(f"{data}/{name}_train.npy: '{name}_train'", {"x": "X"}.get(name, name))
    return text.replace(f"{data}/", "")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Random numbers and torch's determinism are the caller's again after the block."""
    from xmodal import randomness

    state = randomness.global_state()
    try:
        with randomness.determinism_kept():
            yield
    finally:
        randomness.set_global_state(state)


@contextmanager
def watching(verbose: int) -> Iterator[Observer | None]:
    """The observer of the command line where progress is wanted."""
    if not verbose:
        yield None
        return
    from rich.console import Console

    from xmodal.cli.live import Watcher

    with Watcher(Console(stderr=True)) as watcher:
        yield watcher


def packed(trained: TrainedModel) -> dict[str, Any]:
    """A trained model as plain values and tensors in main memory."""
    weights = {name: value.cpu() for name, value in trained.model.state_dict().items()}
    return {
        "recipe": trained.recipe.model_dump(mode="json"),
        "facts": trained.facts,
        "raw": trained.raw,
        "classes": trained.classes,
        "path": str(trained.run.path),
        "weights": weights,
    }


def unpacked(state: Mapping[str, Any], device: str) -> TrainedModel:
    """The trained model that ``packed`` made ``state`` of; on the CPU where ``device`` is not."""
    from xmodal.engine.device import checked, or_cpu
    from xmodal.inference.model import TrainedModel, rebuild

    recipe = Recipe.model_validate(state["recipe"])
    return TrainedModel(
        model=rebuild(recipe, state["facts"], state["weights"], "the pickled estimator"),
        recipe=recipe,
        facts=state["facts"],
        raw=state["raw"],
        classes=state["classes"],
        run=runs.Run(Path(state["path"])),
        device=checked(or_cpu(device, warnings.warn)),
        note=warnings.warn,
    )
