"""The recipes of tasks whose files have to be fetched: trained on small files of their form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xmodal import api

from .published import cifar_archive, cosmic_arrays, spherical_file

FILES: dict[str, Callable[[Path], object]] = {
    "cifar100": lambda folder: cifar_archive(folder, 12, 6),
    "cosmic": cosmic_arrays,
    "spherical": lambda folder: spherical_file(folder, 12, 6, last=True),
}


@pytest.mark.long
@pytest.mark.parametrize("name", FILES)
def test_two_steps_at_smoke_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path / "cache"))
    files = tmp_path / "files"
    files.mkdir()
    FILES[name](files)
    done = api.run(
        "methods/pare-published" if name == "cosmic" else "methods/pare",
        f"tasks/{name}",
        scale="smoke",
        overrides=[f"task.path={files}", "task.partial=true"],
        root=tmp_path / "runs",
        report=False,
    )
    result = done.run.read("result.json")
    assert result["test"]["metric"] > 0
    assert any("NOT the whole benchmark" in line for line in result["notes"])
