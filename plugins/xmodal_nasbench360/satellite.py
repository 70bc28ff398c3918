"""The task ``satellite``: land cover from a year of one pixel (Formosat-2; Petitjean et al. 2012).

46 values of the vegetation index, 24 classes, a million pixels. ORCA and PaRe read the values as
they are; NAS-Bench-360 standardises every series (``normalise: series``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from xmodal import ready
from xmodal.data import Store
from xmodal.data.datasets import DataCard, Preparation, RemoteFile
from xmodal.data.mapped import ArrayWriter, Mapped
from xmodal.data.unpickle import read_npy
from xmodal.errors import DataError
from xmodal.interfaces import Loss, Metric, Pair, Target, TaskFacts
from xmodal.settings import Use, default
from xmodal_nasbench360.parts import Array, Parts, PartsSettings, check_classes, check_count
from xmodal_nasbench360.scored import sizes

STEPS, CLASSES = 46, 24
COUNTS = {"train": 900_000, "test": 100_000}
_PIECE = 10_000
_DRIVE = {"train": "1TB38jKE1njCyo_M4P8iYvNmF6BV4T51f", "test": "1u8iakYN99Vea81ucDGtEYbRkCAR99pDL"}


class Satellite(Parts):
    """24 kinds of land from series of 46 steps; 800,000 train, 100,000 validate, 100,000 test."""

    citation = "Petitjean et al. 2012; Tu et al. 2022 (NAS-Bench-360)"
    data: ClassVar[DataCard] = DataCard(
        name="satellite",
        benchmark="NAS-Bench-360",
        source="Petitjean et al. 2012; packed by NAS-Bench-360, "
        "https://github.com/rtu715/NAS-Bench-360",
        licence="GPL (NAS-Bench-360's table)",
        size=357_000_000,
        prepared=185_000_000,
        files=tuple(
            RemoteFile(
                f"satellite_{part}.npy",
                urls=(f"https://pde-xd.s3.amazonaws.com/satellite/satellite_{part}.npy",),
                by_hand=f"Google Drive, file {drive}",
            )
            for part, drive in _DRIVE.items()
        ),
        stand_in="crop",
    )
    facts: ClassVar[TaskFacts] = TaskFacts(
        "satellite",
        (1, STEPS),
        Target("classification", CLASSES),
        {"train": 800_000, "validation": 100_000, "test": 100_000},
    )

    class Config(PartsSettings):
        """Where the series are, and what the model reads of them."""

        normalise: Literal["none", "series"] = Field(
            "none",
            description="none: as ORCA and PaRe; series: each with mean 0 and deviation 1, as "
            "NAS-Bench-360.",
        )
        validation: int = Field(
            100_000, ge=1, description="Validation series, taken from the end of the training file."
        )
        loss: Use[Loss] = Field(default("cross-entropy"), description="The training loss.")
        metric: Use[Metric] = Field(default("error-rate"), description="The score.")

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Check and copy the series, as float32; the values of the pickles are mapped."""
        counts = {}
        for part, published in COUNTS.items():
            path = wanted.files[f"satellite_{part}.npy"]
            content = read_npy(path, mapped=True)
            found = content.item() if content.shape == () else None
            if not isinstance(found, dict) or not {"data", "label"} <= found.keys():
                raise DataError(f"{path}: expected a dictionary with 'data' and 'label'")
            x = np.asanyarray(found["data"])
            if x.ndim != 2 or x.shape[1] != STEPS or x.dtype.kind not in "iuf":
                raise DataError(f"{path}: data {x.dtype} {x.shape}, expected numbers (n, {STEPS})")
            check_count(len(x), f"samples to {part}", published, config.partial)
            np.save(
                folder / f"{part}_y.npy", check_classes(path, found["label"], len(x), 1, CLASSES)
            )
            with ArrayWriter(folder / f"{part}_x.npy", (STEPS,), np.float32, len(x)) as writer:
                for start in range(0, len(x), _PIECE):
                    piece = x[start : start + _PIECE].astype(np.float32)
                    if not np.isfinite(piece).all():
                        raise DataError(f"{path}: has NaN, infinite or too large values")
                    writer.add(piece)
            counts[part] = len(x)
        return {"counts": counts}

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts; sizes are those published while the files are missing."""
        found = ready.look(cls, config, store)
        counts = COUNTS if found is None else found.about["counts"]
        whole = {part: len(index) for part, index in _rows(counts, config.validation).items()}
        facts = cls.facts
        return TaskFacts(facts.name, facts.shape, facts.target, sizes(whole, config.scored))

    def part(self, found: ready.Ready, part: str) -> Dataset[Pair]:
        """A part; validation is the end of the training file."""
        file = "test" if part == "test" else "train"
        rows = _rows(found.about["counts"], self.config.validation)[part]
        files = found / f"{file}_x.npy", found / f"{file}_y.npy"
        return self.held(Mapped(*files, rows, self.reader()))

    def reader(self) -> Callable[[Array], Tensor]:
        """The values as they are, or standardised."""
        return standardised if self.config.normalise == "series" else series

    def notes(self, found: ready.Ready) -> tuple[str, ...]:
        """What was normalised, and whether the data are all."""
        how = {"none": "values as they are", "series": "every series standardised"}
        said = [f"satellite: {how[self.config.normalise]}"]
        if dict(found.about["counts"]) != COUNTS:
            said.append(f"satellite: {found.about['counts']['train']:,} training series, not all")
        return tuple(said)


def series(raw: Array) -> Tensor:
    """``[..., 46]`` becomes ``[..., 1, 46]``."""
    return torch.from_numpy(np.ascontiguousarray(raw)).unsqueeze(-2)


def standardised(raw: Array) -> Tensor:
    """The same with mean 0 and deviation 1; a constant series becomes 0."""
    values = raw.astype(np.float64)
    spread = values.std(axis=-1, keepdims=True)
    values = (values - values.mean(axis=-1, keepdims=True)) / np.where(spread == 0, 1, spread)
    return series(values.astype(np.float32))


def _rows(counts: Mapping[str, int], validation: int) -> dict[str, Array]:
    known = counts["train"]
    if known <= validation:
        raise DataError(
            f"validation takes {validation:,} of {known:,} series and leaves none to train on"
        )
    return {
        "train": np.arange(known - validation),
        "validation": np.arange(known - validation, known),
        "test": np.arange(counts["test"]),
    }
