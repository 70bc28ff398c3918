"""The settings that say where the data are and how to read them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from xmodal.interfaces import Settings
from xmodal_arrays.layout import Channels, Form

Kind = Literal["auto", "classification", "regression", "multi-label", "dense"]


class DataSettings(Settings):
    """Where the data are and how to read them."""

    path: Path | None = Field(
        None, description="A file (.npz, .npy, .csv, .parquet, .h5, .hdf5) or a folder of them."
    )
    train: Path | None = Field(None, description="Instead of path: the training file.")
    validation: Path | None = Field(None, description="The validation file; else cut from train.")
    test: Path | None = Field(None, description="The test file; needs train.")
    x: str | tuple[str, ...] | None = Field(
        None, description="Key of the samples, or columns of a table (default: all others)."
    )
    y: str | tuple[str, ...] | None = Field(
        None, description="Key of the labels, or column(s) of a table (default: the last)."
    )
    group: str | None = Field(
        None, description="Key or column whose equal values (patient, site) stay in one part."
    )
    drop: tuple[str, ...] = Field((), description="Columns of a table to leave out.")
    categories: tuple[str, ...] = Field(
        (), description="Columns of numbers that are codes; text columns are categories anyway."
    )
    kind: Kind = Field("auto", description="What y is.")
    classes: tuple[str, ...] = Field(
        (), description="Names of the classes 0, 1, ...; for text labels, their order."
    )
    form: Form = Field("auto", description="What a sample is.")
    channels: Channels = Field("auto", description="Where a sample's channels are in the file.")
    split: tuple[float, float, float] = Field(
        (0.7, 0.15, 0.15),
        description="Shares that train, validate and test. Without a share to test (0), the "
        "validation samples are scored again; without one to validate, the training samples.",
    )
    split_seed: int | None = Field(
        0, ge=0, description="Draws the split; null ties it to the run's seed."
    )
    normalize: Literal["auto", "none", "standard"] = Field(
        "auto",
        description="standard: every channel or column has mean 0 and deviation 1 in training "
        "samples; auto: the same, but 0/1 channels stay as they are.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> DataSettings:
        if (self.path is None) == (self.train is None):
            raise ValueError("set either path or train")
        if self.train is None and (self.validation or self.test):
            raise ValueError("validation and test go with train, not with path")
        if self.train is not None and self.test is None and self.tests:
            raise ValueError("train needs test; for one file to be split, set path")
        train, validation, test = self.split
        if min(self.split) < 0 or not math.isclose(sum(self.split), 1, abs_tol=1e-6):
            raise ValueError("split needs three shares that add up to 1")
        if train == 0 or (validation == 0 and test > 0):
            raise ValueError("split needs a share to train, and one to validate where one tests")
        return self

    @property
    def tests(self) -> bool:
        """Whether samples are held out to test."""
        return self.split[2] > 0
