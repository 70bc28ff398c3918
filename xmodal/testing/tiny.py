"""Small stand-ins for all parts of a run, and the assertions that all checks share.

No stand-in has a registered name or reads files. The same call always gives the same numbers.

Shapes: B samples, N tokens, D width of tokens and features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from xmodal.batch import SOURCE, TARGET, Progress, Sample, Selection, Tokens
from xmodal.data.store import Store
from xmodal.interfaces import (
    Backbone,
    BackboneFacts,
    Component,
    Context,
    Facts,
    Scheduler,
    Selector,
    Settings,
    SourceFacts,
    Target,
    TaskFacts,
)
from xmodal.ops import hard_subset

Form = Literal["grid", "sequence", "row"]
WIDTH = 16
PATCH = 4
BATCH = 3
CLASSES = 2 * BATCH
# Two channels and unequal sides expose code that expects square RGB images.
SHAPES: dict[str, tuple[int, ...]] = {"grid": (2, 16, 24), "sequence": (2, 40), "row": (6,)}
GRIDS: dict[str, tuple[int, ...]] = {"grid": (4, 6), "sequence": (10,), "row": (6,)}
LEVELS = (0, 0, 3, 0, 2, 4)


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers that depend only on shape and seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiny_target(kind: str = "classification", form: Form = "grid") -> Target:
    """A target of this kind; dense labels have the samples' own grid."""
    if kind == "dense":
        return Target("dense", 2, SHAPES[form][1:])
    sizes = {"classification": CLASSES, "multi-label": 4, "regression": 2}
    return Target(kind, sizes[kind])  # type: ignore[arg-type]


def tiny_task(form: Form = "grid", target: Target | None = None) -> TaskFacts:
    """Facts of a task with samples of this form."""
    return TaskFacts(
        name=f"example-{form}",
        shape=SHAPES[form],
        target=target or tiny_target(form=form),
        samples={"train": 12, "validation": 6, "test": 6},
        levels=LEVELS if form == "row" else (),
    )


def tiny_backbone() -> BackboneFacts:
    """Facts of ``TinyBackbone``."""
    return BackboneFacts(
        name="example-backbone",
        modality="image",
        width=WIDTH,
        feature_width=WIDTH,
        patch=PATCH,
        grid=GRIDS["grid"],
        embedding_norm=True,
    )


def tiny_facts(form: Form = "grid", target: Target | None = None) -> Facts:
    """Facts of a whole run on samples of this form, with an image source."""
    source = SourceFacts("example-source", "image", Target("classification", CLASSES))
    return Facts(tiny_task(form, target), tiny_backbone(), source, GRIDS[form])


def tiny_context(
    facts: Facts | None = None,
    components: Mapping[str, Any] | None = None,
    output: Target | None = None,
    seed: int = 0,
) -> Context:
    """A context to build a component with, with its own generator."""
    facts = facts or tiny_facts()
    generator = torch.Generator().manual_seed(seed)
    return Context(facts, generator, Store(), components or {}, output or facts.task.target)


def tiny_tokens(grid: tuple[int, ...] = (4, 6), batch: int = BATCH, seed: int = 0) -> Tokens:
    """Random tokens ``[B, N, D]``."""
    return Tokens(random(batch, prod(grid), WIDTH, seed=seed), grid)


def tiny_sample(head: str = TARGET, grid: tuple[int, ...] = (4, 6), seed: int = 0) -> Sample:
    """Random tokens with labels; target and source heads have no label in common."""
    first = BATCH if head == SOURCE else 0
    labels = torch.arange(first, first + BATCH)
    return Sample(tiny_tokens(grid, seed=seed + first), labels, head)


def tiny_samples(task: TaskFacts, batch: int = BATCH, seed: int = 0) -> Tensor:
    """Raw samples ``[B, *shape]``; table categories are coded 0 .. m-1."""
    x = random(batch, *task.shape, seed=seed)
    for column, levels in enumerate(task.levels):
        if levels:
            x[:, column] = (torch.arange(batch) + seed) % levels
    return x


