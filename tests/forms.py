"""Files of a run with every entry that is read again, to change one of them."""

from __future__ import annotations

from typing import Any

TIMED = ("seconds", "samples_per_second", "share_of_peak")
"""What two equal runs may differ in."""


def epoch(stage: int = 0, number: int = 0, **changes: Any) -> dict[str, Any]:
    """A line of ``metrics.jsonl``."""
    return {
        "stage": stage,
        "epoch": number,
        "total_steps": 5 * (number + 1),
        "train": {"loss": 0.5},
        "validation": {"metric": 0.25, "loss": 0.75},
        "best": True,
        "seconds": 1.5,
        "trainable": 1000,
        **changes,
    }


def result(score: float = 0.5, **changes: Any) -> dict[str, Any]:
    """``result.json``."""
    return {
        "metric": "error-rate",
        "better": "lower",
        "test": {"metric": score, "loss": 1.0, "smallest": 0.01},
        "validation": {"metric": score, "at": [0, 1]},
        "selected_on": "validation",
        "protocol": "clean",
        "seed": 0,
        "steps": 10,
        "encoded_samples": 100,
        "seconds": {"training": 2.0, "this_process": 3.0},
        "memory_bytes": 10**9,
        "parameters": {"total": 2000, "trainable": 1000},
        "device": "cpu",
        **changes,
    }


def manifest(**changes: Any) -> dict[str, Any]:
    """``manifest.json``."""
    target = {"kind": "classification", "size": 2, "shape": []}
    task = {"name": "toy", "shape": [3], "target": target, "samples": {"train": 10}}
    backbone = {"name": "tiny", "modality": "any", "width": 8, "feature_width": 8}
    facts = {"task": task, "backbone": backbone, "source": None, "grid": [3]}
    return {"hash": "abc", "facts": facts, "classes": ["a", "b"], **changes}
