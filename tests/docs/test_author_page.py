"""The way of docs/plugins.md from an idea to a comparison, walked as it is written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADING = "From an idea to a comparison"


def section() -> str:
    """The text of that section."""
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    return text.split(f"\n## {HEADING}\n")[1].split("\n## ")[0]


@pytest.mark.slow
def test_the_commands_lead_to_a_comparison(tmp_path: Path) -> None:
    """The only changes: the package goes into a folder of its own, and one seed is enough here."""
    pytest.importorskip("hatchling")
    text = section()
    site = tmp_path / "site"
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(site)]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    pip = ["install", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]

    def run(words: list[str]) -> str:
        module, *rest = words
        if module == "pip":
            rest = [*pip, rest[-1]]
        elif rest[0] == "compare":
            rest += ["--seeds", "1", "--no-trivial"]
        done = subprocess.run(
            [sys.executable, "-m", module, *rest],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout

    commands = re.findall(r"^\$ (.*)$", text, re.MULTILINE)
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert [command.split()[:2] for command in commands] == [
        ["xmodal", "plugins"],
        ["xmodal", "plugins"],
        ["pip", "install"],
        ["xmodal", "plugins"],
        ["xmodal", "compare"],
    ]
    made = run(shlex.split(commands[0]))
    component = tmp_path / "xmodal-pull" / "xmodal_pull" / "mixer.py"
    assert str(component.relative_to(tmp_path)) in made
    component.write_text(code, encoding="utf-8")
    checked = run(shlex.split(commands[1])).splitlines()
    assert [line.split()[0] for line in checked] == ["checking", *["ok"] * 4]
    run(shlex.split(commands[2]))
    told = run(shlex.split(commands[3]))
    assert told.startswith(f"mixer pull  (xmodal-pull 0.1.0; {site}")
    assert "methods/pull" in told
    compared = run(shlex.split(commands[4]))
    assert re.search(r"^pare +0\.\d+", compared, re.MULTILINE)
    assert re.search(r"^pull +0\.\d+", compared, re.MULTILINE)


def test_the_small_package_further_down_is_the_one_that_is_written() -> None:
    """The table of contents and the entry point that the page shows are those of the template."""
    from xmodal.authoring import new

    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    files = new.rendered("pull", "mixer")
    assert 'return {"pull": "xmodal_pull.mixer:Pull"}' in text
    assert 'return {"pull": "xmodal_pull.mixer:Pull"}' in files["xmodal_pull/plugin.py"]
    point = 'pull = "xmodal_pull.plugin"'
    assert point in text
    assert point in files["pyproject.toml"]
