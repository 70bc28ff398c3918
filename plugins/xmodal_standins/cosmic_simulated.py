"""The task ``cosmic-simulated``: find cosmic rays in simulated exposures. Needs no data at all.

It stands in for NAS-Bench-360's Cosmic where Hubble's images cannot be had: the same kinds of
input, labels, ignored pixels, sky that varies in training, sizes and score, but no real image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch.utils.data import Dataset

from xmodal.data import RawForm, Store
from xmodal.data.augment import AddMultiple, Augmented
from xmodal.data.datasets import DataCard, Preparation, cores
from xmodal.data.mapped import Array, ArrayWriter, Mapped, mean_and_deviation, open_mapped
from xmodal.data.progress import meter
from xmodal.errors import DataError, UsageError
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
from xmodal.ready import Ready
from xmodal.settings import Use, default
from xmodal_standins.cosmic_rays import Exposure, expose

SAMPLES = {"train": 4347, "validation": 483, "test": 420}
RESOLUTION = 128
FEWEST, SMALLEST = 3, 16
"""Images that can be split, and their least number of pixels per side."""
SIMULATOR = 1
"""Version of the computation; a new number makes new data."""
CHUNK = 50
CARD = DataCard(
    name="cosmic-simulated",
    benchmark="stand-in",
    source="simulated here; physics and constants: docs/tasks/cosmic-simulated.md",
    licence="yours",
    generable=True,
    prepared=520_000_000,
    note="stands in for cosmic; no real image is in it",
)


class CosmicSimulated(Task):
    """Cosmic rays in simulated images of a space telescope; 4,347 / 483 / 420 of 128 x 128."""

    citation = "after Zhang & Bloom 2020 (deepCR) and Tu et al. 2022 (NAS-Bench-360)"

    class Config(Settings):
        """How many images, and how large."""

        path: Path | None = Field(None, description="A prepared folder; default: generated.")
        samples: int | None = Field(
            None,
            ge=FEWEST,
            description="Images in all, split as the benchmark's (83, 9 and 8 %); null: 5,250.",
        )
        resolution: int = Field(RESOLUTION, ge=SMALLEST, le=1024, description="Pixels per side.")
        data_seed: int = Field(0, ge=0, description="Seed of the data, independent of the run's.")
        sky: tuple[float, float] = Field(
            (-0.9, 3.0),
            description="In training, a random multiple in this range of the sky's brightness is "
            "added.",
        )
        augment: bool = Field(True, description="Vary the sky in training.")
        loss: Use[Loss] = Field(default("bce"), description="The training loss.")
        metric: Use[Metric] = Field(default("pixel-auroc-error"), description="The score.")

        @model_validator(mode="after")
        def _ordered(self) -> CosmicSimulated.Config:
            if not self.sky[0] <= self.sky[1]:
                raise ValueError(f"sky: {self.sky[0]} is above {self.sky[1]}")
            return self

    config: Config

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """What is known of the data."""
        return CARD

    @classmethod
    def ready(cls, config: Any, store: Store) -> bool:
        """Always: what is not there is generated."""
        return True

    @classmethod
    def contents(cls, config: Any, store: Store) -> Mapping[str, str]:
        """The folder at ``path``. Generated data follow from the settings."""
        return {} if config.path is None else {"path": contents(config.path.expanduser())}

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts; they follow from the settings."""
        side = config.resolution
        return TaskFacts(
            name="cosmic-simulated",
            shape=(1, side, side),
            target=Target("dense", 1, (side, side)),
            samples=counts(config.samples),
            family="astronomy",
        )

    @classmethod
    def few(cls, config: Any, samples: int) -> Any:
        """As many in all at most, unless they are read."""
        if config.path is not None:
            return config
        fewer = min(config.samples or sum(SAMPLES.values()), max(samples, FEWEST))
        return config.model_copy(update={"samples": fewer})

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Generate; what was done before an interruption is kept in ``wanted.scratch``."""
        samples = wanted.samples or config.samples
        resolution = wanted.resolution or config.resolution
        if (samples is not None and samples < FEWEST) or resolution < SMALLEST:
            raise UsageError(
                f"--samples {samples}, --resolution {resolution}: at least {FEWEST} images of "
                f"{SMALLEST} pixels per side are needed"
            )
        sizes = counts(samples)
        generate(folder, wanted.scratch, sizes, resolution, config.data_seed, wanted.jobs)
        return _made_of(sizes, resolution, config.data_seed)

    def load(self, seed: int) -> TaskData:
        """Generate or read. The data do not depend on ``seed``."""
        config = self.config
        folder = self._folder()
        side, sizes = config.resolution, counts(config.samples)
        form = _form(folder, sizes["train"], side)
        assert form.scale is not None
        sky_N = np.array(open_mapped(folder / "sky.npy")) / float(form.scale)
        ends = np.cumsum([0, *sizes.values()])
        splits: dict[str, Dataset[Pair]] = {}
        for part, (start, end) in zip(sizes, pairwise(ends), strict=True):
            x, y, ignore = (folder / f"{name}.npy" for name in ("x", "y", "ignore"))
            rows = np.arange(start, end)
            plain = Mapped(x, y, rows, form.one, ignore)
            varies = config.augment and part != "test"
            change = AddMultiple(*config.sky)
            splits[part] = Augmented(plain, change, sky_N[rows]) if varies else plain
        return TaskData(
            train=splits["train"],
            validation=splits["validation"],
            test=splits["test"],
            checksum=Ready(folder, {}).checksum(),
            notes=("cosmic-simulated: simulated exposures, no real image",),
            images={"image": 0},
            raw=form,
        )

    def _folder(self) -> Path:
        config = self.config
        sizes = counts(config.samples)
        key = _made_of(sizes, config.resolution, config.data_seed)
        if config.path is not None:
            folder = config.path.expanduser()
            if not (folder / "x.npy").is_file():
                raise DataError(f"path: {folder} holds no x.npy; expected a prepared folder")
            shape = open_mapped(folder / "x.npy").shape
            expected = (sum(sizes.values()), 1, config.resolution, config.resolution)
            if shape != expected:
                raise DataError(f"path: x.npy has shape {shape}, the settings say {expected}")
            about = read_json(folder / "dataset.json")
            if wrong := [name for name in key if about.get(name, key[name]) != key[name]]:
                told = ", ".join(f"{name} {about[name]}, not {key[name]}" for name in wrong)
                raise DataError(f"path: {folder} was made with {told}")
            return folder
        ready = self.store.dataset(CARD)
        if ready is not None and key.items() <= read_json(ready / "dataset.json").items():
            return ready

        def make(folder: Path) -> None:
            generate(folder, None, sizes, config.resolution, config.data_seed, cores())

        return self.store.build("cosmic-simulated", key, make)


def _made_of(sizes: Mapping[str, int], resolution: int, seed: int) -> dict[str, Any]:
    """Everything that the data depend on."""
    return {
        "simulator": SIMULATOR,
        "samples": sum(sizes.values()),
        "resolution": resolution,
        "seed": seed,
    }


def counts(samples: int | None) -> dict[str, int]:
    """The sizes of the splits; of other numbers of samples in the proportions of the benchmark."""
    if samples is None:
        return dict(SAMPLES)
    test = max(1, round(samples * 0.08))
    validation = max(1, round(samples * 0.092))
    return {"train": samples - validation - test, "validation": validation, "test": test}


def generate(
    folder: Path,
    scratch: Path | None,
    sizes: Mapping[str, int],
    resolution: int,
    seed: int,
    jobs: int,
) -> None:
    """Write all images, masks and skies; sample n depends on (seed, n, resolution) alone."""
    total = sum(sizes.values())
    shape = (1, resolution, resolution)
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(ArrayWriter(folder / f"{name}.npy", form, kind, total))
            for name, form, kind in (
                ("x", shape, np.float32),
                ("y", shape, np.uint8),
                ("ignore", shape, np.uint8),
                ("sky", (), np.float64),
            )
        }
        count = stack.enter_context(meter("simulated exposures", total))
        for chunk in _chunks(scratch, total, resolution, seed, jobs):
            for name, writer in writers.items():
                writer.add(chunk[name])
            count(len(chunk["sky"]))


def _chunks(
    scratch: Path | None, total: int, resolution: int, seed: int, jobs: int
) -> Iterator[Mapping[str, Array]]:
    """The samples, ``CHUNK`` at a time; those that lie in ``scratch`` are not made again."""
    with ThreadPoolExecutor(jobs) as pool:
        for start in range(0, total, CHUNK):
            numbers = range(start, min(start + CHUNK, total))
            name = f"{SIMULATOR}-{seed}-{resolution}-{start}-{len(numbers)}.npz"
            kept = None if scratch is None else scratch / name
            if kept is not None and kept.is_file():
                with np.load(kept, allow_pickle=False) as pack:
                    yield {key: pack[key] for key in pack.files}
                continue
            made = list(pool.map(partial(expose, seed, resolution=resolution), numbers))
            chunk = _stacked(made)
            if kept is not None:
                unfinished = kept.with_suffix(".part")
                with unfinished.open("wb") as file:
                    np.savez(file, **chunk)  # type: ignore[arg-type]
                unfinished.replace(kept)
            yield chunk


def _stacked(made: list[Exposure]) -> dict[str, Array]:
    return {
        "x": np.stack([one.image for one in made])[:, None],
        "y": np.stack([one.hit for one in made])[:, None],
        "ignore": np.stack([one.ignore for one in made])[:, None],
        "sky": np.array([one.sky for one in made]),
    }


def _form(folder: Path, train: int, side: int) -> RawForm:
    """Mean 0 and deviation 1 over the training images."""
    found = mean_and_deviation(folder / "x.npy", range(train))
    mean, scale = (torch.full((1, 1, 1), value) for value in found)
    shape = (1, side, side)
    return RawForm(shape=shape, laid=shape, mean=mean, scale=scale, label_shape=shape)
