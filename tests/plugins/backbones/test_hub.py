"""Weights through the real hub client, from a local server that speaks the hub's file API.

Loads run in processes with an empty cache and ``HF_ENDPOINT`` at the server, so download, cache
layout, loading and the account of keys are those of a user with a network. One process makes all
loads that need no other environment.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TIMM = "vit_tiny_patch16_224.augreg_in21k"
FAILURES = [
    ("lab/absent", "lab/absent"),
    ("lab/pickled", "it has no safetensors, and pickles are never read"),
    ("lab/other-weights", "the weights do not fit"),
    ("no such/name!", "no such/name!"),
]
LOAD = """
import json, sys, time, torch
from pathlib import Path
from safetensors.torch import save_file
from xmodal import plugins
from xmodal.batch import Tokens
from xmodal.data.store import Store
from xmodal.errors import XModalError
from xmodal.interfaces import Context, Facts, Target, TaskFacts


def load(name, config, out):
    notes = []
    cls = plugins.registry().load("backbone", name)
    begun = time.monotonic()
    try:
        chosen = cls.Config(**config)
        facts = cls.describe(chosen, Store())
        task = TaskFacts("t", (3, 32, 32), Target("classification", 2), {})
        context = Context(Facts(task, facts), torch.Generator().manual_seed(1), Store(),
                          note=notes.append)
        backbone = cls(chosen, context).eval()
    except XModalError as error:
        answer = {"error": str(error), "exit": error.exit_code}
    else:
        tensors = dict(backbone.state_dict())
        if facts.modality == "image":
            with torch.no_grad():
                x = torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
                tensors["features"] = backbone(backbone.embed(x)).x_BND
            answer = {"projection": list(backbone.patch_projection().weight.shape)}
        else:
            answer = {"pieces": backbone.tokenize(["hello", "world"])}
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, out)
    return answer | {"seconds": time.monotonic() - begun, "notes": notes}


folder = Path(sys.argv[2])
for number, (name, config) in enumerate(json.loads(sys.argv[1])):
    answer = load(name, config, folder / f"out-{number}.safetensors")
    print("ANSWER" + json.dumps(answer))
