"""The task ``ninapro``: hand gestures from the muscles of the forearm (NinaPro DB5).

16 electrodes, 52 steps (0.26 s at 200 Hz): a window is an image of one channel. NAS-Bench-360 split
the windows at random, not the people: windows of one movement are in several parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from xmodal.data.datasets import DataCard, Preparation, RemoteFile
from xmodal.data.mapped import ArrayWriter
from xmodal.data.unpickle import read_npy
from xmodal.errors import DataError
from xmodal.interfaces import Loss, Metric, Target, TaskFacts
from xmodal.settings import Use, default
from xmodal_nasbench360.parts import Array, Parts, PartsSettings, check_classes, check_count

STEPS, ELECTRODES, CLASSES = 52, 16, 18
FILES = {"train": "train", "validation": "val", "test": "test"}
# MD5 sums as another project pinned them; files in NAS-Bench-360's Google Drive.
_KNOWN = {
    "ninapro_train": ("d4c33785587983348e6091e86a0d30b6", "1zcrpm9gPwKk_neZNJ6TygAq8Udmuc4LD"),
    "label_train": ("4164e7fcae3f8abed0a04fd86b704f77", "1xYd5EqUwxp0wBoIXfFSS6FjjdhVD1z-k"),
    "ninapro_val": ("138b106d4374a3fc204e41f6c4deda49", "1UYMJBh1T8ioLamefI-15QtHrx5yyyDtj"),
    "label_val": ("f0464819f7ed56cb1cbbfafd312bd604", "1pCRBQjgkx2yyf8K0ReOYmcY1l3BlJgci"),
    "ninapro_test": ("8a2b2cf87d5a5cf3986db2d67ebcfa18", "1rtZvlLnGvK9XSujVyH-faixpvMHLEiSV"),
    "label_test": ("807b502000dba69ae0111063970ac5d2", "1-PcyUoOmcFBUexSILpZYndiEioldzxMR"),
}


def _default_loss() -> Any:
    # The released loss is the focal loss without focus: the cross-entropy.
    return {"use": "focal", "gamma": 0.0}


class NinaPro(Parts):
    """18 gestures from windows of 16 electrodes; 2,638 train, 659 validate, 659 test."""

    citation = "Pizzolato et al. 2017 (NinaPro DB5); Tu et al. 2022 (NAS-Bench-360)"
    data: ClassVar[DataCard] = DataCard(
        name="ninapro",
        benchmark="NAS-Bench-360",
        source="Pizzolato et al. 2017, http://ninapro.hevs.ch; packed by NAS-Bench-360, "
        "https://github.com/rtu715/NAS-Bench-360",
        licence="CC BY-ND (NAS-Bench-360's table)",
        size=27_000_000,
        prepared=14_000_000,
        files=tuple(
            RemoteFile(
                f"{name}.npy",
                urls=(f"https://pde-xd.s3.amazonaws.com/ninapro/{name}.npy",),
                md5=md5,
                by_hand=f"Google Drive, file {drive}",
            )
            for name, (md5, drive) in _KNOWN.items()
        ),
        stand_in="myo",
    )
    facts: ClassVar[TaskFacts] = TaskFacts(
        "ninapro",
        (1, ELECTRODES, STEPS),
        Target("classification", CLASSES),
        {"train": 2638, "validation": 659, "test": 659},
        family="series",
    )

    class Config(PartsSettings):
        """Where the windows are."""

        loss: Use[Loss] = Field(default_factory=_default_loss, description="The training loss.")
        metric: Use[Metric] = Field(default("error-rate"), description="The score.")

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Check and copy the windows, as float32."""
        samples = {}
        for part, short in FILES.items():
            path, label_path = (wanted.files[f"{k}_{short}.npy"] for k in ("ninapro", "label"))
            x = read_npy(path, mapped=True)
            if x.shape[1:] != (STEPS, ELECTRODES) or x.dtype.kind not in "iuf":
                raise DataError(
                    f"{path}: {x.dtype} {x.shape}, expected numbers (n, {STEPS}, {ELECTRODES})"
                )
            published = cls.facts.samples[part]
            check_count(len(x), f"samples to {part}", published, config.partial)
            values = np.asarray(x, dtype=np.float32)
            if not np.isfinite(values).all():
                raise DataError(f"{path}: has NaN, infinite or too large values")
            y = check_classes(label_path, read_npy(label_path), len(x), 0, CLASSES)
            with ArrayWriter(folder / f"{part}_x.npy", x.shape[1:], np.float32, len(x)) as writer:
                writer.add(values)
            np.save(folder / f"{part}_y.npy", y)
            samples[part] = len(x)
        return {"samples": samples}

    def reader(self) -> Callable[[Array], Tensor]:
        """Nothing is normalised, as released."""
        return image


def image(raw: Array) -> Tensor:
    """``[..., 52, 16]`` becomes ``[..., 1, 16, 52]``."""
    return torch.from_numpy(np.ascontiguousarray(raw.swapaxes(-1, -2))).unsqueeze(-3)
