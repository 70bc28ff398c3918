"""The task ``cosmic``: find the pixels that cosmic rays hit in Hubble's images (NAS-Bench-360).

deepCR's images of one filter and of galaxies. In training the brightness of the sky varies, as if
exposures had other lengths. Pixels to ignore have no label (NaN).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from xmodal import randomness, ready
from xmodal.data import RawForm, Store
from xmodal.data.augment import AddMultiple, Augmented
from xmodal.data.datasets import DataCard, Preparation, RemoteFile
from xmodal.data.mapped import Array, ArrayWriter, Mapped, mean_and_deviation, open_mapped
from xmodal.data.splits import split
from xmodal.errors import DataError
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
from xmodal_nasbench360 import cosmic_files as files
from xmodal_nasbench360.parts import check_count

SIDE = files.CROP.stop - files.CROP.start
COUNTS = {"train": 4830, "test": 420}
HELD_OUT = 0.1
"""The share of the training images that validates, as published: 4,347 and 483."""
DRIVE = {"train": "1lHsNhPM-73YFdi7V1mkEaa_WyYuz9Waf", "test": "1Pc6p1r6TdGCFZMOYScINMj65sF0BnSod"}
SIZE = {"train": 6_500_000_000, "test": 2_000_000_000}
DECIDING = ("filter", "fields")
"""The settings on which the prepared arrays depend."""


def tar_name(part: str) -> str:
    """The published file of a split."""
    return f"deepCR.ACS-WFC.{part}.tar"


CARD = DataCard(
    name="cosmic",
    benchmark="NAS-Bench-360",
    source="Zhang & Bloom 2020 (deepCR, arXiv 1907.09500)",
    licence="CC BY 4.0 (NAS-Bench-360's table: open data)",
    size=sum(SIZE.values()),
    prepared=520_000_000,
    files=(
        *(
            RemoteFile(
                tar_name(part),
                urls=(f"https://pde-xd.s3.amazonaws.com/cosmic/{tar_name(part)}",),
                by_hand=f"if the address does not answer: Google Drive, file {drive}",
            )
            for part, drive in DRIVE.items()
        ),
        # The same, unpacked; and which images the published code took, where it was run.
        *(RemoteFile(f"npy_{part}", aside=True) for part in COUNTS),
        *(RemoteFile(f"{part}_dirs.npy", aside=True) for part in COUNTS),
    ),
    stand_in="cosmic-simulated",
    note="whether the addresses still answer was not checked",
)


class Cosmic(Task):
    """Cosmic rays in images of HST ACS/WFC, filter F435W; 4,347 / 483 / 420 of 128 x 128."""

    citation = "Zhang & Bloom 2020; Tu et al. 2022 (NAS-Bench-360)"

    class Config(Settings):
        """Which images to use, and how."""

        path: Path | None = Field(
            None,
            description="Folder of deepCR's tar files, or of npy_train and npy_test, or a prepared "
            "folder; default: the cache.",
        )
        filter: str = Field("f435w", description="The camera's filter; published: f435w.")
        fields: tuple[Literal["GAL", "EX", "GC"], ...] = Field(
            ("GAL",),
            min_length=1,
            description="What the images show: galaxies, extragalactic fields, globular clusters.",
        )
        protocol_split: Literal["visits", "order"] = Field(
            "visits",
            description="visits: a tenth of the training images validates, visits kept whole. "
            "order: the last tenth, as published; a visit may lie on both sides.",
        )
        sky: tuple[float, float] = Field(
            (-0.9, 3.0),
            description="In training, a random multiple in this range of the sky's brightness is "
            "added.",
        )
        augment: bool = Field(True, description="Vary the sky in training.")
        augment_test: bool = Field(
            False, description="Vary it in the test images, too, as the released code; once."
        )
        standardise: bool = Field(
            True,
            description="Mean 0 and deviation 1 over the training images; the released code reads "
            "electrons as they are.",
        )
        partial: bool = Field(
            False, description="Accept another number of images than published; reports say so."
        )
        loss: Use[Loss] = Field(default("bce"), description="The training loss.")
        metric: Use[Metric] = Field(default("pixel-auroc-error"), description="The score.")

        @model_validator(mode="after")
        def _ordered(self) -> Cosmic.Config:
            if not self.sky[0] <= self.sky[1]:
                raise ValueError(f"sky: {self.sky[0]} is above {self.sky[1]}")
            return self

    config: Config

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """The published files."""
        return CARD

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts; sizes are those published while the files are missing."""
        at_once = config.path is not None and config.partial
        found = (
            ready.get(cls, config, store, *DECIDING) if at_once else ready.find(cls, config, store)
        )
        if found is None:
            total, test = COUNTS["train"], COUNTS["test"]
            train = int(total * (1 - HELD_OUT))
            sizes = {"train": train, "validation": total - train, "test": test}
        else:
            rows = _rows(found, config.protocol_split)
            sizes = {part: len(index) for part, index in rows.items()}
            sizes["test"] = int(found.about["test"])
        return TaskFacts(
            name="cosmic",
            shape=(1, SIDE, SIDE),
            target=Target("dense", 1, (SIDE, SIDE)),
            samples=sizes,
            family="astronomy",
        )

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Take the images that are wanted out of the tar files, one after the other."""
        about: dict[str, Any] = {"filter": config.filter, "fields": list(config.fields)}
        for part in COUNTS:
            name = next((n for n in (tar_name(part), f"npy_{part}") if n in wanted.files), None)
            if name is None:
                raise DataError(f"neither {tar_name(part)} nor npy_{part} was given")
            list_ = wanted.files.get(f"{part}_dirs.npy")
            with files.Tree(wanted.files[name], part) as tree:
                images = (
                    files.select(tree, config.filter, config.fields)
                    if list_ is None
                    else files.listed(tree, list_, part)
                )
                if (config.filter, tuple(config.fields)) == ("f435w", ("GAL",)):
                    what = f"{part} images of galaxies in f435w"
                    check_count(len(images), what, COUNTS[part], config.partial)
                about[f"{part}_not_finite"] = write_part(folder, part, tree, images)
            about[part] = len(images)
            about[f"{part}_visits"] = sorted({image.visit for image in images})
            about[f"{part}_list"] = list_ is not None
        return about

    def load(self, seed: int) -> TaskData:
        """Split the training images; the test files are the test split. ``seed`` has no effect."""
        config = self.config
        found = ready.get(type(self), config, self.store, *DECIDING)
        rows = _rows(found, config.protocol_split)
        form = _form(found, rows["train"] if config.standardise else None)
        unit = 1.0 if form.scale is None else float(form.scale)
        vary = AddMultiple(*config.sky)

        def images(part: str, index: Any) -> Augmented:
            x, y, ignore = (found / f"{part}_{name}.npy" for name in ("x", "y", "ignore"))
            plain = Mapped(x, y, index, form.one, ignore)
            sky_N = np.asarray(open_mapped(found / f"{part}_sky.npy"))[plain.rows] / unit
            return Augmented(plain, vary, sky_N)

        train, validation = (images("train", index) for index in rows.values())
        test = images("test", None)
        groups = {part: _visits(found, "train")[index] for part, index in rows.items()}
        # Each file numbers its own visits, and no visit is in both.
        groups["test"] = _visits(found, "test") + 1 + _visits(found, "train").max()
        fixed = randomness.derive(0, "cosmic", "test")
        return TaskData(
            train=train if config.augment else train.plain,
            # It is trained on, too, where the protocol is the published one.
            validation=validation if config.augment else validation.plain,
            test=test.in_pass(fixed) if config.augment_test else test.plain,
            checksum=found.checksum(),
            notes=_notes(found, config),
            images={"image": 0},
            raw=form,
            groups={part: torch.from_numpy(visits) for part, visits in groups.items()},
        )


def write_part(folder: Path, part: str, tree: files.Tree, images: Sequence[files.Image]) -> int:
    """Write the arrays of one split; the number of pixels that were not finite."""
    count, shape = len(images), (1, SIDE, SIDE)
    visits = {visit: n for n, visit in enumerate(sorted({image.visit for image in images}))}
    known: dict[str, Array] = {}
    wrong = 0
    with ExitStack() as stack:
        x, y, ignore, sky, visit = (
            stack.enter_context(ArrayWriter(folder / f"{part}_{name}.npy", form, kind, count))
            for name, form, kind in (
                ("x", shape, np.float32),
                ("y", shape, np.uint8),
                ("ignore", shape, np.uint8),
                ("sky", (), np.float64),
                ("visit", (), np.int64),
            )
        )
        for image in images:
            pixels, mask, ignored, bad = files.read_image(tree, image)
            x.add(pixels[None, None])
            y.add(mask[None, None])
            ignore.add(ignored[None, None])
            sky.add(np.array([files.read_sky(tree, image, known)]))
            visit.add(np.array([visits[image.visit]]))
            wrong += bad
    return wrong


def _visits(found: ready.Ready, part: str) -> NDArray[np.int64]:
    return np.array(open_mapped(found / f"{part}_visit.npy"))


def _rows(found: ready.Ready, protocol: str) -> dict[str, NDArray[np.int64]]:
    """Which training images train, and which validate: fixed, whatever the seed of the run."""
    visits_N = _visits(found, "train")
    if protocol == "visits":
        if len(np.unique(visits_N)) < 2:
            raise DataError(
                "all training images show one visit, which cannot both train and validate\n"
                "way out: protocol_split: order"
            )
        train, validation = split(
            len(visits_N), (1 - HELD_OUT, HELD_OUT), seed=0, groups_N=visits_N
        )
    else:
        end = int(len(visits_N) * (1 - HELD_OUT))
        train, validation = np.split(np.arange(len(visits_N)), [end])
        if not len(train) or not len(validation):
            raise DataError(f"{len(visits_N)} images cannot be split into nine tenths and one")
    return {"train": train, "validation": validation}


def _form(found: ready.Ready, rows: NDArray[np.int64] | None) -> RawForm:
    """Electrons standardised by the training images; as they are without ``rows``."""
    shape = (1, SIDE, SIDE)
    mean: Tensor | None = None
    scale: Tensor | None = None
    if rows is not None:
        found_mean, deviation = mean_and_deviation(found / "train_x.npy", rows)
        if not deviation:
            raise DataError("the training images are constant")
        mean, scale = (torch.full((1, 1, 1), value) for value in (found_mean, deviation))
    return RawForm(shape=shape, laid=shape, mean=mean, scale=scale, label_shape=shape)


def _notes(found: ready.Ready, config: Any) -> tuple[str, ...]:
    about, notes = found.about, []
    counts = {part: int(about[part]) for part in COUNTS}
    if counts != COUNTS:
        notes.append(
            f"cosmic: NOT the whole benchmark, but {counts['train']:,} training and "
            f"{counts['test']:,} test images ({about['filter']}, {', '.join(about['fields'])})"
        )
    if about["train_list"] or about["test_list"]:
        notes.append("cosmic: the images that the published *_dirs.npy name")
    if wrong := int(about["train_not_finite"]) + int(about["test_not_finite"]):
        notes.append(f"cosmic: {wrong:,} pixels were not finite, and are ignored")
    if not any(np.any(open_mapped(found / f"{part}_sky.npy")) for part in COUNTS):
        notes.append("cosmic: no visit has a sky.npy, so the sky does not vary")
    return tuple(notes)
