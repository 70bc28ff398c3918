"""Sources of published files: at the user's ``path``, or fetched and made ready in the cache."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from xmodal.data import Store, fetching
from xmodal.data.datasets import DataCard
from xmodal.errors import DataError
from xmodal.files import contents, scratch
from xmodal.interfaces import DataOrder, Source
from xmodal_sources.images import ImageSettings

LARGEST = 64 * 2**20
"""Bytes of the largest image or list that is taken out of an archive."""


class FileSettings(ImageSettings):
    """Settings of a source that reads the user's files or fetches the published ones."""

    path: Path | None = Field(None, description="Where the files are; default: the cache.")
    download: bool = Field(
        False, description="Let a run fetch the files, however large, if path is unset."
    )


class FileSource(Source):
    """A source whose data are the user's own files, or a data set of the cache.

    ``HELP`` says what ``path`` may be. The data sets have published checksums, so what is in the
    cache is no part of what a run is: it cannot be anything else.
    """

    Config = FileSettings
    HELP = ""

    @classmethod
    def known(cls, config: Any) -> DataCard:
        """The card, which such a source has."""
        card = cls.card(config)
        assert card is not None
        return card

    @classmethod
    def contents(cls, config: Any, store: Store) -> Mapping[str, str]:
        """What lies at ``path``; nothing of the cache."""
        return {"path": contents(config.path)} if config.path is not None else {}

    @classmethod
    def fetched_by_runs(cls, config: Any, store: Store) -> DataCard | None:
        """The card, if a run is to get the data: with ``download``, however large they are."""
        if config.path is None and config.download and not cls.ready(config, store):
            return None if fetching.why_not() else cls.known(config)
        return super().fetched_by_runs(config, store)

    @classmethod
    def missing(cls, config: Any, store: Store) -> Iterable[str]:
        """How to get the files, if they are missing and may not be downloaded."""
        ways = f"set 'path' to {cls.HELP}, or set 'download: true'"
        if config.path is not None:
            if not config.path.exists():
                yield f"source {cls.known(config).name}: {config.path} does not exist; {ways}"
            return
        if config.download and not fetching.why_not():
            return
        for text in super().missing(config, store):
            yield f"{text}\n{ways}"

    def found(self) -> Path:
        """Where the data are: ``path``, or the folder in the cache. Raises DataError."""
        store: Store = self.store
        absent = list(self.missing(self.config, store))
        if absent:
            raise DataError("\n".join(absent))
        if self.config.path is not None:
            return Path(self.config.path)
        folder, _ = self.obtain(self.config, store, DataOrder())
        return folder


@contextmanager
def members(archive: Path) -> Iterator[Mapping[str, Any]]:
    """The files in a zip or an uncompressed tar by name, to ``take`` one by one."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                yield {info.filename: (zipped, info) for info in zipped.infolist()}
        else:
            with tarfile.open(archive, "r:") as opened:
                yield {m.name.removeprefix("./"): (opened, m) for m in opened if m.isfile()}
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise DataError(
            f"{archive} cannot be read: {error}\nway out: delete it and fetch it again"
        ) from error


def take(files: Mapping[str, Any], name: str) -> bytes:
    """The content of a file in an archive. Raises DataError if it is missing or absurdly large."""
    if name not in files:
        raise DataError(f"the archive has no {name}")
    opened, member = files[name]
    stream: IO[bytes] = (
        opened.open(member) if isinstance(opened, zipfile.ZipFile) else opened.extractfile(member)
    )
    with stream:
        content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise DataError(f"{name} in the archive is larger than any image")
    return content


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive safely into an empty folder, through the cache's own reader."""
    with scratch(folder) as spare:
        made = Store(spare).unpack(archive, "all")
        for entry in made.iterdir():
            if not entry.name.startswith("."):
                entry.rename(folder / entry.name)
