"""Sound as images: log-mel spectrograms of pieces of a second, and clips that consist of pieces.

The settings are those of FSD50K's baseline (Fonseca et al. 2020): 22,050 Hz, windows of 30 ms every
10 ms, 96 bands. A piece has 101 frames; its spectrogram is clipped 80 dB below its loudest cell,
its mean is taken off, and a frame of zeros is appended, as in the released code.

Shapes: B pieces, T steps, M bands (96), F frames (101), G clips, N pieces of all clips.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from xmodal import randomness
from xmodal.data.mapped import MappedArray
from xmodal.errors import DataError

RATE, N_FFT, WINDOW, HOP, BANDS = 22_050, 1920, 661, 220, 96
FRAMES = RATE // HOP + 1
"""Of a piece of a second: windows are centred, so they reach over both ends."""
FLOOR, RANGE = 1e-10, 80.0
"""The least power, and how many dB below the loudest cell a spectrogram is clipped."""
UNIT = 1 / 256
"""Spectrograms are kept as int16 in units of so many dB."""

Numbers = NDArray[Any]
Pair = tuple[Tensor, Tensor]


# --- from sound to spectrogram --------------------------------------------------------------------


def read_wav(content: bytes, name: str) -> tuple[int, NDArray[np.float32]]:
    """The rate and the sound ``[T]`` in [-1, 1) of a WAV file of one channel. Raises DataError.

    PCM of 8 to 32 bits, or floats.
    """
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks with other content
            rate, values = wavfile.read(io.BytesIO(content))
    except Exception as error:
        # A damaged file can raise nearly anything.
        raise DataError(f"{name}: cannot be read as WAV ({error})") from error
    if values.ndim != 1 or not len(values):
        raise DataError(f"{name}: expected one channel of sound, got shape {values.shape}")
    if values.dtype == np.uint8:
        return rate, (values.astype(np.float32) - 128) / 128
    if values.dtype.kind == "i":
        return rate, (values / -float(np.iinfo(values.dtype).min)).astype(np.float32)
    return rate, values.astype(np.float32)


def bank() -> Tensor:
    """Triangles of the HTK mel scale, ``[M, N_FFT / 2 + 1]``: mel = 2595 log10(1 + f / 700)."""
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, BANDS + 2, dtype=torch.float64) / 2595) - 1)
    bins = torch.linspace(0, RATE // 2, N_FFT // 2 + 1, dtype=torch.float64)
    low, middle, high = (edges[k : k + BANDS, None] for k in range(3))
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return torch.minimum(rising, falling).clamp_min(0).float()


_BANK: list[Tensor] = []


def log_mel(wave_BT: Tensor) -> Tensor:
    """Power in the bands of sound ``[B, T]``, in dB: ``[B, M, 1 + T // HOP]``."""
    if not _BANK:
        _BANK.append(bank())
    wide = torch.stft(
        wave_BT,
        N_FFT,
        HOP,
        WINDOW,
        torch.hann_window(WINDOW),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    power = _BANK[0] @ wide.abs().square()
    return 10 * power.clamp_min(FLOOR).log10()


def centred(db: Tensor) -> Tensor:
    """Spectrograms ``[..., M, F]`` clipped 80 dB below their loudest cell, each with mean 0."""
    top = db.amax((-2, -1), keepdim=True)
    db = torch.maximum(db, top - RANGE)
    return db - db.mean((-2, -1), keepdim=True)


def packed(spectrograms: Tensor) -> NDArray[np.int16]:
    """As they are kept: in units of 1/256 dB. Centred ones never leave the range of int16."""
    return (spectrograms / UNIT).round().to(torch.int16).numpy()


def unpacked(values: Numbers) -> Tensor:
    """Spectrograms in dB."""
    return torch.from_numpy(values.astype(np.float32) * np.float32(UNIT))


# --- random changes -------------------------------------------------------------------------------


def between(low: float, high: float, generator: torch.Generator) -> float:
    """A random number in [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def masked(
    x_MF: Tensor, generator: torch.Generator, most: int = 2, bands: float = 0.15, time: float = 0.2
) -> Tensor:
    """SpecAugment (Park et al. 2019) as in the released code: 1 to ``most`` times a block of bands
    and a block of frames, of a random share of each, are set to the least value."""
    x_MF, least = x_MF.clone(), x_MF.min()
    for _ in range(int(torch.randint(1, most + 1, (), generator=generator))):
        for axis, share in ((0, bands), (1, time)):
            size = x_MF.shape[axis]
            count = int(between(0, share, generator) * size)
            start = int(between(0, size - count, generator))
            x_MF.narrow(axis, start, count).fill_(least)
    return x_MF


class Changes:
    """How a piece is changed in training: masks, and a quieter noise mixed in.

    ``noise``: pieces of noise ``[frames, M]`` end to end, each of ``length`` frames.
    """

    def __init__(
        self, mask: float, mix: float, noise: Path | None = None, length: Any = ()
    ) -> None:
        self.mask, self.mix = mask, mix
        self.noise = None if noise is None else MappedArray(noise)
        self.length = np.asarray(length, dtype=np.int64)
        self.first = np.cumsum(self.length) - self.length

    def __call__(self, x_MF: Tensor, generator: torch.Generator) -> Tensor:
        """A changed piece."""
        x_MF = self._masked(x_MF, generator)
        if self.noise is None or between(0, 1, generator) >= self.mix:
            return x_MF
        number = int(torch.randint(len(self.length), (), generator=generator))
        start, length = self.first[number], self.length[number]
        noise = unpacked(self.noise.array[start : start + length]).T
        noise = _cut(self._masked(_long_enough(noise, generator), generator), generator)
        share = between(0, 0.5, generator)
        return (1 - share) * x_MF + share * noise

    def _masked(self, x_MF: Tensor, generator: torch.Generator) -> Tensor:
        return masked(x_MF, generator) if between(0, 1, generator) < self.mask else x_MF


def _long_enough(x_MF: Tensor, generator: torch.Generator) -> Tensor:
    """At least 101 frames: repeated, or with the least value on both sides."""
    lacking = FRAMES - x_MF.shape[1]
    if lacking <= 0:
        return x_MF
    before = lacking // 2
    if between(0, 1, generator) < 0.5:
        index = torch.arange(-before, FRAMES - before) % x_MF.shape[1]
        return x_MF[:, index]
    sides = (before, lacking - before)
    return torch.nn.functional.pad(x_MF, sides, value=float(x_MF.min()))


def _cut(x_MF: Tensor, generator: torch.Generator) -> Tensor:
    start = int(torch.randint(x_MF.shape[1] - FRAMES + 1, (), generator=generator))
    return x_MF[:, start : start + FRAMES]


# --- data sets ------------------------------------------------------------------------------------


class Pieces(Dataset[Pair]):
    """Every piece of some clips, with the label of its clip: float32 ``[1, M, F + 1]``.

    ``x``: packed pieces of all clips; ``clip_N``: the clip of each; ``label_G``: of each clip.
    ``rows``: which pieces, in this order.
    """

    def __init__(self, x: Path, clip_N: Any, label_G: Tensor, rows: Any = None) -> None:
        self.x = MappedArray(x)
        self.rows = np.arange(len(clip_N)) if rows is None else np.asarray(rows, dtype=np.int64)
        self.clip_N = np.asarray(clip_N, dtype=np.int64)[self.rows]
        self.label_G = label_G
        if len(self.x.array) != len(clip_N):
            raise DataError(f"{x}: {len(self.x.array)} pieces, {len(clip_N)} have a clip")

    def __len__(self) -> int:
        return len(self.rows)

    def piece(self, index: int) -> Tensor:
        """A piece in dB, ``[M, F]``."""
        return unpacked(self.x.array[self.rows[index]])

    def __getitem__(self, index: int) -> Pair:
        return placed(self.piece(index)), self.label_G[self.clip_N[index]]

    def labels(self, index_N: Tensor) -> Tensor:
        """The labels of some pieces; reads no sound."""
        return self.label_G[torch.from_numpy(self.clip_N[index_N.numpy()])]

    @property
    def groups(self) -> Tensor:
        """The clip of each piece."""
        return torch.from_numpy(self.clip_N)


class Clips(Dataset[Pair]):
    """One piece of each clip: in every pass of training another, changed at random.

    Outside of training it is the first piece, unchanged. ``frozen``, a seed: the piece and its
    changes are drawn once, and met everywhere (as in the released code).
    """

    def __init__(
        self,
        pieces: Pieces,
        change: Callable[[Tensor, torch.Generator], Tensor],
        frozen: int | None = None,
        now: int | None = None,
    ) -> None:
        self.pieces, self.change, self.frozen, self.now = pieces, change, frozen, now
        self.clip_G, self.first_G, self.count_G = np.unique(
            pieces.clip_N, return_index=True, return_counts=True
        )
        self.order = np.argsort(pieces.clip_N, kind="stable")
        self.start_G = np.cumsum(self.count_G) - self.count_G

    def __len__(self) -> int:
        return len(self.clip_G)

    def __getitem__(self, index: int) -> Pair:
        y = self.pieces.label_G[self.clip_G[index]]
        seed = self.now if self.frozen is None else self.frozen
        start = self.start_G[index]
        if seed is None:
            return placed(self.pieces.piece(int(self.order[start]))), y
        generator = randomness.generator(seed, int(index))
        chosen = int(torch.randint(int(self.count_G[index]), (), generator=generator))
        piece = self.pieces.piece(int(self.order[start + chosen]))
        return placed(self.change(piece, generator)), y

    def labels(self, index_N: Tensor) -> Tensor:
        """The labels of some clips; reads no sound."""
        return self.pieces.label_G[torch.from_numpy(self.clip_G[index_N.numpy()])]

    def in_pass(self, seed: int) -> Dataset[Pair]:
        """The clips as one pass of training meets them."""
        return self if self.frozen is not None else Clips(self.pieces, self.change, now=seed)


def placed(x_MF: Tensor) -> Tensor:
    """A piece as the model reads it: ``[1, M, F + 1]``, the last frame 0."""
    return torch.nn.functional.pad(x_MF, (0, 1))[None]
