"""miniDomainNet: lists and images in the published form, against torchvision-like steps by hand."""

from __future__ import annotations

import io
import itertools
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xmodal import plugins
from xmodal.data import augment, loader
from xmodal.data.datasets import Preparation
from xmodal.data.obtain import DataOrder
from xmodal.data.store import Store
from xmodal.engine.build import Builder
from xmodal.engine.loop import Training
from xmodal.engine.plan import compose_plan
from xmodal.engine.step import StepRecord
from xmodal.errors import DataError
from xmodal.interfaces import Context
from xmodal_domainnet import lists
from xmodal_domainnet.task import Clipart, Sketch

CLASSES = 126
PER_CLASS = {"train": 5, "test": 2}


def name(split: str, label: int, number: int) -> str:
    return f"clipart/thing_{label:03}/clipart_{label:03}_{split}_{number:06}.jpg"


def listing(split: str) -> list[str]:
    lines = [
        f"{name(split, label, n)} {label}"
        for label in range(CLASSES)
        for n in range(PER_CLASS[split])
    ]
    return [lines[i] for i in np.random.default_rng(len(split)).permutation(len(lines))]


def image(path: str) -> Image.Image:
    """A picture of its own for every path: photographs have any size; a few are grey."""
    rng = np.random.default_rng(list(path.encode()))
    small = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    made = Image.fromarray(small).resize((40 + len(path) % 7, 31))
    return made.convert("L") if rng.random() < 0.1 else made


def encoded(path: str) -> bytes:
    out = io.BytesIO()
    image(path).save(out, "PNG")  # lossless, so that values can be compared
    return out.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The publisher's archive, with images that no list names, and the archive of lists."""
    folder = tmp_path_factory.mktemp("domainnet")
    with zipfile.ZipFile(folder / "clipart.zip", "w") as images:
        for split in PER_CLASS:
            for line in listing(split):
                path = line.rpartition(" ")[0]
                images.writestr(path, encoded(path))
        images.writestr("clipart/zebra/clipart_345_000001.jpg", b"no list names it")
    with zipfile.ZipFile(folder / "splits_mini.zip", "w") as texts:
        for split in PER_CLASS:
            texts.writestr(f"splits_mini/clipart_{split}.txt", "\n".join(listing(split)) + "\n")
            texts.writestr(f"splits_mini/real_{split}.txt", "")
    return folder


@pytest.fixture(scope="module")
def store(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("cache"))
    config = Clipart.Config()
    assert Clipart.state(config, store) == "needs your files"
    assert Clipart.describe(config, store).samples == {}
    Clipart.obtain(config, store, DataOrder(folder=files))
    return store


def task(store: Store, **settings: Any) -> Clipart:
    return Clipart(Clipart.Config(**settings), Context.outside(store))


def by_hand(path: str, side: int, box: tuple[int, int] | None = None) -> torch.Tensor:
    """Resize with Pillow, perhaps cut 224 of 256, and ImageNet's colours; written apart."""
    small = image(path).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    if box is not None:
        small = small.crop((box[1], box[0], box[1] + 224, box[0] + 224))
    x = np.asarray(small, dtype=np.float64) / 255
    x = (x - np.array((0.485, 0.456, 0.406))) / np.array((0.229, 0.224, 0.225))
    return torch.from_numpy(x.transpose(2, 0, 1)).float()


def test_test_images_are_those_of_the_list_in_its_order(store: Store) -> None:
    data = task(store).load(0)
    facts = Clipart.describe(Clipart.Config(), store)
    assert (facts.shape, facts.family) == ((3, 224, 224), "image")
    assert facts.samples == {"train": 567, "validation": 63, "test": 252}
    for part in ("train", "validation", "test"):
        assert len(getattr(data, part)) == facts.samples[part]
    lines = listing("test")
    for index in (0, 17, 251):
        path, _, label = lines[index].rpartition(" ")
        x, y = data.test[index]
        assert y == int(label)
        assert data.classes[int(y)] == path.split("/")[1]
        torch.testing.assert_close(x, by_hand(path, 224), atol=1e-5, rtol=0)
    assert any("within the modality" in note for note in data.notes)


def test_training_cuts_and_mirrors_images_of_256(store: Store) -> None:
    data = task(store).load(3)
    rows = data.train.base.rows  # type: ignore[attr-defined]
    lines = listing("train")
    seen = augment.in_pass(data.train, 11)
    mirrored = set()
    for index in range(6):
        whole = by_hand(lines[rows[index]].rpartition(" ")[0], 256)
        x, y = seen[index]
        assert int(y) == int(lines[rows[index]].rpartition(" ")[2])
        found = [
            (top, left, flip)
            for flip in (False, True)
            for top in range(33)
            for left in range(33)
            if torch.allclose(
                (x.flip(2) if flip else x)[:, ::37, ::37],
                whole[:, top : top + 224, left : left + 224][:, ::37, ::37],
                atol=1e-5,
            )
        ]
        assert len(found) == 1
        mirrored.add(found[0][2])
    assert mirrored == {False, True}
    # Once: the same in every epoch; every-epoch: not.
    assert torch.equal(seen[0][0], augment.in_pass(data.train, 12)[0][0])
    anew = task(store, crops="every-epoch").load(3)
    one, other = (augment.in_pass(anew.train, seed)[0][0] for seed in (1, 2))
    assert not torch.equal(one, other)
    assert augment.in_pass(anew.test, 1) is not None
    assert torch.equal(anew.train[0][0], data.train[0][0])


