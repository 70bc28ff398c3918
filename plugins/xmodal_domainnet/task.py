"""The tasks ``domainnet/...``: photographs, paintings, clip art and sketches of the same things.

Preparation is that of the released ORCA and PaRe: training images of 256 x 256, cut to 224 x 224 at
a random place and mirrored half the time, test images of 224 x 224, and ImageNet's colours.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from xmodal import ready
from xmodal.data import RawForm, Store, splits
from xmodal.data.datasets import DataCard, Preparation
from xmodal.data.mapped import Mapped
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
from xmodal_domainnet import lists, pictures
from xmodal_domainnet.pictures import Crops, Pictures

STORED = {(224, "train"): 256, (224, "test"): 224, (96, "train"): 96, (96, "test"): 96}
"""The side of stored images by resolution and split: room to cut where the released code cuts."""
_SETTINGS = ("classes", "resolution")


class DomainNet(Task):
    """Images of one domain. A subclass says which."""

    domain: ClassVar[str]
    citation = "Peng et al. 2019 (DomainNet); Zhou et al. 2021 (miniDomainNet)"

    class Config(Settings):
        """Which classes, how large, and where the files are."""

        path: Path | None = Field(
            None,
            description="A folder with the published files, or a prepared folder; default: the "
            "cache.",
        )
        classes: Literal[126, 40] = Field(
            126,
            description="126: miniDomainNet, as the papers say. 40: the lists that the released "
            "ORCA and PaRe read.",
        )
        resolution: Literal[224, 96] = Field(
            224,
            description="224: as the released code prepares images. 96: miniDomainNet's own size.",
        )
        crops: Crops = Field(
            "once",
            description="Cut and mirror training images at random: once, as the released code "
            "(the same in every epoch), every-epoch, or none.",
        )
        validation: float = Field(
            0.1, gt=0, lt=1, description="Share of the training images that validate, stratified."
        )
        loss: Use[Loss] = Field(default("cross-entropy"), description="The training loss.")
        metric: Use[Metric] = Field(default("error-rate"), description="The score.")

    config: Config

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """The files of the domain, and its lists."""
        return lists.card(cls.domain, config.classes, config.resolution)

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts. Sizes for 126 classes are known once the lists are there."""
        found = ready.look(cls, config, store, *_SETTINGS)
        if found is not None:
            train, test = int(found.about["train"]), int(found.about["test"])
        elif config.classes == 40:
            train, test = lists.COUNTS[cls.domain]
        else:
            train = test = 0
        # Rounding carries over between classes, so that sizes depend on the total alone.
        held = int(np.floor(train * config.validation + 0.5))
        sizes = {"train": train - held, "validation": held, "test": test}
        return TaskFacts(
            name=f"domainnet/{cls.domain}",
            shape=(3, config.resolution, config.resolution),
            target=Target("classification", config.classes),
            samples=sizes if train else {},
        )

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Decode and resize the listed images, once."""
        found = lists.read_lists(wanted.files, cls.domain, config.classes)
        archive = wanted.files[f"{cls.domain}.zip"]
        total = sum(len(listed.paths) for listed in found.values())
        with meter(cls.domain, total, unit="images") as count:
            for split, listed in found.items():
                side = STORED[config.resolution, split]
                pictures.write(archive, listed, side, folder / f"{split}_x.npy", count)
                np.save(folder / f"{split}_y.npy", np.array(listed.labels, dtype=np.int16))
        return {
            **{split: len(listed.paths) for split, listed in found.items()},
            **{name: getattr(config, name) for name in _SETTINGS},
            "names": list(lists.class_names(found, cls.domain)),
        }

    def load(self, seed: int) -> TaskData:
        """Hold out a validation split of the training list; the test list is the test split."""
        config = self.config
        found = ready.get(type(self), config, self.store, *_SETTINGS)
        form = RawForm.of_bytes(config.resolution)
        y_N = np.load(found / "train_y.npy")
        shares = (1 - config.validation, config.validation)
        rows = splits.split(len(y_N), shares, seed, strata_N=y_N)

        def of(split: str, index: Any) -> Pictures:
            base = Mapped(found / f"{split}_x.npy", found / f"{split}_y.npy", index)
            return Pictures(base, config.resolution, form.one, config.crops, seed)

        return TaskData(
            train=of("train", rows[0]),
            # They are cut only where the protocol trains on them too.
            validation=of("train", rows[1]),
            test=of("test", None),
            checksum=found.checksum(),
            notes=(_NOTE,),
            classes=tuple(found.about["names"]),
            raw=form,
            images={"red": 0},
        )


_NOTE = (
    "DomainNet's images are of the modality that vision backbones were pretrained on: this is a "
    "transfer within the modality"
)


class Clipart(DomainNet):
    """Clip art of miniDomainNet."""

    domain = "clipart"


class Painting(DomainNet):
    """Paintings of miniDomainNet."""

    domain = "painting"


class Real(DomainNet):
    """Photographs of miniDomainNet."""

    domain = "real"


class Sketch(DomainNet):
    """Sketches of miniDomainNet."""

    domain = "sketch"
