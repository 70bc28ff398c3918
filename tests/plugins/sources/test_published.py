"""Published sources, from files in their true formats to samples: fetched, by path, and packed."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from xmodal.data.datasets import DataCard, Preparation
from xmodal.data.store import Store
from xmodal.errors import DataError
from xmodal.interfaces import DataOrder, SourceRequest
from xmodal.plugins import registry
from xmodal.testing.tiny import tiny_context
from xmodal_sources import caltech, cifar10, conll, tiny_imagenet, voc

from ...servers import Server
from ..nasbench360.published import python_2_pickle

RNG = np.random.default_rng(0)
SAME = SourceRequest((32, 32), (32, 32), lambda raw: raw)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def load(name: str, store: Store, request: SourceRequest = SAME, **given: Any) -> Any:
    """Samples and labels in the order of the draw."""
    component: Any = registry().load("source", name)
    context = replace(tiny_context(), store=store)
    return component(component.Config.model_validate(given), context).load(request, 0).tensors


def fetch(
    name: str, module: Any, content: bytes, store: Store, server: Server, monkeypatch: Any
) -> Path:
    """The source's data set, made ready out of ``content`` in place of its published file."""
    card: DataCard = module.CARD
    (file,) = card.files
    server.files[f"/{file.name}"] = content
    served = replace(
        file,
        urls=(f"{server.root}/{file.name}",),
        size=len(content),
        md5=hashlib.md5(content).hexdigest(),
    )
    monkeypatch.setattr(module, "CARD", replace(card, files=(served,), prepared=0))
    component: Any = registry().load("source", name)
    folder, made = component.obtain(component.Config(), store, DataOrder())
    assert made
    assert component.state(component.Config(), store) == "ready"
    return folder


def jpeg(colour: tuple[int, int, int], side: int = 32) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(out, "JPEG", quality=95)
    return out.getvalue()


def decoded(content: bytes) -> Tensor:
    with Image.open(io.BytesIO(content)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0).float() / 255


