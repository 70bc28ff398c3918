"""The user's own data as a task: located, interpreted, checked, split and standardised.

Notes report everything that is inferred, and a setting can override each inference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from xmodal.data import RawForm, Store, tables
from xmodal.data.arrays import Array, Indices
from xmodal.data.splits import in_folds, split, split_in_time
from xmodal.data.tables import SUFFIXES as TABLES
from xmodal.errors import DataError
from xmodal.files import contents
from xmodal.interfaces import Loss, Metric, Pair, Task, TaskData, TaskFacts
from xmodal.settings import Use
from xmodal.text import plural, shortlist
from xmodal_arrays.labels import FileLabels, read_labels
from xmodal_arrays.layout import Layout, layout
from xmodal_arrays.locate import (
    ArrayParts,
    FilePart,
    Role,
    array_parts,
    channels_of,
    data_files,
    sources,
)
from xmodal_arrays.samples import Affine, FileSamples, scan
from xmodal_arrays.settings import DataSettings
from xmodal_arrays.tables import Encoded, read_tables

_DEFAULTS = {
    "classification": ("cross-entropy", "error-rate"),
    "regression": ("mse", "rmse"),
    "multi-label": ("bce", "auroc-error"),
    "regression of several": ("mse", "r2-error"),  # their units may differ
    "dense": ("relative-l2", "relative-l2"),
    "binary": ("bce", "balanced-error"),
}
_ROLES: tuple[Role, ...] = ("train", "validation", "test")
_BY_RECORDING = {
    "error-rate": "grouped-error-rate",
    "rmse": "grouped-rmse",
    "auroc-error": "grouped-average-precision-error",
}
"""The usual metrics where a recording is cut into windows: one prediction a recording."""
_OF_ARRAYS = ("form", "channels", "samples", "lengths", "length", "stride")
_OF_TABLES = ("drop", "categories", "separator", "decimal", "encoding", "quote", "missing")
Scale = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class FilePlan:
    """Everything that is known before samples are read: parts, layout, labels, notes."""

    parts: tuple[FilePart, ...]
    layout: Layout
    labels: FileLabels
    levels: tuple[int, ...]
    notes: tuple[str, ...]
    table: Encoded | None = None
    arrays: ArrayParts | None = None

    @property
    def padded(self) -> int | None:
        """The axis of a raw sample that may end with NaN, None if there is none."""
        return self.arrays.padded if self.arrays is not None else None

    @property
    def windows(self) -> bool:
        """Whether samples are windows of recordings."""
        return self.arrays is not None and self.arrays.window is not None


@dataclass(frozen=True, eq=False)
class Share:
    """The rows of a part that serve one role: train, validate or test."""

    part: int
    rows: Indices


def understand(settings: DataSettings) -> FilePlan:
    """Locate the data, and infer their meaning from headers and labels. Raises DataError."""
    files, table, arrays = sources(settings), None, None
    tabular = {path.suffix.lower() in TABLES for _, path in files}
    if tabular == {True, False}:
        raise DataError(f"{files[0][1]} and {files[-1][1]}: tables and arrays cannot be mixed")
    _require_use(settings, files[0][1], tabular == {True})
    if tabular == {True}:
        table = read_tables(files, settings)
        parts, levels, notes = table.parts, table.levels, table.notes
        found = Layout("row", (len(levels),))
    else:
        arrays = array_parts(settings)
        parts, levels, notes = list(arrays.parts), (), arrays.notes
        sample, label = parts[0].x.shape[1:], parts[0].y.shape[1:]
        try:
            found = layout(sample, settings.form, channels_of(settings, arrays, sample), label)
        except ValueError as error:
            raise DataError(f"{parts[0].x_name}: {error}") from error
        if found.form == "row":
            levels = (0,) * found.shape[0]
    labels = read_labels(parts, settings, found)
    count = sum(part.x.shape[0] for part in parts)
    if table is None:
        way = "(set form: or channels: to change)"
        read = f"{count:,} samples of shape {found.shape} read as {found.form} {way}"
    else:
        read = f"{count:,} rows of {plural(found.shape[0], 'value')}"
    called, change = "y", "kind:"
    if table is not None:
        called, change = f"y '{shortlist(table.labels)}'", "y: or kind:"
    line = f"arrays: {read}; {called} {labels.read_as} (set {change} to change)"
    return FilePlan(
        tuple(parts), found, labels, levels, (line, *notes, *labels.notes), table, arrays
    )


def _require_use(settings: DataSettings, path: Path, table: bool) -> None:
    """Raise DataError for a setting that means nothing for such a file: it would be ignored."""
    for name in _OF_ARRAYS if table else _OF_TABLES:
        value, usual = getattr(settings, name), DataSettings.model_fields[name].default
        if value in (usual, "row"):
            continue
        why = (
            "a table, whose samples are rows (arrays/row); for others save an array (.npz)"
            if table
            else "arrays; only tables (.csv, .parquet) have named columns and text"
        )
        said = shortlist(value) if isinstance(value, tuple) else value
        raise DataError(f"{path}: '{name}: {said}' means nothing for {why}")


def shares(plan: FilePlan, settings: DataSettings, seed: int) -> dict[str, Share]:
    """The rows for training, validation and test. Raises DataError if a share would be empty."""
    by_role = {part.role: index for index, part in enumerate(plan.parts)}
    result: dict[str, Share] = {
        role: Share(by_role[role], np.arange(plan.parts[by_role[role]].x.shape[0]))
        for role in _ROLES
        if role in by_role
    }
    fractions = dict(zip(_ROLES, settings.split, strict=True))
    missing = [role for role in _ROLES if role not in result and fractions[role] > 0]
    if missing:
        result |= _cut(plan, settings, seed, by_role, missing)
    if settings.test_apart:
        result.pop("test", None)
    if settings.folds is not None:
        result |= _folded(plan, settings, seed, settings.folds, result)
    if settings.refit:
        result |= _rejoined(result)
    result.setdefault("validation", result["train"])
    result.setdefault("test", result["validation"])
    return result


def _folded(
    plan: FilePlan, settings: DataSettings, seed: int, folds: int, cut: Mapping[str, Share]
) -> dict[str, Share]:
    """One fold of the samples that are not for testing to validate, the others to train."""
    part = cut["train"].part
    if "validation" in cut and cut["validation"].part != part:
        where = plan.parts[cut["validation"].part].x_name
        raise DataError(
            f"{where}: validation samples of their own leave nothing to fold; drop folds"
        )
    rows = np.sort(np.concatenate([cut[r].rows for r in ("train", "validation") if r in cut]))
    repetition, fold = divmod(settings.fold, folds)
    seed = (seed if settings.split_seed is None else settings.split_seed) + repetition
    strata_N, groups_N = _strata(plan, part), plan.parts[part].group
    strata_M = None if strata_N is None else strata_N[rows]
    groups_M = None if groups_N is None else groups_N[rows]
    time_N = plan.parts[part].time
    try:
        if time_N is not None:
            # Each fold validates a stretch of time, and all before it trains.
            found = split_in_time(time_N[rows], [1 / (folds + 1)] * (folds + 1), groups_M)
            past = np.sort(np.concatenate(found[: fold + 1]))
            return {
                "train": Share(part, rows[past]), "validation": Share(part, rows[found[fold + 1]])
            }  # fmt: skip
        found = in_folds(len(rows), folds, seed, strata_M, groups_M)
    except DataError as error:
        raise DataError(f"{plan.parts[part].x_name}: {error}") from error
    validates_N = np.zeros(len(rows), dtype=bool)
    validates_N[found[fold]] = True
    if strata_M is not None and groups_N is None:
        # The only sample of a class has to train.
        _, class_N, count = np.unique(strata_M, return_inverse=True, return_counts=True)
        validates_N &= count[class_N] > 1
    return {
        "train": Share(part, rows[~validates_N]),
        "validation": Share(part, rows[validates_N]),
    }


def _rejoined(cut: Mapping[str, Share]) -> dict[str, Share]:
    """Training and validation samples together, where both are of one file."""
    train, other = cut["train"], cut.get("validation")
    if other is None or other is train or other.part != train.part:
        return {}
    both = Share(train.part, np.sort(np.concatenate([train.rows, other.rows])))
    return {"train": both, "validation": both}


def _cut(
    plan: FilePlan,
    settings: DataSettings,
    seed: int,
    by_role: Mapping[Role, int],
    missing: list[Role],
) -> dict[str, Share]:
    """Cut one file into all shares, or training samples into training and validation."""
    index = by_role.get("all", by_role.get("train", 0))
    wanted = [role for role in _ROLES if role == "train" or role in missing]
    part, fractions = plan.parts[index], dict(zip(_ROLES, settings.split, strict=True))
    strata_N = _strata(plan, index)
    seed = seed if settings.split_seed is None else settings.split_seed
    sizes = [fractions[role] for role in wanted]
    try:
        if part.time is not None:
            cut = split_in_time(part.time, sizes, part.group)
        else:
            cut = split(part.x.shape[0], sizes, seed, strata_N, part.group)
    except DataError as error:
        raise DataError(f"{part.x_name}: {error}") from error
    return {role: Share(index, rows) for role, rows in zip(wanted, cut, strict=True)}


def _strata(plan: FilePlan, part: int) -> Array | None:
    """The class of every sample of a part; None for other labels than classes."""
    if plan.labels.target.kind != "classification":
        return None
    return plan.labels.rows[part].read(slice(None))


def _default(data: Mapping[str, Any], which: int) -> dict[str, str]:
    try:
        labels = understand(DataSettings.model_construct(**data)).labels
    except DataError:
        # ``describe`` soon meets the same error and reports it in full.
        return {"use": _DEFAULTS["classification"][which]}
    kind: str = "binary" if labels.binary else labels.target.kind
    if kind == "regression" and labels.target.size > 1:
        kind = "regression of several"
    name = _DEFAULTS[kind][which]
    if which == 1 and data.get("lengths") == "window":
        name = _BY_RECORDING.get(name, name)
    return {"use": name}


def _default_loss(data: dict[str, Any]) -> Use[Loss]:
    return cast("Use[Loss]", _default(data, 0))


def _default_metric(data: dict[str, Any]) -> Use[Metric]:
    return cast("Use[Metric]", _default(data, 1))


class Arrays(Task):
    """The user's own data: .npz, .npy, .h5, .csv or .parquet."""

    class Config(DataSettings):
        """Where the data are, how to read them, and what to learn."""

        loss: Use[Loss] = Field(
            default_factory=_default_loss, description="Default: the usual loss for y's kind."
        )
        metric: Use[Metric] = Field(
            default_factory=_default_metric, description="Default: the usual metric for y's kind."
        )

    @classmethod
    def describe(cls, config: Config, store: Store) -> TaskFacts:
        """Facts from headers and labels; samples of arrays are not read."""
        plan = understand(config)
        counts = {role: len(share.rows) for role, share in shares(plan, config, 0).items()}
        where = cast("Path", config.path or config.train)
        name = f"arrays/{where.stem}"
        weighted = config.weight is not None
        return TaskFacts(
            name, plan.layout.shape, plan.labels.target, counts, plan.levels, weighted=weighted
        )

    @classmethod
    def contents(cls, config: Config, store: Store) -> Mapping[str, str]:
        """All files that are read, by the role of their samples."""
        named = ["path"] if config.path is not None else list(_ROLES)
        found = contents(data_files(config))
        return {name: found for name in named if getattr(config, name) is not None}

    def load(self, seed: int) -> TaskData:
        """Check every value, split, and standardise by the training samples only."""
        plan = understand(self.config)
        tables.forget()
        split_of = shares(plan, self.config, seed)
        train = split_of["train"]
        form = _raw_form(plan, self._input_scale(plan, train), self.config)
        standardises = self.config.normalize_labels and self.config.loss.component.standardises
        form, decode = _label_scale(plan, train, form, standardises)

        @cache  # a share with two roles is one object, so the engine can recognise it
        def samples(share: Share) -> Dataset[Pair]:
            rows = plan.labels.rows[share.part]
            part = plan.parts[share.part]
            names = part.x_name, part.y_name
            own = FileSamples(part.x, rows, share.rows, plan.labels.layout, form, *names)
            return own.fitted()

        sets = {role: samples(share) for role, share in split_of.items()}
        sizes = ", ".join(f"{len(split_of[role].rows):,}" for role in _ROLES)
        notes = (*plan.notes, f"arrays: {sizes} samples to train, validate and test")
        metric = self.config.metric.name
        if plan.windows and plan.labels.layout is None and not metric.startswith("grouped-"):
            notes += (
                f"arrays: {metric} scores windows one by one; metrics called grouped-... score "
                "recordings",
            )
        if split_of["test"] is split_of["validation"]:
            again = "training" if split_of["test"] is train else "validation"
            notes += (f"arrays: no test samples; the test score is that of the {again} samples",)
        return TaskData(
            sets["train"],
            sets["validation"],
            sets["test"],
            checksum=contents(data_files(self.config)),
            decode=decode,
            notes=notes + tuple(_class_notes(plan, split_of)),
            classes=plan.labels.classes,
            raw=form,
            groups=_groups(plan, split_of),
            weights=_weights(plan, split_of),
            rows={
                r: torch.from_numpy(share.rows.astype(np.int64)) for r, share in split_of.items()
            },
        )

    @classmethod
    def decoder(cls, config: Config, state: Mapping[str, Tensor]) -> nn.Module:
        """The map to the unit of the labels, for a loss that needs that unit."""
        return Affine(state["mean"], state["deviation"]) if state else nn.Identity()

    def _input_scale(self, plan: FilePlan, train: Share) -> Scale:
        """Scan all samples; return mean and scale of the training samples, None if not wanted."""
        row = plan.layout.form == "row"
        scale: Scale = (None, None)
        for index, part in enumerate(plan.parts):
            rows = train.rows if index == train.part else np.array([], dtype=np.int64)
            moments = scan(part.x, plan.layout, part.x_name, rows, row, plan.padded)
            if index == train.part and self.config.normalize == "none":
                hint = "standardise them (normalize: auto) or scale them"
                moments.require_float32(part.x_name, hint)
            elif index == train.part:
                mean_C, scale_C = moments.input_scale(keep_two=self.config.normalize == "auto")
                if row:
                    coded_C = np.array(plan.levels) > 0
                    mean_C, scale_C = np.where(coded_C, 0, mean_C), np.where(coded_C, 1, scale_C)
                scale = _over(plan.layout, mean_C), _over(plan.layout, scale_C)
        return scale


