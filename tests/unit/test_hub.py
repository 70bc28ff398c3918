"""Weights through the real hub client, from a local server that speaks the hub's file API.

Every load runs in a process with an empty cache and ``HF_ENDPOINT`` at the server, so download,
cache layout, loading and the account of keys are those of a user with a network.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from safetensors.torch import load_file, save_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD = """
import json, sys, time, torch
from pathlib import Path
from safetensors.torch import save_file
from xmodal import plugins
from xmodal.batch import Tokens
from xmodal.data.store import Store
from xmodal.errors import XModalError
from xmodal.interfaces import Context, Facts, Target, TaskFacts

name, config, out = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
notes = []
cls = plugins.registry().load("backbone", name)
begun = time.monotonic()
try:
    chosen = cls.Config(**config)
    facts = cls.describe(chosen, Store())
    task = TaskFacts("t", (3, 32, 32), Target("classification", 2), {})
    context = Context(Facts(task, facts), torch.Generator().manual_seed(1), Store(),
                      note=notes.append)
    body = cls(chosen, context).eval()
except XModalError as error:
    answer = {"error": str(error), "exit": error.exit_code}
else:
    tensors = dict(body.state_dict())
    if facts.modality == "image":
        with torch.no_grad():
            x = torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
            tensors["features"] = body(body.embed(x)).x_BND
        answer = {"projection": list(body.patch_projection().weight.shape)}
    else:
        answer = {"pieces": body.tokenize(["hello", "world"])}
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, out)
answer |= {"seconds": time.monotonic() - begun, "notes": notes}
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
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def files(self, repository: str) -> dict[str, bytes]:
        folder = self.root / repository
        return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.is_dir() else {}

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        path = unquote(request.path.partition("?")[0])
        self.requests.append((request.command, path))
        if "hang/" in path:
            self.closing.wait(60)
            return
        repository = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        files = self.files(repository)
        if not files:
            gone = {"X-Error-Code": "RepoNotFound"}
            self.send(request, 404, b'{"error":"Repository not found"}', gone, body)
        elif path.startswith("/api/models/"):
            self.send(request, 200, self.about(path, repository, files), {}, body)
        else:
            self.file(request, path, files, body)

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
        self, request: BaseHTTPRequestHandler, path: str, files: dict[str, bytes], body: bool
    ) -> None:
        _, _, name = path.partition("/resolve/")[2].partition("/")
        headers = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if name not in files:
            self.send(request, 404, b"", {**headers, "X-Error-Code": "EntryNotFound"}, body)
            return
        data = files[name]
        headers["ETag"] = f'"{_sha1(data)}"'
        if name.endswith(".safetensors"):
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(data).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(data))
        self.send(request, 200, data, headers, body)

    @staticmethod
    def send(
        request: BaseHTTPRequestHandler, code: int, data: bytes, headers: dict[str, str], body: bool
    ) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if body:
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
    served = Hub(root)
    yield served
    served.close()


def load(
    hub: Hub, folder: Path, name: str, config: dict[str, Any], **more: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Load a backbone in a process of its own; its answer, its weights and its features."""
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
    out = folder / "out.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", LOAD, name, json.dumps(config), str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert found, done.stderr[-3000:]
    return json.loads(found[0].removeprefix("ANSWER")), load_file(out) if out.is_file() else {}


def test_swin_by_hub_id(hub: Hub, tmp_path: Path) -> None:
    from transformers import SwinModel

    answer, loaded = load(hub, tmp_path, "hf", {"name": "lab/tiny-swin"})
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
    again, second = load(hub, tmp_path, "hf", {"name": "lab/tiny-swin"})
    assert "error" not in again, again
    assert hub.requests[before:] == []
    assert torch.equal(second["features"], loaded["features"])
    offline, third = load(hub, tmp_path, "hf", {"name": "lab/tiny-swin"}, HF_HUB_OFFLINE="1")
    assert "error" not in offline, offline
    assert torch.equal(third["features"], loaded["features"])


def test_a_local_copy_gives_the_same_body(hub: Hub, tmp_path: Path) -> None:
    first, remote = load(hub, tmp_path, "hf", {"name": "lab/tiny-vit"})
    assert "error" not in first, first
    assert any("head keys aside" in note for note in first["notes"])
    second, local = load(hub, tmp_path, "hf", {"name": str(hub.root / "lab/tiny-vit")})
    assert "error" not in second, second
    assert remote.keys() == local.keys()
    assert all(torch.equal(remote[key], local[key]) for key in remote)


def test_a_text_body_brings_its_tokenizer(hub: Hub, tmp_path: Path) -> None:
    answer, _ = load(hub, tmp_path, "hf", {"name": "lab/tiny-bert"})
    assert answer.get("pieces") == [[5], [6, 7]], answer


def test_named_bodies_take_weights_by_hub_id(hub: Hub, tmp_path: Path) -> None:
    """``swin`` fixes the architecture, so tiny weights are refused with the keys that differ."""
    answer, _ = load(hub, tmp_path, "swin", {"size": "tiny", "weights": "lab/tiny-swin"})
    assert answer["exit"] == 4
    assert ("GET", f"/lab/tiny-swin/resolve/{COMMIT}/model.safetensors") in hub.requests


def test_timm_weights_by_hub_id(hub: Hub, tmp_path: Path) -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    folder = hub.root / "timm/vit_tiny_patch16_224.augreg_in21k"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    name = "vit_tiny_patch16_224.augreg_in21k"
    answer, loaded = load(hub, tmp_path, "timm", {"name": name})
    assert "error" not in answer, answer
    assert any("0 missing, 0 unexpected" in note for note in answer["notes"])
    for key, value in model.blocks.state_dict().items():
        assert torch.equal(loaded[f"blocks.{key}"], value)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"name": "lab/absent"}, "lab/absent"),
        ({"name": "lab/pickled"}, "it has no safetensors, and pickles are not read"),
        ({"name": "lab/other-weights"}, "the weights do not fit"),
        ({"name": "no such/name!"}, "no such/name!"),
    ],
)
def test_failures_are_one_clear_message(
    hub: Hub, tmp_path: Path, config: dict[str, str], reason: str
) -> None:
    answer, _ = load(hub, tmp_path, "hf", config)
    assert answer["exit"] == 4
    assert reason in answer["error"]
    assert "ways out" in answer["error"]
    assert "Traceback" not in answer["error"]
    assert answer["seconds"] < 30
    assert not list(tmp_path.rglob("pytorch_model.bin"))


def test_a_hub_that_hangs_costs_seconds(hub: Hub, tmp_path: Path) -> None:
    begun = time.monotonic()
    answer, _ = load(hub, tmp_path, "hf", {"name": "hang/model"})
    assert answer["exit"] == 4
    assert "cannot get the weights 'hang/model' from the hub" in answer["error"]
    assert "vit-s14" in answer["error"]
    assert answer["seconds"] < 40
    assert time.monotonic() - begun < 90


def test_no_server_at_all_and_offline(hub: Hub, tmp_path: Path) -> None:
    for more in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        answer, _ = load(hub, tmp_path, "hf", {"name": "lab/never-cached"}, **more)
        assert answer["exit"] == 4
        assert "ways out" in answer["error"]
        assert answer["seconds"] < 30
