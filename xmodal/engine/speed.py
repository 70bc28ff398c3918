"""How fast a run trains, and how much of its GPU's peak that is.

The peak is that of dense matrix products in the precision of the run, as the data sheet of the card
says. Of a card that is not listed, and in several processes, no share is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

Arithmetic = Literal["bf16", "tf32", "fp32"]

# Teraflops without sparsity, accumulated in fp32: bf16, tf32 and fp32; 0 where there is none.
# NVIDIA's data sheets of the A100, H100, H200, L4, L40S, V100 and T4 (which state most numbers with
# sparsity: half of them); for GeForce, appendix A of its white papers on the architectures GA102
# (RTX 30), Ada (40) and RTX Blackwell (50).
_PEAKS: dict[str, tuple[float, float, float]] = {
    r"NVIDIA A100.*": (312, 156, 19.5),
    r"NVIDIA H100 80GB HBM3": (989, 494, 67),
    r"NVIDIA H100 PCIe": (756, 378, 51),
    r"NVIDIA H100 NVL": (835, 417, 60),
    r"NVIDIA H200": (989, 494, 67),
    r"NVIDIA H200 NVL": (835, 417, 60),
    r"NVIDIA L4": (121, 60, 30.3),
    r"NVIDIA L40S": (362, 183, 91.6),
    r"(Tesla|NVIDIA) V100-SXM.*": (0, 0, 15.7),
    r"(Tesla|NVIDIA) V100-PCIE.*": (0, 0, 14.0),
    r"(Tesla|NVIDIA) T4": (0, 0, 8.1),
    r"NVIDIA GeForce RTX 3080": (59.5, 29.8, 29.8),
    r"NVIDIA GeForce RTX 3090": (71, 35.6, 35.6),
    r"NVIDIA GeForce RTX 4080": (97.5, 48.7, 48.7),
    r"NVIDIA GeForce RTX 4090": (165.2, 82.6, 82.6),
    r"NVIDIA GeForce RTX 5080": (112.6, 56.3, 56.3),
    r"NVIDIA GeForce RTX 5090": (209.5, 104.8, 104.8),
}


def peak(card: str, arithmetic: Arithmetic) -> float | None:
    """The operations a second that a card can do at most; None if it is not known."""
    if "MIG" in card:  # a part of a card
        return None
    place = ("bf16", "tf32", "fp32").index(arithmetic)
    found = [rates[place] for name, rates in _PEAKS.items() if re.fullmatch(name, card)]
    return found[0] * 1e12 if found and found[0] else None


def peak_here(device: torch.device, mixed: str) -> float | None:
    """``peak`` of a GPU in the precision that accelerate calls ``mixed``."""
    if device.type != "cuda":
        return None
    plain: Arithmetic = "fp32" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return peak(torch.cuda.get_device_name(device), "bf16" if mixed == "bf16" else plain)


@dataclass(frozen=True)
class Speed:
    """Training samples a second, and the share of the peak; None where it is not known."""

    samples_per_second: float | None = None
    share_of_peak: float | None = None


class Meter:
    """Counts the operations of a step once, to tell the share of the peak in all of them.

    ``peak``: operations a second, or None. ``encoded`` counts the samples that Python code pushes
    through the encoder. The operations of a stage are taken to be in proportion to it.
    """

    def __init__(self, peak: float | None, encoded: Callable[[], int]) -> None:
        self._peak, self._encoded = peak, encoded
        self._per_sample: float | None = None

    def begin(self) -> None:
        """Forget the count: another stage begins."""
        self._per_sample = None

    @contextmanager
    def counting(self) -> Iterator[None]:
        """A block that does what a step does, forward and backward; only the first is counted."""
        if self._peak is None or self._per_sample is not None:
            yield
            return
        before = self._encoded()
        with FlopCounterMode(display=False) as counter:
            yield
        encoded = self._encoded() - before
        if encoded:
            self._per_sample = counter.get_total_flops() / encoded

    def at_peak(self, encoded: int) -> float | None:
        """The seconds for this many encoded samples at the peak; None if that is not known."""
        if self._peak is None or self._per_sample is None:
            return None
        return encoded * self._per_sample / self._peak