def _over(layout: Layout, values_C: Array) -> Tensor:
    """A number for each channel as a tensor that broadcasts over samples."""
    return torch.from_numpy(values_C.reshape(-1, *(1,) * (len(layout.shape) - 1)))


def _raw_form(plan: FilePlan, scale: Scale, settings: DataSettings) -> RawForm:
    """A record of the samples' layout, coding and standardisation."""
    table, y, part = plan.table, plan.labels.layout, plan.parts[0]
    arrays = plan.arrays
    return RawForm(
        shape=part.x.shape[1:],
        laid=plan.layout.shape,
        channel=plan.layout.channel,
        mean=scale[0],
        scale=scale[1],
        columns=() if table is None else table.form.features,
        levels=() if table is None else table.form.levels,
        missing=plan.layout.form == "row",
        label_shape=part.y.shape[1:],
        label_channel=None if y is None else y.channel,
        label_columns=() if table is None else table.labels,
        table=None if table is None else table.form,
        x_keys=() if arrays is None else arrays.x_keys,
        y_keys=() if arrays is None else arrays.y_keys,
        samples=settings.samples,
        padded=plan.padded,
        window=None if arrays is None else arrays.window,
        window_axis=None if arrays is None or arrays.window is None else arrays.time,
    )


def _label_scale(
    plan: FilePlan, train: Share, form: RawForm, standardises: bool
) -> tuple[RawForm, nn.Module]:
    """Check labels that are numbers, and standardise them: in the data, or in the predictions.

    Where the loss reads labels in their own unit, the predictor is decoded to that unit.
    """
    labels = plan.labels
    numbers = labels.target.kind == "regression" or labels.layout is not None
    decode: nn.Module = nn.Identity()
    if not numbers:
        return form, decode
    found = labels.layout or Layout("row", (labels.target.size,))
    for index, part in enumerate(plan.parts):
        rows = train.rows if index == train.part else np.array([], dtype=np.int64)
        moments = scan(labels.rows[index], found, part.y_name, rows)
        if index != train.part or labels.binary:
            continue
        if moments.constant_C.all():
            raise DataError(f"{part.y_name} is constant in the training samples: nothing to learn")
        mean, scale = (_over(found, values_C) for values_C in moments.label_scale())
        if standardises:
            form = replace(form, label_mean=mean, label_scale=scale)
        else:
            hint = "the loss reads labels as they are: scale them, or set another loss"
            moments.require_float32(part.y_name, hint)
            decode = Affine.of(mean, scale)
    return form, decode