"""


class Hub:
    """A model hub on this machine. ``hang`` is a repository that never answers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[tuple[str, str]] = []
        self.closing = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *arguments: Any) -> None:
                """Say nothing."""

            def do_HEAD(self) -> None:
                hub.answer(self, backbone=False)

            def do_GET(self) -> None:
                hub.answer(self, backbone=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def files(self, repository: str) -> dict[str, bytes]:
        folder = self.root / repository
        return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.is_dir() else {}

    def answer(self, request: BaseHTTPRequestHandler, backbone: bool) -> None:
        path = unquote(request.path.partition("?")[0])
        self.requests.append((request.command, path))
        if "hang/" in path:
            self.closing.wait(60)
            return
        repository = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        files = self.files(repository)
        if not files:
            gone = {"X-Error-Code": "RepoNotFound"}
            self.send(request, 404, b'{"error":"Repository not found"}', gone, backbone)
        elif path.startswith("/api/models/"):
            self.send(request, 200, self.about(path, repository, files), {}, backbone)
        else:
            self.file(request, path, files, backbone)

    def about(self, path: str, repository: str, files: dict[str, bytes]) -> bytes:
        """The description of a repository, or the tree of its files."""
        if "/tree/" in path:
            entries: Any = [
                {"type": "file", "path": name, "size": len(data), "oid": _sha1(data)}
                for name, data in files.items()
            ]
        else:
            siblings = [{"rfilename": name} for name in files]
            entries = {
                "id": repository,
                "modelId": repository,
                "sha": COMMIT,
                "siblings": siblings,
                "private": False,
                "gated": False,
                "disabled": False,
                "tags": [],
            }
        return json.dumps(entries).encode()

    def file(
        self, request: BaseHTTPRequestHandler, path: str, files: dict[str, bytes], backbone: bool
    ) -> None:
        _, _, name = path.partition("/resolve/")[2].partition("/")
        headers = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if name not in files:
            self.send(request, 404, b"", {**headers, "X-Error-Code": "EntryNotFound"}, backbone)
            return
        data = files[name]
        headers["ETag"] = f'"{_sha1(data)}"'
        if name.endswith(".safetensors"):
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(data).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(data))
        self.send(request, 200, data, headers, backbone)

    @staticmethod
    def send(
        request: BaseHTTPRequestHandler,
        code: int,
        data: bytes,
        headers: dict[str, str],
        backbone: bool,
    ) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if backbone:
            request.wfile.write(data)

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def _models(root: Path) -> None:
    """Tiny models with random weights, saved by the library itself."""
    from transformers import (
        BertConfig,
        BertModel,
        SwinConfig,
        SwinModel,
        ViTConfig,
        ViTForImageClassification,
    )

    torch.manual_seed(0)
    swin = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    vit = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    bert = BertConfig(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    SwinModel(swin).save_pretrained(root / "lab/tiny-swin")
    ViTForImageClassification(vit).save_pretrained(root / "lab/tiny-vit")
    BertModel(bert).save_pretrained(root / "lab/tiny-bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "wor", "##ld"]
    (root / "lab/tiny-bert/vocab.txt").write_text("\n".join(words))
    (root / "lab/tiny-bert/tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer"})
    )
    # Only a pickle beside the config, which must never be opened.
    pickled = root / "lab/pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((root / "lab/tiny-vit/config.json").read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"cos\nsystem\n.")
    # Weights of another architecture under the config of the first.
    other = root / "lab/other-weights"
    other.mkdir()
    (other / "config.json").write_bytes((root / "lab/tiny-vit/config.json").read_bytes())
    save_file({"somewhere.weight": torch.zeros(2)}, other / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    _models(root)
    import timm

    folder = root / "timm" / TIMM
    folder.mkdir(parents=True)
    weights = timm.create_model(TIMM.partition(".")[0], num_classes=0).state_dict()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    served = Hub(root)
    yield served
    served.close()


Loaded = tuple[dict[str, Any], dict[str, torch.Tensor]]
Wanted = tuple[str, dict[str, Any]]


def load(hub: Hub, folder: Path, wanted: Sequence[Wanted], **more: str) -> list[Loaded]:
    """Load backbones in one process; of each its answer, its weights and its features."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(folder / "hf"),
        "XMODAL_CACHE": str(folder / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
        **more,
    }
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(wanted), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert len(found) == len(wanted), done.stderr[-3000:]
    files = [folder / f"out-{number}.safetensors" for number in range(len(wanted))]
    return [
        (json.loads(line.removeprefix("ANSWER")), load_file(file) if file.is_file() else {})
        for line, file in zip(found, files, strict=True)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the cache of the loads that share a process."""
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="module")
def first(hub: Hub, folder: Path) -> dict[str, Loaded]:
    """Everything loaded for the first time."""
    wanted: dict[str, Wanted] = {
        "swin": ("hf", {"name": "lab/tiny-swin"}),
        "vit": ("hf", {"name": "lab/tiny-vit"}),
        "local vit": ("hf", {"name": str(hub.root / "lab/tiny-vit")}),
        "bert": ("hf", {"name": "lab/tiny-bert"}),
        "named": ("swin", {"size": "tiny", "weights": "lab/tiny-swin"}),
        "timm": ("timm", {"name": TIMM}),
        **{name: ("hf", {"name": name}) for name, _ in FAILURES},
    }
    return dict(zip(wanted, load(hub, folder, list(wanted.values())), strict=True))


@pytest.mark.long
def test_swin_by_hub_id(hub: Hub, folder: Path, first: dict[str, Loaded]) -> None:
    from transformers import SwinModel

    answer, loaded = first["swin"]
    assert "error" not in answer, answer
    assert answer["projection"] == [8, 3, 4, 4]
    assert any("0 missing, 0 unexpected" in note for note in answer["notes"])
    model = SwinModel.from_pretrained(hub.root / "lab/tiny-swin").eval()
    state = {
        k: v for k, v in model.state_dict().items() if k.startswith(("encoder.", "layernorm."))
    }
    assert len(state) > 20
    for key, value in state.items():
        assert torch.equal(loaded[f"body.{key.replace('layernorm.', 'norm.')}"], value), key
    x = torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(x).last_hidden_state
    assert torch.allclose(loaded["features"], expected, atol=1e-5)

    # The second time everything is in the cache, and the network is not asked at all.
    before = len(hub.requests)
    swin: Wanted = ("hf", {"name": "lab/tiny-swin"})
    [(again, second)] = load(hub, folder, [swin])
    assert "error" not in again, again
    assert hub.requests[before:] == []
    assert torch.equal(second["features"], loaded["features"])


