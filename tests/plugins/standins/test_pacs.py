"""PACS: the pack and the publisher's archive give the same images, split as the pack says."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xmodal.data import loader
from xmodal.data.obtain import DataOrder
from xmodal.data.store import Store
from xmodal.errors import DataError
from xmodal.interfaces import Context
from xmodal_standins import pacs, pacs_files

from ...paths import DATA

PACK = DATA / "pacs96.npz"
needs_pack = pytest.mark.skipif(not PACK.is_file(), reason=f"no pack at {PACK}")


def task(store: Store, **settings: Any) -> pacs.Pacs:
    return pacs.Pacs(pacs.Pacs.Config(**settings), Context.outside(store))


def test_the_published_counts_and_what_is_missing(tmp_path: Path) -> None:
    config = pacs.Pacs.Config()
    assert pacs.Pacs.state(config, Store(tmp_path)) == "fetchable"
    assert pacs.Pacs.describe(config, Store(tmp_path)).samples == {
        "train": 2750, "validation": 393, "test": 786
    }  # fmt: skip
    assert pacs_files.TOTAL == 9991
    assert pacs_files.testing_images().sum() == 1995
    text = "\n".join(pacs.Pacs.missing(config, Store(tmp_path)))
    assert "xmodal data fetch pacs" in text


@pytest.mark.long
@needs_pack
def test_the_pack_as_its_readme_reads_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pacs.Pacs.obtain(pacs.Pacs.Config(), store, DataOrder(folder=DATA))
    with np.load(PACK, allow_pickle=False) as opened:
        pack = {key: opened[key] for key in opened.files}

    def image(row: int) -> torch.Tensor:
        data = pack["jpeg"][pack["offset"][row] : pack["offset"][row + 1]].tobytes()
        x = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float64) / 255
        x = (x - np.array((0.485, 0.456, 0.406))) / np.array((0.229, 0.224, 0.225))
        return torch.from_numpy(x.transpose(2, 0, 1)).float()

    for number, domain in enumerate(pack["domains"]):
        data = task(store, domain=str(domain)).load(0)
        own = pack["domain"] == number
        test, rest = np.flatnonzero(own & pack["test"]), np.flatnonzero(own & ~pack["test"])
        facts = pacs.Pacs.describe(pacs.Pacs.Config(domain=str(domain)), store)
        for part in ("train", "validation", "test"):
            assert len(getattr(data, part)) == facts.samples[part]
        np.testing.assert_array_equal(loader.labels(data.test).numpy(), pack["y"][test])
        for index in (0, len(test) // 2):
            torch.testing.assert_close(data.test[index][0], image(test[index]), atol=1e-5, rtol=0)
        held = [*data.train.rows, *data.validation.rows]  # type: ignore[attr-defined]
        assert sorted(held) == rest.tolist()
        whole, part = (np.bincount(y) for y in (pack["y"][rest], loader.labels(data.validation)))
        assert (np.abs(part - whole / 8) <= 1).all()
    assert data.classes == tuple(pack["classes"])

    archive = tmp_path / "Homework3-PACS-d586a6c.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("Homework3-PACS-d586a6c/README.md", "no image")
        for row in np.random.default_rng(0).permutation(len(pack["y"])):
            data_ = pack["jpeg"][pack["offset"][row] : pack["offset"][row + 1]].tobytes()
            zipped.writestr(f"Homework3-PACS-d586a6c/PACS/{pack['name'][row]}", data_)
    packed, zipped_ = (
        pacs_files.images({n: p}) for n, p in ((PACK.name, PACK), ("pacs.zip", archive))
    )
    assert all(a == b for a, b in zip(packed, zipped_, strict=True))


def test_large_images_are_resized_and_other_names_refused() -> None:
    large = np.random.default_rng(0).integers(0, 256, (227, 227, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(large).save(out, "PNG")
    x, label, domain = pacs_files.decoded("photo/horse/1.jpg", out.getvalue())
    expected = np.asarray(Image.fromarray(large).resize((96, 96), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(x, expected.transpose(2, 0, 1))
    assert (label, domain) == (4, 2)
    with pytest.raises(DataError, match=r"PACS has no image 'photo/cow/1\.jpg'"):
        pacs_files.decoded("photo/cow/1.jpg", b"")
    with pytest.raises(DataError, match=r"photo/dog/2\.jpg: no image that can be read"):
        pacs_files.decoded("photo/dog/2.jpg", b"junk")


def test_an_archive_that_is_not_pacs(tmp_path: Path) -> None:
    archive = tmp_path / "pacs.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("PACS/photo/dog/1.jpg", "x")
    with pytest.raises(DataError, match="not the 9,991 images of PACS"):
        list(pacs_files.images({"pacs.zip": archive}))
    archive.write_bytes(b"junk")
    with pytest.raises(DataError, match=r"pacs\.zip: cannot be read"):
        list(pacs_files.images({"pacs.zip": archive}))
