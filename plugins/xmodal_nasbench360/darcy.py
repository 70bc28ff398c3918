"""The task ``darcy``: predict the pressure u of Darcy flow from the permeability a (NAS-Bench-360).

Normalisation is as published: a and u have mean 0 and standard deviation 1 at every point, over the
training samples. Labels keep their physical unit; the task's decoder maps predictions back to it.
Losses and metrics are separate components.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from xmodal.data import RawForm, Store
from xmodal.data.augment import Symmetry, turned
from xmodal.data.datasets import DataCard, Preparation, State
from xmodal.errors import DataError
from xmodal.files import contents, read_json
from xmodal.interfaces import (
    Loss,
    Metric,
    Pair,
    Settings,
    Target,
    Task,
    TaskData,
    TaskFacts,
)
from xmodal.settings import Use
from xmodal_nasbench360 import darcy_prepared
from xmodal_nasbench360.darcy_data import (
    GENERATOR,
    PUBLISHED_GRID,
    TEST_STREAM,
    TRAIN_STREAM,
    Fields,
    generate,
    published_files,
    read_published,
)
from xmodal_nasbench360.darcy_samples import Grid, Placement, coarse_pressure
from xmodal_nasbench360.elliptic import Array

EPSILON = 1e-5
"""Added to every standard deviation, as published; it matters where u is 0 in all samples."""

COARSE = 29
"""Points per side of a coarse numerical solution: 2 % error in a few milliseconds."""

SQUARE = "the square's eight turns and mirrorings"

_NAME: Any = "relative-l2"
Pairs = tuple[Fields, Fields]


class Denormalise(nn.Module):
    """Maps normalised predictions ``[B, 1, R, R]`` to physical u: p * (std + 1e-5) + mean."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, prediction: Tensor) -> Tensor:
        """Decode a batch."""
        return prediction * (self.std + EPSILON) + self.mean


def _paired(x: Tensor, y: Tensor) -> Dataset[Pair]:
    """Inputs ``[n, C, R, R]`` and labels ``[n, 1, R, R]`` as a data set."""
    return cast("Dataset[Pair]", TensorDataset(x, y))


def deviation(a: Tensor) -> Tensor:
    """Standard deviation of a ``[n, 1, R, R]`` at every point ``[1, R, R]``.

    A point at which all samples are equal takes that of all points together. Its own, 0, would make
    a sample that differs there 900,000 (9 / 1e-5); 900 samples have no such point, 8 do.
    """
    return torch.where(a.amax(0) == a.amin(0), a.std(), a.std(0))


def coordinates(resolution: int) -> Tensor:
    """Positions in [0, 1] in two channels ``[2, R, R]``: along axis 1, then 0, as published."""
    line = torch.linspace(0, 1, resolution)
    return torch.stack(torch.meshgrid(line, line, indexing="xy"))


class Turn:
    """Turns and mirrors the square: permeability and pressure together.

    The grid, the source (1 everywhere) and the boundary (u = 0) stay where they are. What the model
    reads is standardised point by point, so a is turned in its own unit.
    """

    def __init__(self, raw: RawForm) -> None:
        assert raw.mean is not None
        assert raw.scale is not None
        self.mean, self.scale = raw.mean, raw.scale

    def __call__(self, x: Tensor, y: Tensor, element: int) -> Pair:
        """Move a sample ``[C, R, R]`` and its pressure ``[1, R, R]``; coordinates stay."""
        a = turned(x[:1] * self.scale + self.mean, element)
        return torch.cat([(a - self.mean) / self.scale, x[1:]]), turned(y, element)