def tiny_labels(target: Target, batch: int = BATCH, seed: int = 0) -> Tensor:
    """Labels for a target. Every class occurs; dense labels are 0 or 1, which suits all losses."""
    if target.kind == "classification":
        return (torch.arange(batch) + seed) % target.size
    shape = (batch, target.size, *target.shape)
    if target.kind == "regression":
        return random(*shape, seed=seed)
    binary = (random(*shape, seed=seed) > 0).float()
    binary[0], binary[-1] = 0.0, 1.0
    return binary


def tiny_prediction(target: Target, batch: int = BATCH, seed: int = 1) -> Tensor:
    """A random prediction ``[B, K]``, or ``[B, K, *shape]`` for dense outputs."""
    return random(batch, target.size, *target.shape, seed=seed)


def progress(epoch: int = 0, epochs: int = 4, step: int = 0, steps: int = 2) -> Progress:
    """A point in the first stage."""
    return Progress(0, epoch, epochs, step, steps)


class TinyBackbone(Backbone):
    """A random backbone that mixes every token with the mean of all tokens of its sample."""

    def __init__(self, config: Settings, context: Context) -> None:
        super().__init__(config, context)
        self.facts = tiny_backbone()
        self.projection = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
        self.input_norm = nn.LayerNorm(WIDTH)
        self.encoder = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh())

    @classmethod
    def describe(cls, config: Settings, store: Store) -> BackboneFacts:
        """The facts."""
        return tiny_backbone()

    def embed(self, x: Tensor) -> Tokens:
        """Cut images ``[B, 3, H, W]`` into patches."""
        x_BDhw = self.projection(x)
        tokens_BND = self.input_norm(x_BDhw.flatten(2).transpose(1, 2))
        return Tokens(tokens_BND, tuple(x_BDhw.shape[2:]))

    def forward(self, tokens: Tokens) -> Tokens:
        """Encode."""
        x_BND = tokens.x_BND + tokens.x_BND.mean(dim=1, keepdim=True)
        return Tokens(tokens.x_BND + self.encoder(x_BND), tokens.grid)

    def patch_projection(self) -> nn.Conv2d:
        """The projection of RGB patches."""
        return self.projection

    def embedding_norm(self) -> nn.LayerNorm:
        """The norm at the end of the embedding."""
        return self.input_norm

    def embedding_parameters(self) -> list[nn.Parameter]:
        """The parameters that only the embedding uses."""
        return [*self.projection.parameters(), *self.input_norm.parameters()]


class TinySelector(Selector):
    """Selects the k tokens with the largest sum, with a straight-through gradient."""

    def forward(self, tokens: Tokens, k: int | Tensor, progress: Progress) -> Selection:
        """Select."""
        scores_BN = tokens.x_BND.sum(dim=2)
        hard_BN = hard_subset(scores_BN, k).to(scores_BN.dtype)
        soft_BN = scores_BN.sigmoid()
        return Selection(hard_BN + (soft_BN - soft_BN.detach()), scores_BN.detach(), k)


class TinyScheduler(Scheduler):
    """A fixed k, at most N."""

    class Config(Settings):
        """Settings of the scheduler."""

        k: int = Field(1, ge=0, description="Tokens to replace.")

    def __call__(self, progress: Progress, num_tokens: int) -> int:
        """The fixed k."""
        return min(int(self.config.k), num_tokens)


Given = Mapping[str, Any] | Settings | None
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def expect(condition: bool, message: str) -> None:
    """Raise AssertionError with the message, also under ``python -O``."""
    if not condition:
        raise AssertionError(message)


def settings(component: type[Component], given: Given) -> Any:
    """The validated settings of a component."""
    if isinstance(given, Settings):
        return given
    return component.Config.model_validate(dict(given or {}))