def _groups(plan: FilePlan, split_of: Mapping[str, Share]) -> Mapping[str, Tensor]:
    """The number of each sample's group, by split; the same group has the same number in all folds.

    Windows are grouped by recording: they are scored together, whatever else they have in common.
    """
    groups = [part.group if part.record is None else part.record for part in plan.parts]
    known = [group for group in groups if group is not None]
    if not known:
        return {}
    names = np.unique(np.concatenate(known))
    found = {}
    for role, share in split_of.items():
        group = groups[share.part]
        if group is not None:
            found[role] = torch.from_numpy(np.searchsorted(names, group[share.rows]))
    return found


def _weights(plan: FilePlan, split_of: Mapping[str, Share]) -> Mapping[str, Tensor]:
    """The weight of each sample, by split; 1 in a part that has none beside one that has.

    Raises DataError if no training sample counts.
    """
    if all(part.weight is None for part in plan.parts):
        return {}
    found = {}
    for role, share in split_of.items():
        weight = plan.parts[share.part].weight
        own = np.ones(len(share.rows)) if weight is None else weight[share.rows]
        found[role] = torch.from_numpy(own)
    if not found["train"].any():
        where = plan.parts[split_of["train"].part].x_name
        raise DataError(f"{where}: all training samples have weight 0")
    return found


def _class_notes(plan: FilePlan, split_of: Mapping[str, Share]) -> list[str]:
    """Notes on classes missing from a part, and on groups that are in two files.

    Raises DataError if training lacks a class.
    """
    notes = []
    if plan.labels.target.kind == "classification":
        for role, share in split_of.items():
            present = np.unique(plan.labels.rows[share.part].read(share.rows))
            lacking = np.setdiff1d(np.arange(len(plan.labels.classes)), present)
            names = shortlist(repr(plan.labels.classes[label]) for label in lacking)
            if len(lacking) and role == "train":
                raise DataError(
                    f"{plan.parts[share.part].y_name}: no training sample of class {names}; "
                    "choose another split_seed"
                )
            if len(lacking):
                notes.append(f"arrays: the {role} part has no sample of class {names}")
    groups = {
        role: set(group[share.rows].tolist())
        for role, share in split_of.items()
        if (group := plan.parts[share.part].group) is not None
    }
    for role in ("validation", "test"):
        both = groups.get("train", set()) & groups.get(role, set())
        if both:
            notes.append(f"arrays: {len(both)} groups are in both the train and the {role} file")
    return notes
