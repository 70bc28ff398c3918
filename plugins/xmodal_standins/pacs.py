"""The task ``pacs``: images of 7 classes in four styles, the stand-in for miniDomainNet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from xmodal import ready
from xmodal.data import RawForm, Store, splits
from xmodal.data.datasets import DataCard, Preparation
from xmodal.data.mapped import ArrayWriter, Mapped
from xmodal.data.progress import meter
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
from xmodal_standins.pacs_files import (
    CARD,
    CLASSES,
    COUNTS,
    DOMAINS,
    SIDE,
    TOTAL,
    decoded,
    images,
    testing_images,
)


class Pacs(Task):
    """Images of one of the four domains: 96 x 96, 7 classes."""

    citation = "Li et al. 2017"

    class Config(Settings):
        """Which domain, and where the images are."""

        path: Path | None = Field(
            None,
            description="The pack pacs96.npz, the publisher's archive, a folder with one of them, "
            "or a prepared folder; default: the cache.",
        )
        domain: Literal["art_painting", "cartoon", "photo", "sketch"] = Field(
            "sketch", description="The style of the images."
        )
        validation: float = Field(
            0.125, gt=0, lt=1, description="Share of the training images that validate, stratified."
        )
        loss: Use[Loss] = Field(default("cross-entropy"), description="The training loss.")
        metric: Use[Metric] = Field(default("error-rate"), description="The score.")

    config: Config

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """The publisher's archive, or the pack."""
        return CARD

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts; all images are known by name."""
        count, test = COUNTS[config.domain]
        held = int(np.floor((count - test) * config.validation + 0.5))
        return TaskFacts(
            name="pacs" if config.domain == "sketch" else f"pacs-{config.domain}",
            shape=(3, SIDE, SIDE),
            target=Target("classification", len(CLASSES)),
            samples={"train": count - test - held, "validation": held, "test": test},
        )

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Decode all images of all domains, sorted by name."""
        labels = []
        with (
            meter("pacs", TOTAL, unit="images") as count,
            ArrayWriter(folder / "x.npy", (3, SIDE, SIDE), np.uint8, TOTAL) as writer,
        ):
            for name, data in images(wanted.files):
                x, label, domain = decoded(name, data)
                writer.add(x[None])
                labels.append((label, domain))
                count(1)
        y, domain_N = np.array(labels, dtype=np.uint8).T
        np.save(folder / "y.npy", y)
        np.save(folder / "domain.npy", domain_N)
        np.save(folder / "test.npy", testing_images())
        return {"images": len(y)}

    def load(self, seed: int) -> TaskData:
        """The images of one domain. The test split is fixed, the validation split is drawn."""
        config = self.config
        found = ready.get(type(self), config, self.store)
        y_N, domain_N, test_N = (np.load(found / f"{n}.npy") for n in ("y", "domain", "test"))
        own_N = domain_N == DOMAINS.index(config.domain)
        rest = np.flatnonzero(own_N & ~test_N)
        shares = (1 - config.validation, config.validation)
        train, validation = splits.split(len(rest), shares, seed, strata_N=y_N[rest])
        form = RawForm.of_bytes(SIDE)

        def of(rows: Any) -> Mapped:
            return Mapped(found / "x.npy", found / "y.npy", rows, form.one)

        return TaskData(
            train=of(rest[train]),
            validation=of(rest[validation]),
            test=of(np.flatnonzero(own_N & test_N)),
            checksum=found.checksum(),
            notes=("pacs is the stand-in for miniDomainNet: a transfer within the modality",),
            classes=CLASSES,
            raw=form,
            images={"red": 0},
        )
