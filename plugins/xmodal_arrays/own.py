"""Tells which recipe reads a file of the user's own, from its name and its headers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from xmodal.data.tables import SUFFIXES as TABLES
from xmodal.errors import DataError
from xmodal_arrays.layout import layout
from xmodal_arrays.locate import SUFFIXES, array_parts, channels_of, sources
from xmodal_arrays.settings import DataSettings


def recipe(path: Path, settings: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """``arrays/row``, ``arrays/sequence`` or ``arrays/grid``, and where task ``arrays`` finds it.

    ``settings`` of the task say more. None for what is no data; DataError for data that cannot be
    read.
    """
    if path.suffix.lower() not in SUFFIXES and not _holds_data(path):
        return None
    with_test = any(settings.get(name) is not None for name in ("validation", "test"))
    where = {"train" if with_test else "path": str(path.absolute())}
    given = {key: value for key, value in settings.items() if key in DataSettings.model_fields}
    try:
        chosen = DataSettings.model_validate({**given, **where})
    except ValidationError:  # which composing the recipe reports better, with the place
        chosen = DataSettings.model_validate({"path": str(path.absolute())})
    return f"arrays/{_form(chosen)}", where


def _holds_data(path: Path) -> bool:
    """Whether a folder has files of data: in it, or a folder of samples (x/0.npy)."""
    if not path.is_dir():
        return False
    found = (file for pattern in ("*", "*/*.npy") for file in path.glob(pattern))
    return any(file.suffix.lower() in SUFFIXES for file in found)


def _form(settings: DataSettings) -> str:
    """The form of the samples. Raises DataError."""
    if any(path.suffix.lower() in TABLES for _, path in sources(settings)):
        return "row"
    arrays = array_parts(settings)
    part = arrays.parts[0]
    sample, label = part.x.shape[1:], part.y.shape[1:]
    try:
        return layout(sample, settings.form, channels_of(settings, arrays, sample), label).form
    except ValueError as error:
        raise DataError(f"{part.x_name}: {error}") from error