@pytest.mark.long
def test_offline_the_cache_serves(hub: Hub, folder: Path, first: dict[str, Loaded]) -> None:
    wanted: list[Wanted] = [("hf", {"name": n}) for n in ("lab/tiny-swin", "lab/never-cached")]
    (cached, kept), (absent, _) = load(hub, folder, wanted, HF_HUB_OFFLINE="1")
    assert "error" not in cached, cached
    assert torch.equal(kept["features"], first["swin"][1]["features"])
    assert absent["exit"] == 4
    assert "ways out" in absent["error"]
    assert absent["seconds"] < 30


def test_a_local_copy_gives_the_same_body(first: dict[str, Loaded]) -> None:
    answer, remote = first["vit"]
    assert "error" not in answer, answer
    assert any("head keys not used" in note for note in answer["notes"])
    second, local = first["local vit"]
    assert "error" not in second, second
    assert remote.keys() == local.keys()
    assert all(torch.equal(remote[key], local[key]) for key in remote)


def test_a_text_body_brings_its_tokenizer(first: dict[str, Loaded]) -> None:
    answer, _ = first["bert"]
    assert answer.get("pieces") == [[5], [6, 7]], answer


def test_named_backbones_take_weights_by_hub_id(hub: Hub, first: dict[str, Loaded]) -> None:
    """``swin`` fixes the architecture, so tiny weights are refused with the keys that differ."""
    answer, _ = first["named"]
    assert answer["exit"] == 4
    assert ("GET", f"/lab/tiny-swin/resolve/{COMMIT}/model.safetensors") in hub.requests


def test_timm_weights_by_hub_id(hub: Hub, first: dict[str, Loaded]) -> None:
    answer, loaded = first["timm"]
    assert "error" not in answer, answer
    assert any("0 missing, 0 unexpected" in note for note in answer["notes"])
    served = load_file(hub.root / "timm" / TIMM / "model.safetensors")
    blocks = {key: value for key, value in served.items() if key.startswith("blocks.")}
    assert len(blocks) > 20
    for key, value in blocks.items():
        assert torch.equal(loaded[key], value), key


@pytest.mark.parametrize(("name", "reason"), FAILURES)
def test_failures_are_one_clear_message(
    folder: Path, first: dict[str, Loaded], name: str, reason: str
) -> None:
    answer, _ = first[name]
    assert answer["exit"] == 4
    assert reason in answer["error"]
    assert "ways out" in answer["error"]
    assert "Traceback" not in answer["error"]
    assert answer["seconds"] < 30
    assert not list(folder.rglob("pytorch_model.bin"))


@pytest.mark.long
def test_a_hub_that_hangs_costs_seconds(hub: Hub, tmp_path: Path) -> None:
    begun = time.monotonic()
    [(answer, _)] = load(hub, tmp_path, [("hf", {"name": "hang/model"})])
    assert answer["exit"] == 4
    assert "cannot get the weights 'hang/model' from the hub" in answer["error"]
    assert "vit-s14" in answer["error"]
    assert answer["seconds"] < 40
    assert time.monotonic() - begun < 90


@pytest.mark.long
def test_no_server_at_all(hub: Hub, tmp_path: Path) -> None:
    wanted: list[Wanted] = [("hf", {"name": "lab/never-cached"})]
    [(answer, _)] = load(hub, tmp_path, wanted, HF_ENDPOINT="http://127.0.0.1:9")
    assert answer["exit"] == 4
    assert "ways out" in answer["error"]
    assert answer["seconds"] < 30
