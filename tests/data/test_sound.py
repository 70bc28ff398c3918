"""Log-mel spectrograms against a second implementation, and against a published pack of sounds."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from xmodal.data.sound import (
    FRAMES,
    RATE,
    Changes,
    Clips,
    Pieces,
    bank,
    centred,
    log_mel,
    masked,
    packed,
    placed,
    read_wav,
    unpacked,
)
from xmodal.errors import DataError

RNG = np.random.default_rng(0)


def by_hand(sound: np.ndarray) -> np.ndarray:
    """dB ``[96, frames]``, one frame and one band at a time, in float64."""
    window = np.zeros(1920)
    window[629 : 629 + 661] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(661) / 661)
    wide = np.pad(sound.astype(np.float64), 960, mode="reflect")
    frames = [wide[start : start + 1920] for start in range(0, len(sound) + 1, 220)]
    power = np.abs(np.fft.rfft(np.array(frames) * window, axis=1)) ** 2

    def mel(hertz: float) -> float:
        return 2595.0 * np.log10(1 + hertz / 700)

    edges = [700 * (10 ** (m / 2595) - 1) for m in np.linspace(0, mel(11025), 98)]
    hertz = np.linspace(0, 11025, 961)
    bands = []
    for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
        up, down = (hertz - low) / (middle - low), (high - hertz) / (high - middle)
        bands.append(np.maximum(0, np.minimum(up, down)))
    return 10 * np.log10(np.maximum(power @ np.array(bands).T, 1e-10)).T


def sounds() -> np.ndarray:
    time = np.arange(RATE) / RATE
    return np.stack(
        [
            RNG.normal(size=RATE) * 0.1,
            np.sin(2 * np.pi * 440 * time) + 1e-3 * RNG.normal(size=RATE),
            np.where(time < 0.5, RNG.normal(size=RATE), 0),
        ]
    ).astype(np.float32)


def test_log_mel_is_that_of_the_definition() -> None:
    waves = sounds()
    found = log_mel(torch.from_numpy(waves)).numpy()
    wanted = np.stack([by_hand(one) for one in waves])
    assert found.shape == (3, 96, 101)
    loud = wanted > wanted.max((1, 2), keepdims=True) - 70
    assert np.abs(found - wanted)[loud].max() < 0.01
    # What float32 does to quieter cells is clipped away.
    clipped = np.maximum(wanted, wanted.max((1, 2), keepdims=True) - 80)
    ready = clipped + 75
    ready = ready - ready.mean((1, 2), keepdims=True)
    assert np.abs(centred(torch.from_numpy(found)).numpy() - ready).max() < 0.05


def test_bands_cover_every_frequency_between_the_first_and_the_last() -> None:
    """Neighbouring triangles of height 1 add up to 1."""
    total = bank().sum(0)
    inner = slice(3, 930)
    assert total[inner].sub(1).abs().max() < 1e-5


def test_real_sounds(shared_data: Path) -> None:
    """The pack's spectrograms were checked with torchaudio; its raw clips give the same."""
    path = shared_data / "esc10_logmel.npz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    with np.load(path) as pack:
        raw, at, names = pack["raw"].astype(np.float32), pack["raw_offset"], pack["raw_name"]
        every, offset = pack["name"].tolist(), pack["offset"]
        stored = pack["logmel"]
        scale, zero = float(pack["scale"]), float(pack["zero"])
    for number, name in enumerate(names):
        clip = every.index(name)
        wanted = stored[:, offset[clip] : offset[clip + 1]].astype(np.float32) * scale + zero
        found = log_mel(torch.from_numpy(raw[at[number] : at[number + 1]])[None])[0].numpy()
        assert found.shape == wanted.shape
        gap = np.abs(found - wanted)[(wanted > wanted.max() - 75) & (found > -95)]
        assert np.quantile(gap, 0.99) < 0.6
        assert np.median(gap) < 0.2


def test_wav_of_every_kind(tmp_path: Path) -> None:
    sound = (RNG.random(500) * 1.8 - 0.9).astype(np.float32)
    for kind, scale, shift in (
        (np.int16, 32768, 0),
        (np.int32, 2**31, 0),
        (np.uint8, 128, 128),
        (np.float32, 1, 0),
        (np.float64, 1, 0),
    ):
        values = (sound.astype(np.float64) * scale + shift).astype(kind)
        file = io.BytesIO()
        wavfile.write(file, RATE, values)
        rate, found = read_wav(file.getvalue(), "x.wav")
        assert rate == RATE
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, (values.astype(np.float64) - shift) / scale, atol=1e-7)
    whole = (sound * 2**23).astype(np.int32)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(3)
        writer.setframerate(RATE)
        writer.writeframes(b"".join(int(v).to_bytes(3, "little", signed=True) for v in whole))
    np.testing.assert_allclose(
        read_wav(file.getvalue(), "x.wav")[1], whole / 2**23, rtol=0, atol=1e-7
    )


