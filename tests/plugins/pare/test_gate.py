"""The gate and the random selector: what they choose, what they learn from, what they draw.

Shapes: B samples, N tokens, D width.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from xmodal.batch import Progress, Tokens
from xmodal.interfaces import BackboneFacts, Context, Facts, Target, TaskFacts
from xmodal.ops import gumbel_noise
from xmodal_pare.draw import relaxed_subset
from xmodal_pare.gate import Gate
from xmodal_pare.random_selector import RandomSelector

WIDTH = 8
FACTS = Facts(
    TaskFacts("toy", (1, 4, 4), Target("classification", 2), {"train": 8}),
    BackboneFacts("tiny", "image", WIDTH, WIDTH),
    grid=(4, 4),
)


def context(seed: int = 0) -> Context:
    return Context(FACTS, torch.Generator().manual_seed(seed), store=None)


def gate(seed: int = 0, **settings) -> Gate:
    torch.manual_seed(3)
    return Gate(Gate.Config(**settings), context(seed))


def tokens(seed: int = 1, batch: int = 3) -> Tokens:
    x_BND = torch.randn(batch, 16, WIDTH, generator=torch.Generator().manual_seed(seed))
    return Tokens(x_BND, (4, 4))


def at(epoch: int) -> Progress:
    return Progress(0, epoch, 20, 0, 5)


def test_score_is_the_sigmoid_of_a_linear_layer():
    module, given = gate(), tokens()
    layer = module.network[0]
    expected = 1 / (1 + torch.exp(-(given.x_BND @ layer.weight[0] + layer.bias)))
    torch.testing.assert_close(module.score(given.x_BND), expected)


@pytest.mark.parametrize(
    ("network", "kinds"),
    [
        ("fc", [nn.Linear]),
        ("mlp", [nn.Linear, nn.ReLU, nn.Linear]),
        ("mlp-dropout", [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]),
    ],
)
def test_networks_of_table_6(network, kinds):
    module = gate(network=network)
    assert [type(layer) for layer in module.network] == kinds
    if network != "fc":
        assert module.network[0].out_features == 64
    if network == "mlp-dropout":
        assert module.network[2].p == 0.5
    selection = module(tokens(), 5, at(0))
    selection.mask_BN[:, 3].sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_evaluation_takes_the_plain_top_k():
    module, given = gate().eval(), tokens()
    selection = module(given, 5, at(0))
    scores_BN = module.score(given.x_BND)
    assert not selection.mask_BN.requires_grad
    assert torch.equal(selection.scores_BN, scores_BN)
    expected = scores_BN.topk(5, dim=1).indices.sort(dim=1).values
    assert torch.equal(selection.indices_BK, expected)


def test_training_ranks_noisy_keys():
    module, given = gate(seed=5), tokens()
    selection = module(given, 5, at(0))
    scores_BN = module.score(given.x_BND)
    noise_BN = gumbel_noise(scores_BN, torch.Generator().manual_seed(5))
    assert torch.equal(selection.scores_BN, (scores_BN + noise_BN).detach())
    best = selection.scores_BN.topk(5, dim=1).indices.sort(dim=1).values
    assert torch.equal(selection.indices_BK, best)


def test_gradient_follows_the_chain_rule():
    # d loss / d w = d loss / d mask · d khot / d key · σ'(u) · x, with the middle factor from the
    # derivative r_i (δ_ij − r_j / Σ r) of the implicit definition.
    module, given = gate(seed=5, draw="closed"), tokens(batch=1)
    weight_BN = torch.randn(1, 16, generator=torch.Generator().manual_seed(2))
    (module(given, 6, at(0)).mask_BN * weight_BN).sum().backward()
    scores_N = module.score(given.x_BND)[0].detach()
    keys_N = scores_N + gumbel_noise(scores_N[None], torch.Generator().manual_seed(5))[0]
    khot_N = relaxed_subset(keys_N[None], 6, 0.9)[0]
    r_N = 1 - torch.exp(-khot_N / 0.9)  # σ(x) = 1 − exp(−softplus(x))
    jacobian_NN = torch.diag(r_N) - torch.outer(r_N, r_N) / r_N.sum()
    by_score_N = (weight_BN[0] @ jacobian_NN) * scores_N * (1 - scores_N)
    layer = module.network[0]
    torch.testing.assert_close(
        layer.weight.grad[0], by_score_N @ given.x_BND[0], rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(layer.bias.grad[0], by_score_N.sum(), rtol=1e-4, atol=1e-6)


def test_learning_finds_the_useful_tokens():
    # Tokens whose first entry is large are worth choosing; the gate must come to prefer them.
    module = gate()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        x_BND = torch.randn(8, 16, WIDTH, generator=generator)
        mask_BN = module(Tokens(x_BND, (4, 4)), 5, at(0)).mask_BN
        loss = -(mask_BN * x_BND[..., 0]).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x_BND = torch.randn(64, 16, WIDTH, generator=generator)
    chosen = module.eval()(Tokens(x_BND, (4, 4)), 5, at(0)).mask_BN
    best = torch.zeros(64, 16).scatter_(1, x_BND[..., 0].topk(5, dim=1).indices, 1.0)
    assert (chosen * best).sum() / best.sum() > 0.8


def test_gumbel_epochs_end_the_noise_and_the_gradient():
    module, given = gate(gumbel_epochs=10), tokens()
    assert module(given, 5, at(9)).mask_BN.requires_grad
    late = module(given, 5, at(10))
    assert not late.mask_BN.requires_grad
    assert torch.equal(late.scores_BN, module.score(given.x_BND))
    assert gate()(given, 5, at(19)).mask_BN.requires_grad


@pytest.mark.parametrize("draw", ["closed", "exact"])
def test_both_draws_choose_alike(draw):
    one, other = gate(seed=2)(tokens(), 6, at(0)), gate(seed=2, draw=draw)(tokens(), 6, at(0))
    assert torch.equal(one.mask_BN, other.mask_BN)
    assert other.mask_BN.requires_grad


def learnt(draw: str, count: int, k: int) -> torch.Tensor:
    """The gradient of the gate's weights on 3 samples of ``count`` tokens."""
    module = gate(seed=5, draw=draw)
    generator = torch.Generator().manual_seed(count)
    x_BND = torch.randn(3, count, WIDTH, generator=generator)
    weight_BN = torch.randn(3, count, generator=generator)
    (module(Tokens(x_BND, (count,)), k, at(0)).mask_BN * weight_BN).sum().backward()
    return module.network[0].weight.grad