class Darcy(Task):
    """Darcy flow, permeability to pressure (Li et al. 2021), as split by NAS-Bench-360."""

    class Config(Settings):
        """Which data to use; test samples have a random stream of their own."""

        resolution: int = Field(85, ge=3, description="Points per side of every sample.")
        solver_grid: int = Field(
            169, ge=5, le=841, description="Points per side of the generator; published: 421."
        )
        placement: Placement = Field(
            "node",
            description="Where the sample points lie: on nodes (u is exactly 0 on the boundary), "
            "or on cell centres, interpolated by splines as in the published files.",
        )
        train: int = Field(900, ge=2, description="Training samples.")
        validation: int = Field(100, ge=1, description="Validation samples.")
        test: int = Field(100, ge=1, description="Test samples.")
        data_seed: int = Field(0, ge=0, description="Seed of the data, independent of the run's.")
        path: Path | None = Field(
            None, description="Folder of the published .mat files, to read instead of generating."
        )
        prepared: bool = Field(
            False,
            description="Read the data set that 'xmodal data fetch darcy' or 'xmodal data generate "
            "darcy' made ready, instead of generating.",
        )
        coordinates: bool = Field(True, description="Append two channels with the coordinates.")
        loss: Use[Loss] = Field(_NAME, description="The training loss.")
        metric: Use[Metric] = Field(_NAME, description="The score.")

        @model_validator(mode="after")
        def _grids_nest(self) -> Darcy.Config:
            steps, side = self.solver_grid - 1, self.resolution - 1
            if self.prepared and self.path is not None:
                raise ValueError("'path' and 'prepared' both say which data to read; set one")
            if self.path is None and not self.prepared and steps % side:
                nearest = max(1, round(steps / side)) * side + 1
                raise ValueError(
                    f"solver_grid {self.solver_grid} cannot be thinned to resolution "
                    f"{self.resolution}: {steps} is not a multiple of {side}; try {nearest}"
                )
            return self

    config: Config

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """The published files."""
        return darcy_prepared.CARD

    @classmethod
    def ready(cls, config: Any, store: Store) -> bool:
        """Whether the data set is there, if the recipe asks for it; other data are generated."""
        return not config.prepared or store.dataset(darcy_prepared.CARD) is not None

    @classmethod
    def state(cls, config: Any, store: Store) -> State:
        """'ready' with the data set in the cache, or with files of the user's."""
        there = config.path is not None or store.dataset(darcy_prepared.CARD) is not None
        return "ready" if there else "generable"

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Thin the published files to 85 points per side, or generate.

        Raises DataError, and UsageError for samples or a resolution that cannot be made.
        """
        return darcy_prepared.prepare(wanted, folder)

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts; with ``path``, checks that the files exist. Raises DataError."""
        if config.path is not None:
            published_files(config.path)
        side = config.resolution
        return TaskFacts(
            name="darcy",
            family="pde",
            shape=(3 if config.coordinates else 1, side, side),
            target=Target("dense", 1, (side, side)),
            # Half as many points at most: on all of them a solver repeats what made the data.
            coarse=max(4, min(COARSE, side // 2)),
            samples={
                "train": config.train,
                "validation": config.validation,
                "test": config.test,
            },
            symmetry=SQUARE,
            moves=8,
        )

    @classmethod
    def few(cls, config: Any, samples: int) -> Any:
        """As many at most to train, where they are generated, and a quarter of that in the rest."""
        if config.path is not None or config.prepared:
            return config
        most = {"train": samples, "validation": samples // 4, "test": samples // 4}
        sizes = {part: min(getattr(config, part), count) for part, count in most.items()}
        return config.model_copy(update=sizes)

    @classmethod
    def contents(cls, config: Config, store: Store) -> Mapping[str, str]:
        """The published files or the data set, where they are read."""
        if config.prepared:
            found = store.dataset_digest(darcy_prepared.CARD)
            return {"prepared": found} if found else {}
        if config.path is None:
            return {}
        train, test = published_files(config.path)
        return {"path": contents({"train": train, "test": test})}

    def load(self, seed: int) -> TaskData:
        """Generate or read, split and normalise. The data do not depend on ``seed``."""
        config = self.config
        fitting = config.train + config.validation
        made = "published"
        if config.prepared:
            fit, test, made = self._prepared(fitting)
        elif config.path is None:
            fit, test = self._generated(fitting)
        else:
            fit, test = self._published(fitting)
        a = torch.from_numpy(np.concatenate([fit[0], test[0]])).unsqueeze(1)
        u = torch.from_numpy(np.concatenate([fit[1], test[1]])).unsqueeze(1)
        train_a, train_u = a[: config.train], u[: config.train]
        side = config.resolution
        raw = RawForm(
            shape=(side, side),
            laid=(1, side, side),
            mean=train_a.mean(0),
            scale=deviation(train_a) + EPSILON,
            extra=coordinates(side) if config.coordinates else None,
            label_shape=(side, side),
        )
        x = raw.apply(a)
        return TaskData(
            train=_paired(x[: config.train], train_u),
            validation=_paired(x[config.train : fitting], u[config.train : fitting]),
            test=_paired(x[fitting:], u[fitting:]),
            checksum=_checksum(*fit, *test),
            decode=Denormalise(train_u.mean(0), train_u.std(0)),
            notes=self._notes(made),
            images={"permeability a": 0},
            raw=raw,
            symmetry=Symmetry(SQUARE, 8, Turn(raw)),
        )

    @classmethod
    def coarse(cls, config: Any, x: Array, points: int, raw: RawForm) -> Array:
        """u on ``points`` points per side, from the nearest permeabilities; raises ArithmeticError.

        ``x`` is a, ``[n, 1, R, R]``; so is the result.
        """
        side = config.resolution
        if config.path is None and not config.prepared:
            given = Grid(side, config.solver_grid, config.placement).positions()
        else:
            given = Grid(side, PUBLISHED_GRID, "published").positions()
        return coarse_pressure(x, given, points)

    @classmethod
    def decoder(cls, config: Config, state: Mapping[str, Tensor]) -> nn.Module:
        """The map from normalised predictions back to physical u."""
        return Denormalise(state["mean"], state["std"])

    def _generated(self, fitting: int) -> tuple[Pairs, Pairs]:
        config, store = self.config, self.store
        grid = Grid(config.resolution, config.solver_grid, config.placement)
        seed = config.data_seed
        fit = generate(store, grid, seed, TRAIN_STREAM, fitting, "Darcy flow, training samples")
        test = generate(store, grid, seed, TEST_STREAM, config.test, "Darcy flow, test samples")
        return fit, test

    def _published(self, fitting: int) -> tuple[Pairs, Pairs]:
        config = self.config
        assert config.path is not None
        train_file, test_file = published_files(config.path)
        fit = read_published(self.store, train_file, config.resolution, fitting)
        test = read_published(self.store, test_file, config.resolution, config.test)
        return fit, test

    def _prepared(self, fitting: int) -> tuple[Pairs, Pairs, str]:
        config, folder = self.config, self.store.dataset(darcy_prepared.CARD)
        if folder is None:
            raise DataError("\n".join(self.missing(config, self.store)))
        fit = darcy_prepared.read(folder, "train", config.resolution, fitting)
        test = darcy_prepared.read(folder, "test", config.resolution, config.test)
        about = read_json(folder / "dataset.json")
        if about.get("solver", GENERATOR) != GENERATOR:
            raise DataError(
                f"{folder}: generated by version {about['solver']} of the solver, this is "
                f"{GENERATOR}\ngenerate it again: xmodal data generate darcy --again"
            )
        made = "published" if about.get("made") == "published" else str(about["resolution"])
        return fit, test, made

    def _notes(self, made: str) -> tuple[str, ...]:
        config = self.config
        if made != "published":
            return (
                "Darcy flow: the data set in the cache, generated with published placement and "
                f"solved on {made}x{made}; same distribution as the published data, but other "
                "samples",
            )
        if config.path is not None or config.prepared:
            return ("Darcy flow: the published files",)
        return (
            f"Darcy flow: generated from seed {config.data_seed}, {config.placement} placement, "
            f"solved on {config.solver_grid}x{config.solver_grid}; same distribution as the "
            "published data, but other samples",
        )


def _checksum(*arrays: Fields) -> str:
    """SHA-256 over the arrays' shapes and values."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
