"""The base of PDEBench's tasks: predict a field at one later time from the field at the start.

As ORCA and PaRe use the benchmark: one step from the first to the last kept time, not PDEBench's
own autoregressive protocol. Data come from a file of the user's (``path``), from the cache (fetched
or generated once), or, with ``samples`` or ``resolution``, are generated for the recipe.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from xmodal.data import RawForm, Store
from xmodal.data.augment import Symmetry, shifted
from xmodal.data.datasets import DataCard, Preparation, cores
from xmodal.data.progress import meter
from xmodal.errors import DataError, UsageError
from xmodal.files import contents, read_json
from xmodal.interfaces import (
    Equation,
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
from xmodal_pdebench import arrays
from xmodal_pdebench.arrays import Making
from xmodal_pdebench.grids import Array
from xmodal_pdebench.layout import Floats
from xmodal_pdebench.problem import PDEProblem

TEST_SHARE = 0.1
RING = "shifts around the ring"
FEWEST, COARSEST = 10, 8
"""Samples that can be split, and points along each side that solvers need."""

_NRMSE: Any = "nrmse"


class PDESettings(Settings):
    """Which data to use, and how."""

    path: Path | None = Field(
        None,
        description="The published HDF5 file, the folder it is in, or a folder with x.npy and "
        "y.npy; default: the data set in the cache.",
    )
    samples: int | None = Field(
        None, ge=FEWEST, description="Generate so many samples for this recipe."
    )
    resolution: int | None = Field(
        None,
        ge=COARSEST,
        description="Generate for this recipe on a grid of so many points along each side.",
    )
    loader: Literal["paper", "released"] = Field(
        "paper",
        description="Grid of the samples: as the paper says (its Table 9), or thinned as the "
        "released loader does.",
    )
    validation: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the training part that validates: its last samples, in the order of "
        "the file. With protocol 'published' they train as well.",
    )
    loss: Use[Loss] = Field(_NRMSE, description="The training loss.")
    metric: Use[Metric] = Field(_NRMSE, description="The score.")

    @model_validator(mode="after")
    def _one_origin(self) -> PDESettings:
        if self.path is not None and (self.samples or self.resolution):
            raise ValueError(
                "'path' reads samples, 'samples' and 'resolution' generate them; set one or the "
                "other"
            )
        return self

    @property
    def generated(self) -> bool:
        """Whether the recipe asks for samples of its own."""
        return self.samples is not None or self.resolution is not None


class PDETask(Task):
    """A task of PDEBench; subclasses set ``problem``."""

    Config: ClassVar[type[Settings]] = PDESettings
    problem: ClassVar[PDEProblem]

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """The published file, and that it can be generated."""
        return cls.problem.card()

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Convert the published file, or generate. Raises DataError, UsageError."""
        problem = cls.problem
        if not wanted.generate:
            (path,) = wanted.files.values()
            with problem.layout.open(path) as published:
                if published.samples != problem.samples:
                    raise DataError(
                        f"{path}: holds {published.samples} samples, not the published "
                        f"{problem.samples}; to use it nevertheless, set task.path={path}"
                    )
                arrays.write(folder, published.samples, published.pieces())
            return {"samples": problem.samples, "made": "published"}
        samples = wanted.samples or problem.samples
        resolution = wanted.resolution or problem.points
        if samples < FEWEST:
            raise UsageError(f"--samples {samples}: at least {FEWEST} are needed to split them")
        if resolution < COARSEST:
            raise UsageError(f"--resolution {resolution}: at least {COARSEST} points are needed")
        making = cls.making(config)
        cls._generate(making, samples, resolution, folder, wanted.scratch, wanted.jobs)
        return {
            "samples": samples,
            "resolution": resolution,
            "made": "generated",
            "solver": making.name,
        }

    @classmethod
    def making(cls, config: Any) -> Making:
        """How samples are generated."""
        return cls.problem.making

    @classmethod
    def same(cls, config: Any) -> str:
        """What of the published data is generated again."""
        return cls.problem.same

    @classmethod
    def _generate(
        cls,
        making: Making,
        samples: int,
        resolution: int,
        folder: Path,
        scratch: Path,
        jobs: int,
    ) -> None:
        with meter(f"{cls.problem.title}, generated", samples, unit="samples") as count:
            arrays.generate(making, samples, resolution, folder, scratch, jobs, count)

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts; as published where the data are missing. Raises DataError."""
        problem = cls.problem
        samples, grid = problem.samples, problem.grid
        if config.generated:
            samples = config.samples or samples
            grid = tuple((config.resolution or side) for side in grid)
        elif config.path is not None:
            samples, grid = cls._found(config.path)
        elif (folder := store.dataset(cls.card(config))) is not None:
            x, _ = arrays.read(folder)
            samples, grid = len(x), x.shape[2:]
        grid = cls._kept(config, grid)
        channels = len(problem.layout.x), len(problem.layout.y)
        shapes = [cls.laid(config, (count, *grid)) for count in channels]
        parts = split(samples, problem.test, config.validation)
        return TaskFacts(
            name=f"pdebench/{problem.task or problem.name}",
            family="pde",
            shape=shapes[0],
            target=Target("dense", shapes[1][0], shapes[1][1:]),
            samples={name: len(rows) for name, rows in parts.items()},
            # Half as many points at most: on all of them a solver repeats what made the data.
            coarse=max(4, min(problem.coarse_points, grid[0] // 2)),
            equation=bool(problem.equation),
            symmetry=RING if problem.periodic else "",
            moves=grid[0] if problem.periodic else 1,
        )

    @classmethod
    def few(cls, config: Any, samples: int) -> Any:
        """As many in all at most, where a recipe generates its own."""
        if not config.generated:
            return config
        fewer = min(config.samples or cls.problem.samples, max(samples, FEWEST))
        return config.model_copy(update={"samples": fewer})

    @classmethod
    def coarse(cls, config: Any, x: Array, points: int, raw: RawForm) -> Array:
        """The solution on ``points`` points along each side; raises ArithmeticError."""
        stride = cls.problem.stride if config.loader == "released" else 1
        solved: Array = _named(cls.problem.coarse)(x, points, stride)
        return solved

    @classmethod
    def equation(cls, config: Any, points: int) -> Equation:
        """The equation, where the task has one of one field on a line without shocks."""
        if not cls.problem.equation:
            return super().equation(config, points)
        stride = cls.problem.stride if config.loader == "released" else 1
        found: Equation = _named(cls.problem.equation)(points, stride)
        return found

    @classmethod
    def laid(cls, config: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape ``[C, *grid]`` of inputs or labels, as the model sees it."""
        return shape

    @classmethod
    def _kept(cls, config: Any, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The grid that the loader keeps. Raises DataError."""
        stride = cls.problem.stride if config.loader == "released" else 1
        if any(side % stride for side in grid):
            raise DataError(
                f"the released loader keeps every {stride}th point, which {grid[0]} points do not "
                f"divide into; set task.resolution to a multiple of {stride}"
            )
        return tuple(side // stride for side in grid)

    @classmethod
    def _published_file(cls, path: Path) -> Path | None:
        """The HDF5 file at ``path``; None if there is a folder of arrays. Raises DataError."""
        path = path.expanduser()
        if path.is_file():
            return path
        if (path / cls.problem.file.name).is_file():
            return path / cls.problem.file.name
        if (path / arrays.X).is_file():
            return None
        what = "is not there" if not path.exists() else "holds neither"
        raise DataError(
            f"path: {path} {what}; expected {cls.problem.file.name}, or a folder with it or with "
            f"{arrays.X} and {arrays.Y}"
        )

    @classmethod
    def _found(cls, path: Path) -> tuple[int, tuple[int, ...]]:
        """Samples and grid at ``path``. Raises DataError."""
        file = cls._published_file(path)
        if file is None:
            x, _ = arrays.read(path.expanduser())
            return len(x), x.shape[2:]
        with cls.problem.layout.open(file) as published:
            return published.samples, cls.problem.grid

    @classmethod
    def contents(cls, config: Any, store: Store) -> Mapping[str, str]:
        """Of a folder with the published file, that file alone counts."""
        if config.path is not None and (file := cls._published_file(config.path)) is not None:
            return {"path": contents(file)}
        return super().contents(config, store)

    def load(self, seed: int) -> TaskData:
        """Read or generate, thin and split. The split is fixed."""
        config, problem = self.config, self.problem
        x_NCS, y_NCS, note = self._arrays()
        channels = len(problem.layout.x), len(problem.layout.y)
        if (x_NCS.shape[1], y_NCS.shape[1]) != channels or x_NCS.shape[2:] != y_NCS.shape[2:]:
            raise DataError(
                f"{problem.title}: inputs {list(x_NCS.shape)} and labels {list(y_NCS.shape)}; "
                f"expected {channels[0]} and {channels[1]} channels on one grid"
            )
        grid = self._kept(config, x_NCS.shape[2:])
        stride = x_NCS.shape[2] // grid[0]
        thin = (slice(None), slice(None), *[slice(None, None, stride)] * len(grid))
        x, y = (torch.from_numpy(array)[thin].contiguous() for array in (x_NCS, y_NCS))
        parts = split(len(x), problem.test, config.validation)
        return self.assemble(x, y, parts, filter(None, (note, repeated(x, parts))))

    def assemble(
        self, x: Tensor, y: Tensor, parts: Mapping[str, range], notes: Iterable[str]
    ) -> TaskData:
        """The data sets of samples ``x`` and labels ``y`` ``[N, C, *grid]``."""
        problem = self.problem
        raw = RawForm(
            shape=_squeezed(x.shape[1:]),
            laid=tuple(x.shape[1:]),
            label_shape=_squeezed(y.shape[1:]),
        )
        return TaskData(
            *datasets(x, y, parts),
            checksum=checksum(x, y),
            notes=tuple(notes),
            images=problem.images,
            raw=raw,
            symmetry=Symmetry(RING, x.shape[-1], shift) if problem.periodic else None,
        )

    def _arrays(self) -> tuple[Floats, Floats, str]:
        """Inputs and labels ``[N, C, *grid]``, and where they come from. Raises DataError."""
        config, problem, store = self.config, self.problem, self.store
        if config.generated:
            samples = config.samples or problem.samples
            resolution = config.resolution or problem.points
            x, y = arrays.read(self._on_the_fly(samples, resolution))
            return x, y, self._generated(samples, resolution)
        if config.path is not None:
            file = self._published_file(config.path)
            if file is None:
                x, y = arrays.read(config.path.expanduser())
                return x, y, f"{problem.title}: the arrays at {config.path}"
            return *arrays.read(self._converted(file)), f"{problem.title}: {file.name}"
        folder = store.dataset(self.card(config))
        if folder is None:
            raise DataError("\n".join(self.missing(config, store)))
        about = read_json(folder / "dataset.json")
        x, y = arrays.read(folder)
        if about.get("made") == "generated":
            wanted = self.making(config).name
            if about.get("solver") != wanted:
                raise DataError(
                    f"{folder}: generated by {about.get('solver')}, but the recipe wants {wanted}\n"
                    f"generate it again: xmodal data generate {problem.name} --again"
                )
            return x, y, self._generated(len(x), x.shape[2])
        return x, y, f"{problem.title}: the published file"

    def _generated(self, samples: int, resolution: int) -> str:
        problem = self.problem
        size = "x".join([str(resolution)] * len(problem.grid))
        published = samples == problem.samples and resolution == problem.points
        which = "" if published else f" (published: {problem.samples} on {problem.points})"
        return (
            f"{problem.title}: {samples} samples generated on {size} points{which}; "
            f"{self.same(self.config)}"
        )

    def _on_the_fly(self, samples: int, resolution: int) -> Path:
        making = self.making(self.config)
        key = {
            "problem": self.problem.name,
            "solver": making.name,
            "samples": samples,
            "resolution": resolution,
        }

        def make(folder: Path) -> None:
            scratch = folder / "pieces"
            self._generate(making, samples, resolution, folder, scratch, cores())
            for piece in scratch.iterdir():
                piece.unlink()
            scratch.rmdir()

        return self.store.build(f"pdebench-{self.problem.name}", key, make)

    def _converted(self, file: Path) -> Path:
        """The slices of a published file that the task uses, as arrays in the cache."""
        key = {"content": contents(file), "problem": self.problem.name}

        def make(folder: Path) -> None:
            with self.problem.layout.open(file) as published:
                arrays.write(folder, published.samples, published.pieces())

        return self.store.build(f"pdebench-{self.problem.name}-file", key, make)


def shift(x: Tensor, y: Tensor, element: int) -> Pair:
    """Move an input and its label on by so many points of a ring, together."""
    return shifted(x, element), shifted(y, element)


def split(samples: int, test: Literal["first", "last"], validation: float) -> dict[str, range]:
    """Rows of each split: a tenth tests, of the rest the last ``validation`` share validates.

    Raises DataError if there are too few samples.
    """
    if samples < FEWEST:
        raise DataError(f"{samples} samples cannot be split; at least {FEWEST} are needed")
    tests = int(samples * TEST_SHARE)
    fitting = range(tests, samples) if test == "first" else range(samples - tests)
    validates = min(max(1, round(len(fitting) * validation)), len(fitting) - 1)
    return {
        "train": fitting[:-validates],
        "validation": fitting[-validates:],
        "test": range(tests) if test == "first" else range(samples - tests, samples),
    }


def datasets(
    x: Tensor, y: Tensor, parts: Mapping[str, range]
) -> tuple[Dataset[Pair], Dataset[Pair], Dataset[Pair]]:
    """Training, validation and test samples, without a copy."""

    def part(name: str) -> Dataset[Pair]:
        rows = slice(parts[name].start, parts[name].stop)
        return cast("Dataset[Pair]", TensorDataset(x[rows], y[rows]))

    return part("train"), part("validation"), part("test")


def checksum(*tensors: Tensor) -> str:
    """SHA-256 over shapes and values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode())
        for part in torch.split(tensor, 256):
            digest.update(np.ascontiguousarray(part.numpy()).data)
    return digest.hexdigest()


def _named(function: str) -> Any:
    """The function 'module:name'."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A sample's shape without its axis of channels if there is one channel."""
    return tuple(shape[1:] if shape[0] == 1 else shape)


def repeated(x: Tensor, parts: Mapping[str, range]) -> str:
    """A note of how many test inputs of ``x`` ``[N, ...]`` are training inputs too, or ""."""
    seen = [hash(row.numpy().tobytes()) for row in x]
    train = {seen[i] for i in parts["train"]}
    again = sum(seen[i] in train for i in parts["test"])
    total = len(parts["test"])
    if not again:
        return ""
    return f"{again} of {total} test inputs equal a training input, so a look-up answers them"
