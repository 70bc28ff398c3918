"""The task ``cifar100``: 32 x 32 photographs of 100 classes (Krizhevsky 2009; NAS-Bench-360).

The published files are pickles of Python 2, read without running their code. Means and deviations
of the channels are those of the released ORCA and PaRe.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from xmodal import ready
from xmodal.data import RawForm, Store
from xmodal.data.augment import Augmented
from xmodal.data.datasets import DataCard, Preparation, RemoteFile
from xmodal.data.mapped import Array, Mapped
from xmodal.data.unpickle import read_pickle
from xmodal.errors import DataError
from xmodal.files import digest
from xmodal.interfaces import (
    Loss,
    Metric,
    Settings,
    Target,
    Task,
    TaskData,
    TaskFacts,
)
from xmodal.settings import Use, default
from xmodal_nasbench360 import image_set
from xmodal_nasbench360.parts import check_count

SIDE = 32
MEAN, DEVIATION = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
ARCHIVE = "cifar-100-python.tar.gz"
MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
CARD = DataCard(
    name="cifar100",
    benchmark="NAS-Bench-360",
    source="Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html",
    licence="none stated by the authors (NAS-Bench-360's table: CC BY 4.0)",
    size=169_000_000,
    prepared=370_000_000,
    files=(
        RemoteFile(
            ARCHIVE,
            urls=(f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",),
            md5="eb9058c3a382ffc7106e4002c42a8d85",
        ),
        *(RemoteFile(name, md5=md5, aside=True) for name, md5 in MD5.items()),
    ),
)


class Cifar100(Task):
    """Small photographs of 100 classes; 40,000 train, 10,000 validate, 10,000 test."""

    citation = "Krizhevsky 2009; Tu et al. 2022 (NAS-Bench-360)"

    class Config(Settings):
        """Where the images are and how they are split."""

        path: Path | None = Field(
            None,
            description=f"{ARCHIVE}, the folder it unpacks to, or a prepared folder; default: "
            "the cache.",
        )
        validation: int | None = Field(None, ge=1, description=image_set.HELD_OUT)
        augment: bool = Field(
            True, description="Random crops (4 pixels of black around) and mirroring in training."
        )
        partial: bool = Field(
            False, description="Accept files with fewer images than published; reports say so."
        )
        loss: Use[Loss] = Field(default("cross-entropy"), description="The training loss.")
        metric: Use[Metric] = Field(default("error-rate"), description="The score.")

    config: Config

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """The published files."""
        return CARD

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts; sizes are those published while the files are missing."""
        at_once = config.path is not None and config.partial
        found = ready.get(cls, config, store) if at_once else ready.find(cls, config, store)
        about = None if found is None else found.about
        return TaskFacts(
            name="cifar100",
            shape=(3, SIDE, SIDE),
            target=Target("classification", image_set.CLASSES),
            samples=image_set.samples(about, config.validation),
        )

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Copy the images out of the pickles, whose values are not unpickled but mapped."""
        files = dict(wanted.files)
        if not {"train", "test"} <= files.keys():
            files |= unpacked(files[ARCHIVE], wanted.scratch)
        counts: dict[str, Any] = {}
        for part in image_set.COUNTS:
            x, y = read_part(files[part], part, config.partial)
            image_set.write_part(folder, part, image_set.pieces(x), SIDE, y)
            counts[part] = len(y)
        return counts | {"classes": _names(files.get("meta"))}

    def load(self, seed: int) -> TaskData:
        """Split by index; the test file is the test split. Nothing depends on ``seed``."""
        config = self.config
        found = ready.get(type(self), config, self.store)
        form = RawForm.of_bytes(SIDE, MEAN, DEVIATION)
        parts = image_set.rows(int(found.about["train"]), config.validation)
        train, validation = (
            Mapped(found / "train_x.npy", found / "train_y.npy", index, form.one)
            for index in parts.values()
        )
        test = Mapped(found / "test_x.npy", found / "test_y.npy", prepare=form.one)
        change = image_set.CropAndFlip(form.one(torch.zeros(3, SIDE, SIDE))[:, :1, :1])
        return TaskData(
            train=Augmented(train, change) if config.augment else train,
            # It is trained on, too, where the protocol is the published one.
            validation=Augmented(validation, change) if config.augment else validation,
            test=test,
            checksum=found.checksum(),
            notes=partial_note("cifar100", found),
            classes=tuple(found.about["classes"]),
            raw=form,
            images={"red": 0},
        )


def partial_note(name: str, found: ready.Ready) -> tuple[str, ...]:
    """What reports say of a data set that is not whole."""
    counts = {part: int(found.about[part]) for part in image_set.COUNTS}
    if counts == image_set.COUNTS:
        return ()
    return (
        f"{name}: NOT the whole benchmark, but {counts['train']:,} training and "
        f"{counts['test']:,} test images",
    )


def read_part(path: Path, part: str, partial: bool) -> tuple[Array, Array]:
    """The images ``[n, 3, 32, 32]``, mapped, and classes of one file. Raises DataError."""
    content = read_pickle(path, mapped=True)
    if not isinstance(content, dict) or not {"data", "fine_labels"} <= content.keys():
        raise DataError(f"{path}: expected a dictionary with 'data' and 'fine_labels'")
    data = np.asarray(content["data"])
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * SIDE * SIDE:
        raise DataError(f"{path}: 'data' is {data.dtype} of shape {data.shape}, not (n, 3072)")
    check_count(len(data), f"{part} images", image_set.COUNTS[part], partial)
    y = image_set.check_labels(part, content["fine_labels"], len(data))
    return data.reshape(-1, 3, SIDE, SIDE), y


def unpacked(archive: Path, folder: Path) -> dict[str, Path]:
    """Take the three pickles out of the archive, and check them."""
    found = {}
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                name = Path(member.name).name
                if member.isfile() and name in MD5:
                    member.name = name
                    opened.extract(member, folder, filter="data")
                    found[name] = folder / name
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"{archive}: cannot be unpacked: {error}\nway out: delete it and fetch it again"
        ) from error
    if missing := [name for name in ("train", "test") if name not in found]:
        raise DataError(f"{archive}: holds no file '{missing[0]}'")
    return found


def _names(meta: Path | None) -> list[str]:
    if meta is None:
        return []
    content = read_pickle(meta)
    names = content.get("fine_label_names") if isinstance(content, dict) else None
    if not isinstance(names, list) or len(names) != image_set.CLASSES:
        raise DataError(f"{meta}: expected 100 'fine_label_names'")
    return [str(name) for name in names]


def whole(files: Mapping[str, Path]) -> bool:
    """Whether these are the published files, byte for byte."""
    return all(digest(files[name], "md5") == MD5[name] for name in ("train", "test"))