def test_what_is_no_sound() -> None:
    file = io.BytesIO()
    wavfile.write(file, RATE, np.zeros((10, 2), np.int16))
    with pytest.raises(DataError, match=r"x\.wav: expected one channel of sound"):
        read_wav(file.getvalue(), "x.wav")
    with pytest.raises(DataError, match=r"x\.wav: cannot be read as WAV"):
        read_wav(file.getvalue()[:20], "x.wav")


def test_packing_loses_less_than_quantisation() -> None:
    db = centred(log_mel(torch.from_numpy(sounds())))
    again = unpacked(packed(db))
    assert (again - db).abs().max() <= 1 / 512 + 1e-6


def test_masks() -> None:
    x = torch.randn(96, 101, generator=torch.Generator().manual_seed(0))
    shares = []
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        changed = masked(x, generator)
        hit = changed == x.min()  # so is the one cell that has this value anyway
        assert torch.equal(changed[~hit], x[~hit])
        bands, frames = hit.all(1).sum().item(), hit.all(0).sum().item()
        assert bands <= 2 * 14
        assert frames <= 2 * 20
        shares.append((bands, frames))
    assert max(bands for bands, _ in shares) > 8
    assert max(frames for _, frames in shares) > 12
    # Bands and frames alone: a cell is masked if its band or its frame is.
    rows, columns = hit.all(1), hit.all(0)
    assert torch.equal(hit | (x == x.min()), (rows[:, None] | columns[None]) | (x == x.min()))


@pytest.fixture
def clips(tmp_path: Path) -> Pieces:
    clip_N = np.array([0, 0, 0, 1, 2, 2])
    x = np.arange(6, dtype=np.int16)[:, None, None] * np.int16(256)
    np.save(tmp_path / "x.npy", np.broadcast_to(x, (6, 96, 101)).copy())
    return Pieces(tmp_path / "x.npy", clip_N, torch.tensor([[0.0, 1], [1, 0], [1, 1]]))


def test_pieces_of_clips(clips: Pieces) -> None:
    assert [float(x[0, 0, 0]) for x, _ in clips] == [0, 1, 2, 3, 4, 5]  # type: ignore[attr-defined]
    assert clips[5][0].shape == (1, 96, 102)
    assert not clips[5][0][..., -1].any()
    assert clips.groups.tolist() == [0, 0, 0, 1, 2, 2]
    assert clips.labels(torch.tensor([4, 0])).tolist() == [[1, 1], [0, 1]]


def test_a_clip_gives_another_piece_in_each_pass(clips: Pieces) -> None:
    training = Clips(clips, Changes(0, 0))
    assert [float(x[0, 0, 0]) for x, _ in training] == [0, 3, 4]  # type: ignore[attr-defined]
    passes = [training.in_pass(seed) for seed in range(20)]
    values = np.array([[float(one[i][0][0, 0, 0]) for i in range(3)] for one in passes])
    assert [{*column} for column in values.T.tolist()] == [{0, 1, 2}, {3}, {4, 5}]
    again = training.in_pass(7)
    assert [float(again[i][0][0, 0, 0]) for i in range(3)] == values[7].tolist()
    frozen = Clips(clips, Changes(0, 0), frozen=7)
    assert frozen.in_pass(1) is frozen
    assert [float(x[0, 0, 0]) for x, _ in frozen] == values[7].tolist()  # type: ignore[attr-defined]
    assert training.labels(torch.tensor([2])).tolist() == [[1, 1]]


def test_noise(clips: Pieces, tmp_path: Path) -> None:
    """A noise shorter than a piece is repeated, or has its least value around."""
    np.save(tmp_path / "noise.npy", np.full((150 + 40, 96), 1000 * 256 // 100, np.int16))
    change = Changes(0, 1, tmp_path / "noise.npy", [150, 40])
    shares = []
    for seed in range(30):
        x = change(torch.zeros(96, 101), torch.Generator().manual_seed(seed))
        assert x.shape == (96, FRAMES)
        assert len(x.unique()) == 1
        shares.append(float(x[0, 0]) / 10)
    assert 0 <= min(shares) < 0.1
    assert 0.4 < max(shares) < 0.5
    assert torch.equal(placed(x)[0, :, :-1], x)
