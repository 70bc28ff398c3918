"""Sources of randomness: the run's seed and a name determine every stream.

The order of data is stateless, so checkpoints need not save it. Each component has its own
``torch.Generator``; every checkpoint saves their states and the global state (for dropout).
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one named stream; different names give unrelated streams."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for one named stream."""
    return torch.Generator().manual_seed(derive(seed, *names))


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Run a block (an initialisation) under its own seed, then restore the global stream."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive(seed, *names))
        yield


def permutation(count: int, seed: int, *names: str | int) -> Tensor:
    """The order of ``count`` samples in one named pass."""
    return torch.randperm(count, generator=generator(seed, *names))


def endless(count: int, start: int, length: int, seed: int, name: str) -> Tensor:
    """Indices ``start .. start + length`` of an endless shuffled stream over ``count`` samples.

    The stream is one permutation after another, so a position in it needs no state.
    """
    passes = range(start // count, (start + length - 1) // count + 1)
    stream = torch.cat([permutation(count, seed, name, number) for number in passes])
    offset = start - passes.start * count
    return stream[offset : offset + length]


def global_state() -> dict[str, Any]:
    """The state of every global generator, as tensors and plain values."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, python_gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64))],
        "numpy_rest": [int(position), int(has_gauss), float(gauss)],
        "python": [version, torch.tensor(words, dtype=torch.int64), python_gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
        state["cuda_current"] = torch.cuda.current_device()
    return state


def set_global_state(state: Mapping[str, Any]) -> None:
    """Restore what ``global_state`` returned."""
    torch.set_rng_state(state["torch"])
    name, keys = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *state["numpy_rest"]))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    if "cuda" in state and torch.cuda.is_available():
        # A run may continue on a machine with fewer GPUs, or on another GPU.
        kept, current = list(state["cuda"]), state.get("cuda_current", 0)
        torch.cuda.set_rng_state_all(kept[: torch.cuda.device_count()])
        torch.cuda.set_rng_state(kept[current], torch.cuda.current_device())


def seed_everything(seed: int) -> None:
    """Seed the global generators, which only dropout and third-party code use."""
    random.seed(derive(seed, "python"))
    np.random.seed(derive(seed, "numpy") % 2**32)
    torch.manual_seed(derive(seed, "torch"))


def use_determinism(wanted: bool) -> None:
    """Turn deterministic kernels in this process on or off."""
    if wanted:
        # cuBLAS reads this on first use. Training and prediction must use the same value.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Some GPU kernels have no deterministic version; they warn and run anyway.
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    # Filling new memory only helps code that reads uninitialised values, and it costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def determinism_kept() -> Iterator[None]:
    """Undo ``use_determinism`` at the end of the block."""
    wanted = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(wanted, warn_only=warned)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


@contextmanager
def state_kept() -> Iterator[None]:
    """Restore every global generator and torch's determinism at the end of the block."""
    state = global_state()
    try:
        with determinism_kept():
            yield
    finally:
        set_global_state(state)
