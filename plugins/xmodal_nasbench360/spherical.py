"""The task ``spherical``: CIFAR-100 projected onto a sphere, turned at random (NAS-Bench-360).

The published file is a compressed pickle. The same projection (``sphere``) can be made of any
images; the rotations of the published file are not known, so such data are never called by its
name without a note.
"""

from __future__ import annotations

import gzip
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from xmodal import ready
from xmodal.data import RawForm, Store
from xmodal.data.arrays import first_key, open_container
from xmodal.data.datasets import DataCard, Preparation, RemoteFile
from xmodal.data.mapped import Array, Mapped
from xmodal.data.unpickle import read_pickle
from xmodal.errors import DataError, UsageError
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
from xmodal_nasbench360 import cifar100, image_set, sphere
from xmodal_nasbench360.parts import check_count

SIDE = 2 * sphere.BANDWIDTH
FILE = "s2_cifar100.gz"
IMAGES = "images"
"""The name under which images to project come to ``prepare``."""
CARD = DataCard(
    name="spherical",
    benchmark="NAS-Bench-360",
    source="Tu et al. 2022 (NAS-Bench-360), after Cohen et al. 2018; images: Krizhevsky 2009",
    licence="CC BY-SA (NAS-Bench-360's table)",
    size=272_000_000,
    prepared=1_300_000_000,
    files=(
        RemoteFile(
            FILE,
            urls=(f"https://pde-xd.s3.amazonaws.com/spherical/{FILE}",),
            by_hand="if the address does not answer: Google Drive, file "
            "1EJbc2n0tYOh0PsbVQ0yyTz58UI3wHFud",
        ),
    ),
    generable_from="cifar-100-python.tar.gz, the folder it unpacks to, or an .npz file of images: "
    "train_x and test_x (n, 3, side, side), train_y and test_y",
    note="whether the addresses still answer was not checked",
)


class Spherical(Task):
    """CIFAR-100 on a sphere, as an image of 60 x 60; 40,000 / 10,000 / 10,000."""

    citation = "Cohen et al. 2018 (arXiv 1801.10130); Tu et al. 2022 (NAS-Bench-360)"

    class Config(Settings):
        """Where the images are and how they are split."""

        path: Path | None = Field(
            None, description=f"{FILE}, its folder, or a prepared folder; default: the cache."
        )
        validation: int | None = Field(None, ge=1, description=image_set.HELD_OUT)
        partial: bool = Field(
            False, description="Accept files with fewer images than published; reports say so."
        )
        rotation_seed: int = Field(
            0, ge=0, description="Of data that are generated: the seed of the rotations."
        )
        loss: Use[Loss] = Field(default("cross-entropy"), description="The training loss.")
        metric: Use[Metric] = Field(default("error-rate"), description="The score.")

    config: Config

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """The published file."""
        return CARD

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts; sizes are those published while the file is missing."""
        at_once = config.path is not None and config.partial
        found = ready.get(cls, config, store) if at_once else ready.find(cls, config, store)
        about = {} if found is None else found.about
        return TaskFacts(
            name=about.get("title", "spherical"),
            shape=(3, SIDE, SIDE),
            target=Target("classification", int(about.get("labels", image_set.CLASSES))),
            samples=image_set.samples(about or None, config.validation),
        )

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Convert the published pickle or, with ``generate``, project ``files["images"]``."""
        if wanted.generate:
            return _generate(config, wanted, folder)
        unpacked = _decompress(wanted.files[FILE], wanted.scratch)
        content = read_pickle(unpacked, mapped=True)
        counts: dict[str, Any] = {}
        for part in image_set.COUNTS:
            x, y = _read_part(wanted.files[FILE], content, part, config.partial)
            image_set.write_part(folder, part, image_set.pieces(x), SIDE, y)
            counts[part] = len(y)
        return counts

    def load(self, seed: int) -> TaskData:
        """Split by index; the test part is the test split. Nothing depends on ``seed``."""
        config = self.config
        found = ready.get(type(self), config, self.store)
        seed = found.about.get("rotation_seed", config.rotation_seed)
        if seed != config.rotation_seed:
            raise DataError(
                f"{found.folder} was generated with rotation_seed: {seed}, but rotation_seed is "
                f"{config.rotation_seed}\nways out: set rotation_seed: {seed}, or generate it "
                "again: xmodal data generate spherical --from IMAGES --again "
                f"task.rotation_seed={config.rotation_seed}"
            )
        form = RawForm.of_bytes(SIDE, (0.0,) * 3, (1.0,) * 3)
        parts = image_set.rows(int(found.about["train"]), config.validation)
        train, validation = (
            Mapped(found / "train_x.npy", found / "train_y.npy", index, form.one)
            for index in parts.values()
        )
        made = found.about.get("projected")
        notes = (f"spherical: NOT the published file; {made}",) if made else ()
        return TaskData(
            train=train,
            validation=validation,
            test=Mapped(found / "test_x.npy", found / "test_y.npy", prepare=form.one),
            checksum=found.checksum(),
            notes=(*notes, *cifar100.partial_note("spherical", found)),
            raw=form,
            images={"red": 0},
        )


