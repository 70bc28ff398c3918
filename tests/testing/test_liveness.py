"""The liveness check: it names blocks that do not take part, and finds none in what is shipped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xmodal.batch import Tokens
from xmodal.interfaces import Context, Predictor, Settings, Target
from xmodal.plugins import registry
from xmodal.testing import check_liveness, check_predictor, contract, real_samples, tiny_task
from xmodal.testing.tiny import TinyBackbone


class Spectral(nn.Module):
    """A Fourier layer in one dimension: the lowest modes times complex weights."""

    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width, modes, dtype=torch.cfloat) / width)

    def forward(self, x_BCL: Tensor) -> Tensor:
        modes = torch.fft.rfft(x_BCL)
        kept = torch.einsum("bim,iom->bom", modes[..., : self.weight.shape[2]], self.weight)
        padded = nn.functional.pad(kept, (0, modes.shape[2] - kept.shape[2]))
        return torch.fft.irfft(padded, n=x_BCL.shape[2])


class Operator(nn.Module):
    """A small FNO: lifting, blocks of Fourier layer and skip, projection."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.lifting = nn.Conv1d(channels, 8, 1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"spectral": Spectral(8, 4), "skip": nn.Conv1d(8, 8, 1)})
            for _ in range(2)
        )
        self.projection = nn.Conv1d(8, outputs, 1)

    def join(self, x: Tensor, block: Any) -> Tensor:
        return nn.functional.gelu(block["spectral"](x) + block["skip"](x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.lifting(x)
        for block in self.blocks:
            x = self.join(x, block)
        return self.projection(x)


class Discarding(Operator):
    """Computes its blocks and goes on with what came in: what happened to a published baseline."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.lifting(x)
        for block in self.blocks:
            self.join(x, block)
        return self.projection(x)


class HalfDead(Operator):
    """Forgets the Fourier layer of its blocks and keeps the skip."""

    def join(self, x: Tensor, block: Any) -> Tensor:
        return nn.functional.gelu(0 * block["spectral"](x) + block["skip"](x))


class Detached(Operator):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class ForShow(Operator):
    """A gradient reaches the lifting, but what it computes is replaced: a straight-through slip."""

    def forward(self, x: Tensor) -> Tensor:
        lifted = self.lifting(x)
        lifted = x.mean(1, keepdim=True) + lifted - lifted.detach()
        for block in self.blocks:
            lifted = self.join(lifted, block)
        return self.projection(lifted)


class ZeroStart(Operator):
    """A residual branch that ends in zeros is alive: it trains."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(channels, outputs)
        self.branch = nn.Sequential(nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8, 8, 1))
        nn.init.zeros_(self.branch[1].weight)
        nn.init.zeros_(self.branch[1].bias)

    def join(self, x: Tensor, block: Any) -> Tensor:
        return super().join(x, block) + self.branch(x)


def checked(network: nn.Module) -> None:
    x = real_samples(tiny_task("sequence"))
    check_liveness(network, lambda: network(x), "operator")


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Discarding, "block 'blocks' is dead: no gradient"),
        (HalfDead, "block 'blocks.0.spectral', 'blocks.1.spectral' is dead: no gradient"),
        (Detached, "depend on no parameter"),
        (ForShow, "block 'lifting' is dead: shuffling"),
    ],
)
def test_a_dead_block_is_named(network: type[Operator], reason: str) -> None:
    with torch.random.fork_rng(), pytest.raises(AssertionError, match=f"operator: .*{reason}"):
        checked(network(2, 3))


@pytest.mark.parametrize("network", [Operator, ZeroStart])
def test_a_living_network_passes_and_stays_as_it_was(network: type[Operator]) -> None:
    with torch.random.fork_rng():
        built = network(2, 3).train()
        built.lifting.requires_grad_(False)
        before = {key: value.clone() for key, value in built.state_dict().items()}
        drawn = torch.random.get_rng_state()
        checked(built)
        assert torch.equal(drawn, torch.random.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in built.state_dict().items())
    assert built.training
    assert not built.lifting.weight.requires_grad
    assert all(p.grad is None for p in built.parameters())


class DeadRival(Predictor):
    """A whole-sample predictor around the operator that discards its blocks."""

    network = Discarding

    def __init__(self, config: Settings, context: Context) -> None:
        super().__init__(config, context)
        self.shape = context.facts.task.shape
        self.body = self.network(self.shape[0], context.facts.task.target.size)

    @classmethod
    def supports(cls, output: Target) -> bool:
        return output.kind == "dense" and len(output.shape) == 1

    @classmethod
    def problems(cls, config: Settings, facts: Any) -> list[str]:
        return [] if facts.backbone.width == 0 else ["reads whole samples"]

    def forward(self, features: Tokens) -> Tensor:
        # The old check of gradients alone lets this pass: every parameter has one, of zeros.
        said: Tensor = self.body(features.x_BND.reshape(-1, *self.shape))
        return said + 0 * sum(p.abs().sum() for p in self.parameters())


class LivingRival(DeadRival):
    network = Operator  # type: ignore[assignment]


def test_the_contract_of_predictors_finds_a_dead_body() -> None:
    with pytest.raises(AssertionError, match=r"DeadRival .*block 'body.blocks' is dead"):
        check_predictor(DeadRival)
    check_predictor(LivingRival)


class DeadBackbone(TinyBackbone):
    def forward(self, tokens: Tokens) -> Tokens:
        self.encoder(tokens.x_BND)
        return Tokens(tokens.x_BND + tokens.x_BND.mean(dim=1, keepdim=True), tokens.grid)


def test_the_contract_of_backbones_finds_a_dead_encoder() -> None:
    with pytest.raises(AssertionError, match="DeadBackbone: block 'encoder' is dead"):
        contract.check(DeadBackbone)


def test_real_samples_are_real_and_differ() -> None:
    for form in ("grid", "sequence", "row"):
        task = tiny_task(form)
        x = real_samples(task)
        assert x.shape == (3, *task.shape)
        assert not torch.equal(x[0], x[1])
    image = real_samples(tiny_task("grid"))
    neighbours = (image[..., 1:] - image[..., :-1]).abs().mean()
    assert neighbours < 0.3 * image.std()  # noise would give 1.1


SMALL: dict[str, dict[str, Any]] = {
    "vit-s14": {"pretrained": False, "layers": 1},
    "minilm-l6": {"pretrained": False},
    "timm": {"name": "test_vit", "pretrained": False},
}


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_large_backbones_live_with_random_weights(name: str) -> None:
    """Those that the general test of contracts leaves out; the others have the check in theirs."""
    contract.check_backbone(registry().load("backbone", name), SMALL[name])