def build(component: type[Component], given: Given = None, context: Context | None = None) -> Any:
    """Build a component as the engine does, under a fixed seed."""
    with seeded(0):
        return component(settings(component, given), context or tiny_context())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators inside the block, and restore their states after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def has_dropout(module: nn.Module) -> bool:
    """Whether a module holds dropout, which draws from the global generator."""
    return any(isinstance(part, _DROPOUTS) for part in module.modules())


def finite(value: Tensor, what: str) -> None:
    """Expect a tensor without NaN and infinity."""
    expect(bool(torch.isfinite(value).all()), f"{what} holds NaN or infinity")


def shaped(value: Any, shape: tuple[int, ...], what: str) -> None:
    """Expect a tensor with this shape."""
    expect(isinstance(value, Tensor), f"{what} must be a tensor, not {type(value).__name__}")
    found = tuple(value.shape)
    expect(found == shape, f"{what} must have shape {list(shape)}, not {list(found)}")


def tokens(value: Any, batch: int, width: int, what: str) -> None:
    """Expect finite ``Tokens`` whose grid fits their number; ``width`` 0 allows any."""
    expect(isinstance(value, Tokens), f"{what} must be Tokens, not {type(value).__name__}")
    expect(value.x_BND.ndim == 3, f"{what} must have 3 axes [B, N, D], not {value.x_BND.ndim}")
    count = 1
    for side in value.grid:
        count *= side
    shaped(value.x_BND, (batch, count, width or value.x_BND.shape[2]), f"{what} on {value.grid}")
    finite(value.x_BND, what)


def same(one: Tensor, other: Tensor, what: str, tolerance: float = 1e-4) -> None:
    """Expect two tensors to agree."""
    shaped(other, tuple(one.shape), what)
    close = torch.allclose(one.float(), other.float(), rtol=tolerance, atol=tolerance)
    expect(close, what)


def gradient(leaf: Tensor, what: str, name: str) -> None:
    """Expect a finite gradient at ``leaf``."""
    expect(leaf.grad is not None, f"{name}: no gradient reaches {what}")
    assert leaf.grad is not None
    finite(leaf.grad, f"{name}: the gradient of {what}")


def gradients(module: nn.Module, output: Tensor, name: str) -> None:
    """Expect a finite gradient of ``output`` at every trainable parameter."""
    module.zero_grad(set_to_none=True)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    (output.float() * weights).sum().backward()  # type: ignore[no-untyped-call]
    for key, parameter in module.named_parameters():
        if parameter.requires_grad:
            gradient(parameter, f"parameter '{key}'", name)


def check_class(
    component: type[Component], interface: type[Component], given: Given
) -> tuple[str, Any]:
    """Expect a component of one kind with sound settings; returns its name and the settings."""
    derived = issubclass(component, interface)
    message = f"{component.__name__} must derive from xmodal.interfaces.{interface.__name__}"
    expect(derived, message)
    check_config(component, given)
    return component.__name__, settings(component, given)


def check_config(component: type[Component], given: Given = None) -> None:
    """Settings must survive dumping, have a JSON schema, and refuse unknown keys."""
    name, config = component.__name__, settings(component, given)
    for mode in ("python", "json"):
        dumped = config.model_dump(mode=mode)
        again = component.Config.model_validate(dumped)
        expect(again == config, f"{name}.Config does not survive a {mode} dump: {dumped}")
    schema = component.Config.model_json_schema()
    expect(schema.get("type") == "object", f"{name}.Config has no JSON schema of an object")
    expect("use" not in component.Config.model_fields, f"{name}.Config: 'use' is a reserved key")
    extra = {**config.model_dump(mode="json"), "no_such_setting": 1}
    try:
        component.Config.model_validate(extra)
    except ValidationError:
        pass
    else:
        raise AssertionError(f"{name}.Config accepts an unknown key")
    problems = component.problems(config, tiny_context().facts)
    for line in problems:
        expect(isinstance(line, str) and bool(line), f"{name}.problems must give non-empty lines")
