"""``xmodal doctor``: checks that this machine can run xmodal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import typer

from xmodal import plugins, text
from xmodal.cli import output
from xmodal.cli.output import AsJson


class Finding(NamedTuple):
    """One check: its name, whether it passed, and what was found or how to fix it."""

    check: str
    ok: bool
    detail: str


def doctor(as_json: AsJson = False) -> None:
    """Check libraries, device, cache and plugins, and tell how to fix problems."""
    plugins.announce_loading()
    findings = [finding for check in _CHECKS for finding in check()]
    if as_json:
        output.print_json([finding._asdict() for finding in findings])
    else:
        rows = [("ok" if f.ok else "PROBLEM", f.check, f.detail) for f in findings]
        output.print_table(("", "check", "found"), rows)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(3)


def _python() -> list[Finding]:
    found = sys.version.split()[0]
    return [Finding("python", sys.version_info >= (3, 11), f"{found} (needs 3.11 or newer)")]


def _libraries() -> list[Finding]:
    found = []
    for name in ("torch", "torchvision", "timm", "transformers", "accelerate", "POT"):
        try:
            found.append(Finding(name, True, version(name)))
        except PackageNotFoundError:
            found.append(Finding(name, False, f"missing; pip install {name}"))
    return found


def _torchvision_matches() -> list[Finding]:
    """Detect a CPU torch with a CUDA torchvision, which imports torch but breaks timm."""
    try:
        import torch
        import torchvision.ops

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        advice = "reinstall both from one index: pip install --force-reinstall torch torchvision"
        return [Finding("torch and torchvision match", False, f"{reason}; {advice}")]
    return [Finding("torch and torchvision match", True, "yes")]


def _device() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        return [Finding("device", True, f"{name}, {bf16}")]
    if torch.backends.mps.is_available():
        return [Finding("device", True, "Apple GPU (mps)")]
    return [Finding("device", True, f"CPU, {text.plural(torch.get_num_threads(), 'thread')}")]


def _cache() -> list[Finding]:
    from xmodal.data.store import Store

    root = Store().root
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / ".write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return [Finding("cache", False, f"{root}: {error.strerror}; set XMODAL_CACHE")]
    free = shutil.disk_usage(root).free
    return [Finding("cache", free > 2e9, f"{root}, {text.size(free)} free (2 GB advised)")]


def _plugins() -> list[Finding]:
    registry = plugins.registry()
    found = [Finding("plugins", True, f"{len(registry.plugins)} loaded")]
    found += [Finding(f"plugin {b.plugin}", False, b.reason) for b in registry.broken]
    for (kind, name), rivals in registry.collisions.items():
        origins = " and ".join(entry.origin for entry in rivals)
        found.append(Finding(f"{kind} {name}", False, f"claimed by {origins}"))
    return found


_CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    _python,
    _libraries,
    _torchvision_matches,
    _device,
    _cache,
    _plugins,
)
