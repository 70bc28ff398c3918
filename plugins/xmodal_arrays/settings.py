"""The settings that say where the data are and how to read them."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from xmodal.data.arrays import Axis
from xmodal.data.lengths import Rule
from xmodal.data.tables import TableFormat
from xmodal_arrays.layout import Channels, Form

Kind = Literal["auto", "classification", "regression", "multi-label", "dense"]


class DataSettings(TableFormat):
    """Where the data are and how to read them."""

    path: Path | None = Field(
        None, description="A file (.npz, .npy, .h5, .hdf5, .mat, .csv, .parquet) or a folder."
    )
    train: Path | None = Field(None, description="The training file; replaces path.")
    validation: Path | None = Field(None, description="The validation file (default: from train).")
    test: Path | None = Field(None, description="The test file; needs train.")
    x: str | tuple[str, ...] | None = Field(
        None,
        description="Key of the samples, or several keys: one a channel; columns of a table "
        "(default: all others).",
    )
    y: str | tuple[str, ...] | None = Field(
        None, description="Key of the labels, or column(s) of a table (default: the last)."
    )
    group: str | None = Field(
        None, description="Key or column of groups (patient, site); a group stays in one part."
    )
    time: str | None = Field(
        None,
        description="Key or column of when a sample was taken (numbers or dates): the earliest "
        "samples train, the latest test; it is no input itself. Default: parts are drawn at "
        "random.",
    )
    weight: str | None = Field(
        None,
        description="Key or column of how much each sample counts when a model is fitted (0 or "
        "more); it is no input itself. Scores count all samples alike.",
    )
    drop: tuple[str, ...] = Field((), description="Columns of a table to leave out.")
    categories: tuple[str, ...] = Field(
        (), description="Numeric columns that hold category codes; text columns need no entry."
    )
    samples: Axis = Field(
        "first", description="The axis of the arrays that counts samples; MATLAB's own order there."
    )
    lengths: Rule | None = Field(
        None,
        description="What to do with samples of unequal lengths: pad fills up at the end with the "
        "mean of each channel (NaN at the end of a sample is such filling, too), crop keeps the "
        "beginning, window cuts each into windows, which stay in one part and are scored together. "
        "Needed where a file holds samples of unequal lengths.",
    )
    length: int | None = Field(
        None,
        ge=1,
        description="Length of a sample after lengths; of a window. Default: the longest (pad) or "
        "the shortest (crop).",
    )
    stride: int | None = Field(
        None,
        ge=1,
        description="With lengths: window, values from the beginning of one window to that of the "
        "next. Default: length, so that windows do not overlap.",
    )
    kind: Kind = Field("auto", description="The kind of label in y.")
    classes: tuple[str, ...] = Field(
        (), description="Names of the classes 0, 1, ...; for text labels, the order of classes."
    )
    form: Form = Field("auto", description="The form of a sample.")
    channels: Channels = Field("auto", description="The axis of a sample's channels in the file.")
    split: tuple[float, float, float] = Field(
        (0.7, 0.15, 0.15),
        description="Shares for training, validation and test. If the test share is 0, the test "
        "score is that of the validation samples; if the validation share is 0 too, that of the "
        "training samples.",
    )
    split_seed: int | None = Field(
        0, ge=0, description="Seed of the split; null uses the run's seed."
    )
    folds: int | None = Field(
        None,
        ge=2,
        description="Cross-validation: cut what is not for testing into so many folds; one "
        "validates, the others train. Default: one cut, by split.",
    )
    fold: int = Field(
        0,
        ge=0,
        description="Which fold validates. From the number of folds on, they are cut anew: with "
        "folds: 5, fold 5 is the first of a second repetition.",
    )
    test_apart: bool = Field(
        False,
        description="Set the test samples apart and score none of them: for a search, whose trials "
        "must not see them. The test score is then that of the validation samples.",
    )
    refit: bool = Field(
        False,
        description="Validation samples train, too: for a last fit, whose settings are chosen. The "
        "training samples then choose the epoch.",
    )
    normalize: Literal["auto", "none", "standard"] = Field(
        "auto",
        description="standard: every channel or column gets mean 0 and standard deviation 1 over "
        "the training samples; auto: the same, but channels of two values become 0 and 1.",
    )
    normalize_labels: bool = Field(
        True,
        description="Whether the training loss sees labels that are numbers with mean 0 and "
        "standard deviation 1; false: in their own unit, as in the released methods.",
    )

    @field_validator("x", "y", "drop", "categories", "classes")
    @classmethod
    def _each_once(cls, names: Any, info: ValidationInfo) -> Any:
        if isinstance(names, tuple):
            twice = next((name for name, number in Counter(names).items() if number > 1), None)
            if twice is not None:
                raise ValueError(f"'{twice}' is named twice")
            if not names and info.field_name in ("x", "y"):
                raise ValueError("the list is empty; name a key or columns, or leave it out")
        return names

    @model_validator(mode="after")
    def _consistent(self) -> DataSettings:
        if (self.path is None) == (self.train is None):
            raise ValueError("set either path or train")
        if self.train is None and (self.validation or self.test):
            raise ValueError("validation and test go with train, not with path")
        if self.train is not None and self.test is None and self.tests:
            raise ValueError("train needs test; to split a single file, set path")
        train, validation, test = self.split
        if min(self.split) < 0 or not math.isclose(sum(self.split), 1, abs_tol=1e-6):
            raise ValueError("split needs three shares that add up to 1")
        if train == 0 or (validation == 0 and test > 0):
            raise ValueError(
                "split needs a training share above 0, and a test share needs a validation share"
            )
        if self.lengths == "window" and self.length is None:
            raise ValueError("lengths: window needs length, how many values a window has")
        if self.lengths != "window" and self.stride is not None:
            raise ValueError("stride goes with lengths: window")
        if self.folds is not None and (self.refit or self.validation is not None):
            raise ValueError("folds cut the training samples; leave out refit and validation")
        if self.folds is None and self.fold:
            raise ValueError("fold needs folds, how many there are")
        if self.time is not None and self.folds is not None and self.fold >= self.folds:
            raise ValueError("folds in time order cannot be cut anew, so fold is below folds")
        return self

    @property
    def tests(self) -> bool:
        """Whether samples are held out to test."""
        return self.split[2] > 0
