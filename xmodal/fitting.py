"""What ``FineTuner`` needs around a run: its recipes and overrides, a folder, quiet surroundings.

Everything here serves one call of ``fit``; the run itself is ``xmodal.api.run``.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from xmodal import runs
from xmodal.data.given import Form, Labels
from xmodal.data.store import Store
from xmodal.errors import DataError, Problem, RecipeError, UsageError
from xmodal.interfaces import Backbone
from xmodal.recipe import library
from xmodal.recipe.layers import COMMAND_LINE
from xmodal.recipe.model import Recipe
from xmodal.recipe.use import Use

if TYPE_CHECKING:
    from xmodal.engine.execute import Observer
    from xmodal.finetuner import FineTuner
    from xmodal.trained import Trained

_BODIES = {"image": "bodies/vision", "text": "bodies/text"}


def layers(method: str, backbone: Any, form: Form) -> list[str]:
    """The recipes of a fit: the method, the caller's data, and what goes with a body of its own."""
    named = "/" in method or library.looks_like_path(method)
    recipes = [method if named else f"methods/{method}", f"arrays/{form}"]
    body = None if backbone is None else _modality(backbone)
    return [*recipes, _BODIES[body]] if body in _BODIES else recipes


def _modality(backbone: Any) -> str | None:
    """What a body was trained on, to go with a source of that; None if its settings are wrong."""
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
    tuner: FineTuner, data: Path, told: Mapping[str, Any], labels: Labels, held: bool
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
    from xmodal.engine.execute import Interrupted

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
    from xmodal.engine import randomness

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


def packed(trained: Trained) -> dict[str, Any]:
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


def unpacked(state: Mapping[str, Any], device: str) -> Trained:
    """The trained model that ``packed`` made ``state`` of; on the CPU where ``device`` is not."""
    from xmodal.engine.device import checked, or_cpu
    from xmodal.engine.network import rebuild
    from xmodal.trained import Trained

    recipe = Recipe.model_validate(state["recipe"])
    return Trained(
        model=rebuild(recipe, state["facts"], state["weights"], "the pickled estimator"),
        recipe=recipe,
        facts=state["facts"],
        raw=state["raw"],
        classes=state["classes"],
        run=runs.Run(Path(state["path"])),
        device=checked(or_cpu(device, warnings.warn)),
        note=warnings.warn,
    )