def _decompress(file: Path, folder: Path) -> Path:
    """Unpack the pickle, so that its arrays can be mapped. Raises DataError."""
    target = folder / "s2_cifar100.pkl"
    try:
        with gzip.open(file, "rb") as packed, target.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{file}: cannot be unpacked: {error}\nway out: delete it and fetch it again"
        ) from error
    return target


def _read_part(file: Path, content: Any, part: str, partial: bool) -> tuple[Array, Array]:
    """Images ``[n, 3, 60, 60]`` and classes. Channels may come last in the file."""
    try:
        x, y = np.asanyarray(content[part]["images"]), content[part]["labels"]
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(f"{file}: no 'images' and 'labels' of '{part}'") from error
    if x.dtype != np.uint8 or x.shape[1:] not in ((3, SIDE, SIDE), (SIDE, SIDE, 3)):
        raise DataError(
            f"{file}: '{part}' holds {x.dtype} images of shape {x.shape}, expected uint8 of "
            f"(n, 3, {SIDE}, {SIDE}) or (n, {SIDE}, {SIDE}, 3)"
        )
    check_count(len(x), f"{part} images", image_set.COUNTS[part], partial)
    labels = image_set.check_labels(part, y, len(x))
    return (x if x.shape[1] == 3 else np.moveaxis(x, 3, 1)), labels


# --- projections of other images ------------------------------------------------------------------


def _generate(config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
    if IMAGES not in wanted.files:
        raise UsageError(
            "spherical is generated out of images\nway out: xmodal data generate spherical --from "
            f"IMAGES, where IMAGES is {CARD.generable_from}"
        )
    if wanted.resolution not in (None, SIDE):
        raise UsageError(
            f"--resolution {wanted.resolution}: spherical has {SIDE} points per side, and no others"
        )
    source = wanted.files[IMAGES]
    parts, same = _images(source, wanted.scratch)
    counts: dict[str, Any] = {}
    for number, (part, (x, y)) in enumerate(parts.items()):
        x, y = x[: wanted.samples], y[: wanted.samples]
        made = sphere.projections(x, config.rotation_seed, number)
        image_set.write_part(folder, part, made, SIDE, y)
        counts[part] = len(y)
    what = "CIFAR-100" if same else source.name
    labels = image_set.CLASSES if same else 1 + max(int(y.max()) for _, y in parts.values())
    return counts | {
        "rotation_seed": config.rotation_seed,
        "title": "spherical" if same else f"spherical/{source.stem}",
        "labels": labels,
        "projected": f"{what} projected here, rotations of seed {config.rotation_seed}",
    }


def _images(source: Path, scratch: Path) -> tuple[dict[str, tuple[Array, Array]], bool]:
    """Images and classes of both splits, and whether they are the published CIFAR-100."""
    if source.suffix == ".npz":
        return {part: _of_pack(source, part) for part in image_set.COUNTS}, False
    files = ready.published(source, cifar100.CARD)
    if not {"train", "test"} <= files.keys():
        files |= cifar100.unpacked(files[cifar100.ARCHIVE], scratch)
    parts = {part: cifar100.read_part(files[part], part, True) for part in image_set.COUNTS}
    return parts, cifar100.whole(files)


def _of_pack(file: Path, part: str) -> tuple[Array, Array]:
    pack = open_container(file)
    x = pack.get(f"{part}_x", "images:").read(slice(None))
    key = first_key(pack, [f"{part}_y", f"{part}_fine"]) or f"{part}_y"
    y = pack.get(key, "images:").read(slice(None))
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1] != 3 or x.shape[2] != x.shape[3]:
        raise DataError(
            f"{file}: '{part}_x' is {x.dtype} of shape {x.shape}, expected uint8 (n, 3, side, side)"
        )
    return x, image_set.check_labels(part, y, len(x))
