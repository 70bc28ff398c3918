"""FSD50K: a small archive as published, against a loader of its own, and the score over clips."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from sklearn.metrics import average_precision_score

from xmodal.data import loader
from xmodal.data.sound import centred, log_mel
from xmodal.data.store import Store
from xmodal.errors import DataError
from xmodal.facts import BackboneFacts, Facts
from xmodal.interfaces import Context
from xmodal_nasbench360.fsd50k import Fsd50k

RATE = 22050
KINDS = {f"kind_{n}": (n * 7) % 200 for n in range(200)}
CLIPS = {
    "tr": {"64760": ("kind_3,kind_4", 3), "9": ("kind_5", 1), "16399": ("kind_3", 2)},
    "val": {"77": ("kind_3", 2), "801": ("kind_9,kind_3", 1)},
    "eval": {"37199": ("kind_4", 2), "37200": ("kind_3,kind_5", 4), "5": ("kind_9", 1)},
}


def wav(sound: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    wavfile.write(file, rate, (sound * 32767).astype(np.int16))
    return file.getvalue()


def archive(folder: Path, root: str = "", **changes: Any) -> dict[str, np.ndarray]:
    """Write ``audio.zip``; returns the sound of every piece by its name."""
    rng = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(folder / "audio.zip", "w", zipfile.ZIP_DEFLATED) as pack:
        for table, clips in CLIPS.items():
            rows = []
            for clip, (labels, count) in clips.items():
                for n in range(count):
                    name = f"{clip}_{n:04d}.wav"
                    length = 9000 if name == "9_0000.wav" else RATE
                    made[name] = rng.uniform(-0.5, 0.5, length).astype(np.float32)
                    place = f"{'dev' if table != 'eval' else 'eval'}_22050_chunks/{name}"
                    pack.writestr(f"{root}{place}", wav(made[name], changes.get("rate", RATE)))
                    rows.append(f'/mnt/data/{place},"{labels}",{clip}')
            order = rng.permutation(len(rows)) if table == "tr" else range(len(rows))
            text = "files,labels,ext\n" + "\n".join(rows[i] for i in order) + "\n"
            pack.writestr(f"{root}chunks/{table}.csv", changes.get(table, text))
        pack.writestr(f"{root}chunks/lbl_map.json", json.dumps(changes.get("kinds", KINDS)))
        for n, length in enumerate((RATE * 2, 5000)):
            made[f"noise {n}"] = rng.uniform(-0.1, 0.1, length).astype(np.float32)
            pack.writestr(f"{root}noise_22050/{n}.wav", wav(made[f"noise {n}"]))
    return made


def task(path: Path | None, cache: Path, **settings: Any) -> Fsd50k:
    settings = {"path": path, "partial": True, **settings}
    return Fsd50k(Fsd50k.Config(**settings), SimpleNamespace(store=Store(cache)))  # type: ignore[arg-type]


def spectrogram(sound: np.ndarray) -> torch.Tensor:
    """What the released code makes of a piece, from sound as it is in the file."""
    sound = (sound * 32767).astype(np.int16).astype(np.float32) / 32768
    if len(sound) < RATE:
        sound = np.tile(sound, RATE // len(sound) + 1)[:RATE]
    db = log_mel(torch.from_numpy(sound)[None])[0]
    db = torch.maximum(db, db.max() - 80) + 75
    return torch.nn.functional.pad(db - db.mean(), (0, 1))[None]


def labels_of(text: str) -> list[float]:
    y = np.zeros(200)
    y[[KINDS[name] for name in text.split(",")]] = 1
    return y.tolist()


@pytest.mark.parametrize("root", ["", "data/"])
def test_all_pieces_of_clips(tmp_path: Path, root: str) -> None:
    made = archive(tmp_path, root)
    one = task(tmp_path, tmp_path / "cache")
    loaded = one.load(0)
    for part, table in (("validation", "val"), ("test", "eval")):
        clips = sorted(CLIPS[table], key=lambda name: (len(name), name))
        names = [f"{clip}_{n:04d}.wav" for clip in clips for n in range(CLIPS[table][clip][1])]
        split: Any = getattr(loaded, part)
        assert len(split) == len(names)
        for (x, y), name in zip(split, names, strict=True):
            assert x.shape == (1, 96, 102)
            assert (x - spectrogram(made[name])).abs().max() < 0.01
            assert y.tolist() == labels_of(CLIPS[table][name.split("_")[0]][0])
        place = [clips.index(name.split("_")[0]) for name in names]
        assert loaded.groups[part].tolist() == place
    facts = Fsd50k.describe(one.config, one.store)
    assert facts.samples == {"train": 3, "validation": 3, "test": 7}
    assert facts.samples["test"] == loader.count(loaded.test)
    assert loaded.classes[KINDS["kind_3"]] == "kind_3"
    assert not loaded.validation_joins


def test_training_meets_a_piece_of_each_clip(tmp_path: Path) -> None:
    made = archive(tmp_path)
    plain = task(tmp_path, tmp_path / "cache", mask=0, noise=0).load(0).train
    clips = ["9", "16399", "64760"]
    assert [y.tolist() for _, y in plain] == [labels_of(CLIPS["tr"][c][0]) for c in clips]  # type: ignore[attr-defined]
    met: list[set[str]] = [set(), set(), set()]
    for seed in range(12):
        now: Any = plain.in_pass(seed)  # type: ignore[attr-defined]
        for index, clip in enumerate(clips):
            gaps = {
                name: float((now[index][0] - spectrogram(made[name])).abs().max())
                for name in made
                if name.startswith(f"{clip}_")
            }
            name = min(gaps, key=lambda name: gaps[name])
            assert gaps[name] < 0.01
            met[index].add(name)
    assert [len(names) for names in met] == [1, 2, 3]


def test_as_released_a_piece_is_drawn_once(tmp_path: Path) -> None:
    archive(tmp_path)
    one = task(tmp_path, tmp_path / "cache", piece="once")
    first, again, other = (one.load(seed).train for seed in (0, 0, 1))
    assert all(torch.equal(first[i][0], again[i][0]) for i in range(3))
    assert first.in_pass(3) is first  # type: ignore[attr-defined]
    assert not all(torch.equal(first[i][0], other[i][0]) for i in range(3))


def test_changes_are_met_in_training_alone(tmp_path: Path) -> None:
    archive(tmp_path)
    train: Any = task(tmp_path, tmp_path / "cache", mask=1, noise=1).load(0).train
    now = train.in_pass(5)
    assert not torch.equal(now[0][0], train[0][0])
    assert torch.equal(now[0][0], train.in_pass(5)[0][0])
    assert not now[0][0][..., -1].any()


def test_the_score_is_over_clips(tmp_path: Path) -> None:
    archive(tmp_path)
    one = task(tmp_path, tmp_path / "cache")
    loaded = one.load(0)
    facts = Facts(Fsd50k.describe(one.config, one.store), BackboneFacts("stub", "any", 4, 4))
    metric: Any = one.config.metric.build(Context.outside(one.store, facts=facts))
    logits = torch.randn(7, 200, generator=torch.Generator().manual_seed(0))
    metric.group(loaded.groups["test"])
    for index in torch.arange(7).split(3):
        metric.update(logits[index], loader.labels(loaded.test)[index])
    clip = loaded.groups["test"].numpy()
    means = np.stack([logits.numpy()[clip == c].mean(0) for c in range(3)])
    y = np.stack([labels_of(CLIPS["eval"][c][0]) for c in ("5", "37199", "37200")])
    wanted = [average_precision_score(y[:, k], means[:, k]) for k in range(200) if y[:, k].any()]
    assert metric.compute() == pytest.approx(1 - np.mean(wanted))
    assert one.config.loss.dump() == {"use": "bce", "pos_weight": 10.0}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"rate": 44100}, "44100 Hz, expected 22050"),
        ({"kinds": {"a": 0}}, "has 1 kinds, expected 0 .. 199"),
        ({"val": "files,labels\n"}, r"has columns \['files', 'labels'\], expected"),
        ({"val": "files,labels,ext\n/x/77_0000.wav,kind,77\n"}, "unknown label 'kind'"),
        ({"val": "files,labels,ext\n/x/none.wav,kind_1,77\n"}, r"no file for '/x/none\.wav'"),
        ({"eval": "files,labels,ext\n"}, r"0 clips in eval\.csv, at least 1"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    archive(tmp_path, **changes)
    with pytest.raises(DataError, match=why):
        task(tmp_path, tmp_path / "cache").load(0)


def test_what_is_missing(tmp_path: Path) -> None:
    archive(tmp_path)
    with pytest.raises(DataError, match=r"3 clips in tr\.csv, at least 33,116 are published"):
        task(tmp_path, tmp_path / "cache", partial=False).load(0)
    with pytest.raises(DataError, match=r"(?s)xmodal data fetch fsd50k.*--task esc10"):
        task(None, tmp_path / "cache").load(0)
    (tmp_path / "audio.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"audio\.zip: cannot be read as a zip archive"):
        task(tmp_path, tmp_path / "cache").load(0)


def test_mean_is_taken_before_the_shift_cancels() -> None:
    db = torch.randn(2, 96, 101) * 30
    wanted = torch.maximum(db, db.amax((1, 2), keepdim=True) - 80) + 75
    torch.testing.assert_close(
        centred(db), wanted - wanted.mean((1, 2), keepdim=True), atol=1e-4, rtol=0
    )