def tarred(contents: dict[str, bytes], mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as opened:  # type: ignore[call-overload]
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zipped(contents: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as opened:
        for name, content in contents.items():
            opened.writestr(name, content)
    return out.getvalue()


# --- CIFAR-10 -------------------------------------------------------------------------------------


def test_its_checksums_are_torchvision_s() -> None:
    from torchvision.datasets import CIFAR10

    assert [tuple(pair) for pair in CIFAR10.train_list] == list(cifar10.BATCHES.items())
    assert (CIFAR10.tgz_md5, CIFAR10.filename) == (cifar10.MD5, cifar10.FILE)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Five batches of four images, as Python 2 wrote them."""
    made = {}
    for name in cifar10.BATCHES:
        pixels = RNG.integers(0, 256, (4, 3072), dtype=np.uint8)
        labels = RNG.integers(0, 10, 4).tolist()
        content = python_2_pickle({"batch_label": name, "labels": labels, "data": pixels})
        made[name] = content
    monkeypatch.setattr(
        cifar10, "BATCHES", {name: hashlib.md5(c).hexdigest() for name, c in made.items()}
    )
    monkeypatch.setattr(cifar10, "IN_A_BATCH", 4)
    return made


def _cifar_by_hand(batches: dict[str, bytes]) -> dict[bytes, int]:
    """Class by pixels, read as the page of the data set says: pickle, encoding latin1."""
    found = {}
    for content in batches.values():
        batch = pickle.loads(content, encoding="latin1")
        for row, label in zip(batch["data"], batch["labels"], strict=True):
            found[row.tobytes()] = label
    return found


def test_cifar_is_fetched_and_read(
    store: Store, server: Server, batches: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = {f"{cifar10.FOLDER}/{name}": content for name, content in batches.items()}
    archive = tarred({f"{cifar10.FOLDER}/readme.html": b"x", **inner}, "w:gz")
    fetch("cifar10", cifar10, archive, store, server, monkeypatch)
    x, y = load("cifar10", store, samples=None)
    wanted = _cifar_by_hand(batches)
    assert len(x) == 20
    for image, label in zip(x, y, strict=True):
        assert wanted[(image * 255).round().to(torch.uint8).numpy().tobytes()] == int(label)


def test_cifar_by_path_is_the_same_unpacked_and_packed(
    store: Store, batches: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / cifar10.FOLDER
    folder.mkdir()
    for name, content in batches.items():
        (folder / name).write_bytes(content)
    inner = {f"{cifar10.FOLDER}/{name}": content for name, content in batches.items()}
    archive = tmp_path / cifar10.FILE
    archive.write_bytes(tarred(inner, "w:gz"))
    with pytest.raises(DataError, match="its MD5 is"):
        load("cifar10", store, path=str(archive))
    x, y = load("cifar10", store, path=str(folder))
    monkeypatch.setattr(cifar10, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    for path in (tmp_path, archive):
        again, labels = load("cifar10", store, path=str(path))
        assert torch.equal(again, x)
        assert torch.equal(labels, y)


def test_the_packs_beside_the_checkout(store: Store, shared_data: Path) -> None:
    x, y = load("cifar10", store, path=str(shared_data / "cifar10_6000.npz"), samples=50)
    assert y.bincount().tolist() == [5] * 10
    pack = shared_data / "tinyimagenet_6000.npz"
    with np.load(pack) as arrays:
        files, offset = arrays["train_jpeg"], arrays["train_offset"]
        labels = arrays["train_y"]
    request = SourceRequest((64, 64), (), lambda raw: raw)
    x, y = load("tiny-imagenet", store, request, path=str(pack), samples=100)
    assert y.bincount().tolist() == [1] * 100
    wanted = {}
    for n in range(len(labels)):
        wanted.setdefault(int(labels[n]), []).append(n)
    for image, label in zip(x[:5], y[:5], strict=True):
        same = (decoded(files[offset[n] : offset[n + 1]].tobytes()) for n in wanted[int(label)])
        assert any(torch.equal(image, one) for one in same)
    component: Any = registry().load("source", "tiny-imagenet")
    assert component.describe(component.Config(path=pack)).target.size == 100
    x, _ = load("tiny-imagenet", store, request, path=str(pack), split="val", samples=10)
    assert len(x) == 10


# --- Tiny-ImageNet --------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Three classes, two images each, and three validation images with their annotations."""
    contents, lines = {}, []
    for number, wnid in enumerate(["n03", "n01", "n02"]):  # wnids.txt is not sorted
        for image in range(2):
            name = f"train/{wnid}/images/{wnid}_{image}.JPEG"
            contents[name] = jpeg((80 * number, 100 * image, 0))
        contents[f"train/{wnid}/{wnid}_boxes.txt"] = b"n03_0.JPEG\t0\t0\t62\t62\n"
        contents[f"val/images/val_{number}.JPEG"] = jpeg((80 * number, 0, 200))
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62")
    contents["val/val_annotations.txt"] = ("\n".join(reversed(lines)) + "\n").encode()
    contents["test/images/test_0.JPEG"] = jpeg((1, 2, 3))
    contents["wnids.txt"] = b"n03\nn01\nn02\n"
    monkeypatch.setattr(tiny_imagenet, "COUNTS", {"train": 6, "val": 3})
    monkeypatch.setattr(tiny_imagenet, "CLASSES", 3)
    return {f"{tiny_imagenet.FOLDER}/{name}": content for name, content in contents.items()}


def test_tiny_imagenet_is_fetched_and_read(
    store: Store,
    server: Server,
    tiny: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = fetch("tiny-imagenet", tiny_imagenet, zipped(tiny), store, server, monkeypatch)
    for name, content in tiny.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_bytes(content)
    # Independently: torchvision's ImageFolder numbers classes by their sorted names.
    from torchvision.datasets import ImageFolder

    listed = ImageFolder(str(tmp_path / "own" / tiny_imagenet.FOLDER / "train"))
    wanted = {decoded(Path(p).read_bytes()).numpy().tobytes(): y for p, y in listed.samples}
    for given in ({}, {"path": tmp_path / "own"}, {"path": folder}):
        x, y = load("tiny-imagenet", store, samples=None, **given)
        assert {i.numpy().tobytes(): int(c) for i, c in zip(x, y, strict=True)} == wanted
    x, y = load("tiny-imagenet", store, split="val", samples=None)
    blue = {(number, round(float(i[0].mean()) * 255 / 80)) for i, number in zip(x, y, strict=True)}
    assert {(int(a), b) for a, b in blue} == {(2, 0), (0, 1), (1, 2)}


def test_a_tiny_imagenet_that_is_not_whole_is_refused(
    store: Store, server: Server, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.pop(f"{tiny_imagenet.FOLDER}/train/n01/images/n01_0.JPEG")
    with pytest.raises(DataError, match=r"holds \{'train': 5, 'val': 3\} images of 3 classes"):
        fetch("tiny-imagenet", tiny_imagenet, zipped(tiny), store, server, monkeypatch)
    tiny[f"{tiny_imagenet.FOLDER}/val/val_annotations.txt"] = b"val_9.JPEG\tn01\t0\t0\t1\t1\n"
    with pytest.raises(DataError, match=r"val_annotations\.txt:1: names no image"):
        fetch("tiny-imagenet", tiny_imagenet, zipped(tiny), store, server, monkeypatch)


# --- Caltech-101 ----------------------------------------------------------------------------------


def test_caltech_is_fetched_and_read(
    store: Store, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = io.BytesIO()
    Image.new("L", (32, 32), 90).save(grey, "JPEG")
    classes = {"accordion": [jpeg((200, 0, 0)), grey.getvalue()], "Faces": [jpeg((0, 200, 0))]}
    inner = {
        f"{caltech.FOLDER}/{name}/image_{n:04d}.jpg": content
        for name, files in {**classes, caltech.BACKGROUND: [jpeg((1, 1, 1))]}.items()
        for n, content in enumerate(files, 1)
    }
    packed = tarred(inner, "w:gz")
    archive = zipped(
        {
            f"caltech-101/{caltech.INNER}": packed,
            "caltech-101/Annotations.tar": b"x",
            "__MACOSX/caltech-101/._Annotations.tar": b"x",
        }
    )
    monkeypatch.setattr(caltech, "CLASSES", 2)
    monkeypatch.setattr(caltech, "IMAGES", 3)
    folder = fetch("caltech-101", caltech, archive, store, server, monkeypatch)
    assert sorted(path.name for path in folder.iterdir()) == ["Faces", "accordion", "dataset.json"]
    own = tmp_path / "own" / caltech.INNER
    own.parent.mkdir()
    own.write_bytes(packed)
    wanted = {decoded(classes["Faces"][0]).numpy().tobytes(): 0}
    wanted |= {decoded(content).numpy().tobytes(): 1 for content in classes["accordion"]}
    for given in ({}, {"path": own}, {"path": folder}):
        x, y = load("caltech-101", store, samples=None, **given)
        assert {i.numpy().tobytes(): int(c) for i, c in zip(x, y, strict=True)} == wanted
    monkeypatch.setattr(caltech, "IMAGES", 8677)
    component: Any = registry().load("source", "caltech-101")
    with pytest.raises(DataError, match="holds 3 images of 2 classes; expected 8677"):
        component.obtain(component.Config(), store, DataOrder(again=True))


# --- VOC ------------------------------------------------------------------------------------------


def test_voc_is_fetched_and_read(
    store: Store, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = np.zeros((32, 32), np.uint8)
    classes[:8], classes[8:16] = 15, voc.VOID
    mask = io.BytesIO()
    palette = Image.fromarray(classes).convert("P")
    palette.putdata(classes.flatten().tolist())
    palette.save(mask, "PNG")
    contents = {}
    for split, names in {"train": ["a"], "val": ["b"], "trainval": ["a", "b"]}.items():
        contents[f"ImageSets/Segmentation/{split}.txt"] = ("\n".join(names) + "\n").encode()
    for name in "abc":  # c belongs to another part of the challenge
        contents[f"JPEGImages/{name}.jpg"] = jpeg((0, 0, 250))
        contents[f"SegmentationClass/{name}.png"] = mask.getvalue()
    archive = tarred({(voc.INSIDE / n).as_posix(): c for n, c in contents.items()}, "w")
    monkeypatch.setattr(voc, "LISTS", {"train": 1, "val": 1, "trainval": 2})
    folder = fetch("voc-foreground", voc, archive, store, server, monkeypatch)
    assert sorted(p.name for p in (folder / "JPEGImages").iterdir()) == ["a.jpg", "b.jpg"]
    own = tmp_path / voc.ARCHIVE
    own.write_bytes(archive)
    for given in ({}, {"path": own}, {"path": folder}):
        x, y = load("voc-foreground", store, split="trainval", **given)
        assert torch.equal(x[0], decoded(contents["JPEGImages/a.jpg"]))
        assert torch.equal(
            y, torch.tensor((classes == 15)[None, None]).float().expand(2, -1, -1, -1)
        )


# --- CoNLL-2003 -----------------------------------------------------------------------------------

IOB1 = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC
Berlin NNP I-NP I-LOC
Paris NNP I-NP B-LOC
Ile NNP I-NP I-LOC
"""
IOB2 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC
Berlin NNP B-NP B-LOC
Paris NNP B-NP B-LOC
Ile NNP I-NP I-LOC
"""


def test_both_copies_of_conll_say_the_same(store: Store, tmp_path: Path) -> None:
    """The shared task marked the first word of an entity only behind another of its kind."""
    (tmp_path / "eng.train").write_text(IOB1)
    (tmp_path / "train.txt").write_text(IOB2)
    first, second = (conll.read_documents(tmp_path / n) for n in ("eng.train", "train.txt"))
    assert first == second
    assert [tag for _, tag in first[0][0]] == ["B-ORG", "O", "B-MISC", "B-LOC", "B-LOC", "I-LOC"]


def test_conll_by_path(store: Store, tmp_path: Path) -> None:
    letters = SourceRequest((1,), (), lambda raw: raw, lambda words: [[ord(w[0])] for w in words])
    (tmp_path / "eng.train").write_text(IOB1)
    found = []
    for path in (tmp_path, tmp_path / "eng.train"):
        x, y = load("conll-2003", store, letters, path=path, length=1)
        found.append({chr(int(i)): conll.TAGS[int(c)] for i, c in zip(x[:, 0], y, strict=True)})
    assert found[0] == found[1]
    assert found[0] == {
        "E": "B-ORG", "G": "B-MISC", "B": "B-LOC", "P": "B-LOC", "I": "I-LOC"
    }  # fmt: skip
    component: Any = registry().load("source", "conll-2003")
    config = component.Config(path=tmp_path, split="test")
    assert "neither test.txt nor eng.testb" in next(iter(component.missing(config, store)))


def test_conll_comes_out_of_its_wheel(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files placed where the wheel's would be, as on a machine without a network."""
    files = {"train.txt": IOB2, "valid.txt": IOB2 + "\n", "test.txt": IOB2 + "\n\n"}
    place = store.root / "wheels" / f"{conll.PACKAGE}-{conll.VERSION}" / conll.FOLDER
    place.mkdir(parents=True)
    made = []
    for file in conll.CARD.files:
        raw = files[file.name].encode()
        (place / file.name).write_bytes(raw)
        made.append(replace(file, sha256=hashlib.sha256(raw).hexdigest()))
    monkeypatch.setattr(conll, "CARD", replace(conll.CARD, files=tuple(made)))
    monkeypatch.setenv("XMODAL_FETCH", "never")
    component: Any = registry().load("source", "conll-2003")
    folder, _ = component.obtain(component.Config(), store, DataOrder())
    assert (folder / "valid.txt").read_text() == files["valid.txt"]
    assert component.Config().path is None
    assert component.contents(component.Config(), store) == {}


# --- memory ---------------------------------------------------------------------------------------


def test_cifar_is_made_ready_in_less_memory_than_one_batch(
    store: Store, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """15 MB of images; the pickles are mapped, and the archive is unpacked piece by piece."""
    inner = {}
    for name in cifar10.BATCHES:
        pixels = RNG.integers(0, 256, (1000, 3072), dtype=np.uint8)
        labels = RNG.integers(0, 10, 1000).tolist()
        inner[name] = python_2_pickle({"labels": labels, "data": pixels})
    sums = {name: hashlib.md5(content).hexdigest() for name, content in inner.items()}
    monkeypatch.setattr(cifar10, "BATCHES", sums)
    monkeypatch.setattr(cifar10, "IN_A_BATCH", 1000)
    file = tmp_path / cifar10.FILE
    file.write_bytes(tarred({f"{cifar10.FOLDER}/{n}": c for n, c in inner.items()}, "w:gz"))
    assert _peak(cifar10.Cifar10, {cifar10.FILE: file}, tmp_path) < 2_500_000


def test_tiny_imagenet_is_made_ready_an_image_at_a_time(
    tiny: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{tiny_imagenet.FOLDER}/train/n01/images/n01_0.JPEG"
    many = {name.replace("_0.", f"_{n}."): RNG.bytes(200_000) for n in range(2, 152)}
    monkeypatch.setattr(tiny_imagenet, "COUNTS", {"train": 156, "val": 3})
    file = tmp_path / tiny_imagenet.FILE
    file.write_bytes(zipped({**tiny, **many}))
    assert _peak(tiny_imagenet.TinyImageNet, {tiny_imagenet.FILE: file}, tmp_path) < 6_000_000


def _peak(source: Any, files: dict[str, Path], folder: Path) -> int:
    """The most memory that making a data set ready takes, beyond what is taken already."""
    scratch, made = folder / "scratch", folder / "made"
    scratch.mkdir()
    made.mkdir()
    tracemalloc.start()
    try:
        source.prepare(source.Config(), Preparation(scratch=scratch, files=files), made)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