def test_validation_is_stratified_and_labels_need_no_image(store: Store) -> None:
    data = task(store, validation=0.2).load(0)
    for part, count in (("train", 4), ("validation", 1)):
        y = loader.labels(getattr(data, part))
        assert torch.bincount(y, minlength=CLASSES).tolist() == [count] * CLASSES
    copy = pickle.loads(pickle.dumps(data.train))
    assert torch.equal(copy[5][0], data.train[5][0])


def test_at_its_own_size_and_from_a_folder(files: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    data = task(store, path=files, resolution=96, crops="none").load(0)
    path = listing("test")[4].rpartition(" ")[0]
    torch.testing.assert_close(data.test[4][0], by_hand(path, 96), atol=1e-5, rtol=0)
    assert augment.in_pass(data.train, 1) is data.train
    assert Clipart.card(Clipart.Config(resolution=96)).name == "domainnet/clipart-126-96"


def test_the_lists_of_the_released_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {}
    for split, each in (("train", 2), ("test", 1)):
        lines = [f"sketch/t{k}/{split}{n}.jpg {k}" for k in range(40) for n in range(each)]
        files[f"sketch_{split}_mini.txt"] = tmp_path / f"{split}.txt"
        files[f"sketch_{split}_mini.txt"].write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"sketch: \(80, 40\) .* expected \(5537, 2399\)"):
        lists.read_lists(files, "sketch", 40)
    monkeypatch.setattr(lists, "COUNTS", {"sketch": (80, 40)})
    found = lists.read_lists(files, "sketch", 40)
    assert lists.class_names(found, "sketch")[39] == "t39"
    config = Sketch.Config(classes=40)
    assert Sketch.card(config).fetchable
    assert [file.name for file in Sketch.card(config).files] == ["sketch.zip", *files]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("thing_003/clipart_003_train_000002.jpg 3", "x 3"), r"line \d+ is 'clipart/x 3', exp"),
        ((" 125\n", " 126\n"), r"with a label in 0 \.\. 125"),
        ((" 7\n", " 8\n"), r"no image of class 7"),
        (("clipart_009_train_000001.jpg", "clipart_009_train_000000.jpg"), "is listed twice"),
        (("clipart_009_train", "clipart_009_test"), r"images train and test"),
        (("train_000004.jpg 5\n", "train_000004.jpg 6\n"), r"class 6 is '.*' and '.*'"),
        (("clipart_009_train_000004", "clipart_009_train_000007"), r"holds no image 'clipart/thi"),
    ],
)
def test_lists_that_cannot_be_right(
    files: Path, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    given = {"clipart.zip": files / "clipart.zip"}
    for split in PER_CLASS:
        text = "\n".join(sorted(listing(split))) + "\n"
        path = given[f"clipart_{split}.txt"] = tmp_path / f"clipart_{split}.txt"
        path.write_text(text.replace(*change) if split == "train" else text)
    with pytest.raises(DataError, match=message):
        Clipart.prepare(Clipart.Config(resolution=96), Preparation(tmp_path, given), tmp_path)


def test_damaged_images_are_named(files: Path, tmp_path: Path) -> None:
    bad = tmp_path / "clipart.zip"
    path = listing("test")[0].rpartition(" ")[0]
    with zipfile.ZipFile(files / "clipart.zip") as old, zipfile.ZipFile(bad, "w") as new:
        for member in old.namelist():
            content = old.read(member)
            new.writestr(member, content[:90] if member == path else content)
    given = {"clipart.zip": bad, "splits_mini.zip": files / "splits_mini.zip"}
    wanted = Preparation(tmp_path, given)
    with pytest.raises(DataError, match=f"{path}: no image that can be read"):
        Clipart.prepare(Clipart.Config(resolution=96), wanted, tmp_path)
    bad.write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"clipart\.zip: cannot be read"):
        Clipart.prepare(Clipart.Config(resolution=96), wanted, tmp_path)


def test_it_trains(store: Store) -> None:
    made = compose_plan(["pare_clipart"], plugins.registry(), store, [], "smoke")
    builder = Builder(made, store, lambda line: None)
    training = Training(builder.session(builder.data()))
    steps = itertools.islice((r for r in training.run() if isinstance(r, StepRecord)), 2)
    losses = [step.loss for step in steps]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