@pytest.mark.parametrize(("count", "k"), [(1, 1), (6, 2), (25, 24), (50, 12), (64, 64), (64, 1)])
def test_few_tokens_are_drawn_by_the_published_loop(count, k):
    assert torch.equal(learnt("auto", count, k), learnt("exact", count, k))


def test_many_tokens_are_drawn_in_closed_form():
    assert torch.equal(learnt("auto", 65, 20), learnt("closed", 65, 20))
    assert not torch.equal(learnt("auto", 65, 20), learnt("exact", 65, 20))


def test_the_gradient_of_few_tokens_is_that_of_the_published_recursion():
    """NumPy, written from the paper: k softmaxes of keys that fall by log(1 - p); differences."""

    def objective(weights: np.ndarray, bias: float) -> float:
        scores_N = 1 / (1 + np.exp(-(x_ND @ weights + bias)))
        alpha_N, khot_N = scores_N + noise_N, 0.0
        for _ in range(k):
            p_N = np.exp(alpha_N / 0.9)
            p_N = p_N / p_N.sum()
            khot_N = khot_N + p_N
            alpha_N = alpha_N + np.log(1 - p_N)
        return float(khot_N @ value_N)

    k, given = 6, tokens(batch=1)
    value_1N = torch.randn(1, 16, generator=torch.Generator().manual_seed(2))
    module = gate(seed=5)
    (module(given, k, at(0)).mask_BN * value_1N).sum().backward()
    noise_1N = gumbel_noise(torch.zeros(1, 16), torch.Generator().manual_seed(5))
    x_ND, noise_N = given.x_BND[0].double().numpy(), noise_1N[0].double().numpy()
    value_N = value_1N[0].double().numpy()
    layer = module.network[0]
    weights, bias = layer.weight[0].detach().double().numpy(), float(layer.bias.detach())
    for entry in range(WIDTH):
        step = np.zeros(WIDTH)
        step[entry] = 1e-5
        slope = (objective(weights + step, bias) - objective(weights - step, bias)) / 2e-5
        assert float(layer.weight.grad[0, entry]) == pytest.approx(slope, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("k", [0, 16])
@pytest.mark.parametrize("draw", ["closed", "exact"])
def test_none_and_all(k, draw):
    module = gate(draw=draw)
    for selection in (module(tokens(), k, at(0)), module.eval()(tokens(), k, at(0))):
        assert (selection.mask_BN.sum(1) == k).all()
        assert selection.indices_BK.shape == (3, k)


def test_mixed_precision_does_not_coarsen_the_scores():
    module, given = gate(), tokens()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores_BN = module.score(given.x_BND)
    assert torch.equal(scores_BN, module.score(given.x_BND))
    assert module.score(given.x_BND.bfloat16()).dtype == torch.float32


def test_restored_generator_repeats_the_draw():
    place = context(9)
    module = Gate(Gate.Config(), place)
    module(tokens(), 5, at(0))
    state = place.generator.get_state()
    first = module(tokens(), 5, at(0)).mask_BN
    assert not torch.equal(first, module(tokens(), 5, at(0)).mask_BN)
    place.generator.set_state(state)
    assert torch.equal(first, module(tokens(), 5, at(0)).mask_BN)


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"network": "cnn"}, {"gumbel_epochs": -1}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        Gate.Config(**wrong)


def test_random_selector_is_uniform_and_has_no_gradient():
    place = context(4)
    module = RandomSelector(RandomSelector.Config(), place)
    given = tokens(batch=4000)
    state = place.generator.get_state()
    selection = module(given, 4, at(0))
    assert not selection.mask_BN.requires_grad
    assert (selection.mask_BN.sum(1) == 4).all()
    # 4000 draws of 4 in 16: each token about 1000 times (standard deviation 27).
    assert (selection.mask_BN.sum(0) - 1000).abs().max() < 140
    place.generator.set_state(state)
    assert torch.equal(selection.mask_BN, module(given, 4, at(0)).mask_BN)
