"""The model of a run: embedder, backbone, heads and mixer, and the loss of one micro-batch.

It knows heads only as "target" and "source" and never asks which method it is running.
Shapes: B samples, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from xmodal.batch import SOURCE, TARGET, Batch, Progress, Sample, Tokens, View
from xmodal.errors import UsageError
from xmodal.interfaces import Backbone, Embedder, Loss, Mixer, Model, Predictor
from xmodal.ops import used

_ADDS = "the predictor adds something to its prediction that depends on the samples"


class TrainingModel(Model):
    """Everything that is trained or evaluated."""

    def __init__(
        self,
        embedder: Embedder,
        backbone: Backbone,
        mixer: Mixer,
        predictor: Predictor,
        loss: Loss,
        decode: nn.Module,
        source_predictor: Predictor | None = None,
        source_loss: Loss | None = None,
        share_head: bool = False,
    ) -> None:
        super().__init__()
        self.embedder = embedder
        self.backbone = backbone
        self.mixer = mixer
        self.predictor = predictor
        self.loss = loss
        self.decode = decode
        self.source_predictor = source_predictor
        self.source_loss = source_loss
        self.share_head = share_head
        self.helpers = nn.ModuleDict()
        self.frozen = {id(p) for p in backbone.embedding_parameters()}

    def predict(self, x: Tensor) -> Tensor:
        """Predict in the unit of the labels."""
        return self._decoded(
            self.predictor(self.backbone(self.embedder(x))), self.predictor.from_samples(x)
        )

    def embed_source(self, x: Tensor) -> Tokens:
        """The frozen pretrained embedding of source samples."""
        with torch.no_grad():
            return self.backbone.embed(x)

    def forward(self, batch: Batch, progress: Progress) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The loss of one micro-batch and what to log about it."""
        views = self.views(batch, progress)
        features = self.encode(views)
        predictions: dict[tuple[int, str], Tensor] = {}
        offset = self._offset(batch)

        def predicted(view: int, head: str) -> Tensor:
            if (view, head) not in predictions:
                own = head == TARGET and offset is not None
                predictions[view, head] = (
                    self._decoded(self.predictor(features[view]), offset)
                    if own
                    else self.apply_head(head, features[view])
                )
            return predictions[view, head]

        total: Tensor | None = None
        log: dict[str, Tensor | float] = {}
        for number, view in enumerate(views):
            for term in view.terms:
                if not used(term.weight):
                    continue
                own, loss = predicted(number, term.head), self.loss_of(term.head)
                name = f"view{number}/{term.head}"
                if term.like is None:
                    value = loss(own, term.y).mean()
                else:
                    other = predicted(term.like, term.head).detach()
                    value = loss.agreement(own, other).mean()
                    name += " agreement"
                log[name] = value.detach()
                value = _weighted(term.weight, value)
                total = value if total is None else total + value
            log.update(view.log)
        return batch.x.new_zeros(()) if total is None else total, log

    def views(self, batch: Batch, progress: Progress) -> tuple[View, ...]:
        """Embed and mix."""
        further = None if batch.unlabelled is None else self.embedder(batch.unlabelled)
        target = Sample(self.embedder(batch.x), batch.y, TARGET, further)
        partner = None
        if batch.source is not None:
            partner = Sample(self.embed_source(batch.source[0]), batch.source[1], SOURCE)
        views: tuple[View, ...] = self.mixer(target, partner, progress)
        return views

    def encode(self, views: tuple[View, ...]) -> list[Tokens]:
        """Push all views through the backbone, those of one shape together."""
        first = views[0].tokens
        same = all(
            v.tokens.grid == first.grid and v.tokens.x_BND.shape[1:] == first.x_BND.shape[1:]
            for v in views
        )
        if len(views) == 1 or not same:
            return [self.backbone(view.tokens) for view in views]
        sizes = [len(view.tokens.x_BND) for view in views]
        stacked = torch.cat([view.tokens.x_BND for view in views])
        features = self.backbone(Tokens(stacked, first.grid))
        return [Tokens(part, features.grid) for part in torch.split(features.x_BND, sizes)]

    def apply_head(self, head: str, features: Tokens) -> Tensor:
        """The prediction of one head, the target's in the unit of its labels."""
        if head == TARGET:
            if self.predictor.reads_samples:
                raise UsageError(f"{_ADDS}, so nothing can predict from features alone")
            return self._decoded(self.predictor(features))
        if self.share_head:
            return self.predictor(features).float()  # type: ignore[no-any-return]
        assert self.source_predictor is not None
        return self.source_predictor(features).float()  # type: ignore[no-any-return]

    def loss_of(self, head: str) -> Loss:
        """The loss of one head."""
        if head == TARGET:
            return self.loss
        assert self.source_loss is not None
        return self.source_loss

    def _offset(self, batch: Batch) -> Tensor | None:
        """What the predictor adds to its prediction of the training samples of a batch."""
        if not self.predictor.reads_samples:
            return None
        if batch.index is None:
            raise UsageError(f"{_ADDS}, so a stage must say which ones it trains on")
        return self.predictor.from_samples(batch.x, batch.index)

    def _decoded(self, prediction: Tensor, offset: Tensor | None = None) -> Tensor:
        # Decoding and losses stay in fp32: they are cheap, and bf16 would cost digits of the score.
        prediction = prediction.float()
        decoded: Tensor = self.decode(prediction if offset is None else prediction + offset)
        return decoded

    def select_trainable(self, patterns: tuple[str, ...]) -> list[tuple[str, nn.Parameter]]:
        """Set ``requires_grad`` by patterns and return what trains. ``norms``: every LayerNorm.

        What fits a pattern that begins with ``!`` does not train, whatever the others say, nor do
        the pretrained source embedding and the helpers of stages.
        """
        chosen = []
        taken = [p for p in patterns if not p.startswith("!")]
        left = [p.removeprefix("!") for p in patterns if p.startswith("!")]
        for name, parameter, module in self._parameters_with_modules():
            norm = isinstance(module, nn.LayerNorm)
            wanted = _fits(name, norm, taken) and not _fits(name, norm, left)
            wanted = wanted and id(parameter) not in self.frozen
            wanted = wanted and not name.startswith("helpers.")
            parameter.requires_grad_(wanted)
            if wanted:
                chosen.append((name, parameter))
        return chosen

    def select_helper(self, stage: int) -> list[tuple[str, nn.Parameter]]:
        """Let the helper of a stage train, if it has one, and return its parameters."""
        key = helper_name(stage)
        if key not in self.helpers:
            return []
        helper = self.helpers[key].requires_grad_(True)
        return [(f"helpers.{key}.{name}", p) for name, p in helper.named_parameters()]

    def _parameters_with_modules(self) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
        for prefix, module in self.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                yield f"{prefix}.{name}" if prefix else name, parameter, module


def helper_name(stage: int) -> str:
    """The name under ``helpers`` of what a stage trains beside the model."""
    return f"stage{stage}"


def _weighted(weight: float | Tensor, value: Tensor) -> Tensor:
    if isinstance(weight, Tensor):
        return weight.to(value.dtype) * value  # rounded as a Python number would be
    return value if weight == 1 else weight * value


def _fits(name: str, norm: bool, patterns: list[str]) -> bool:
    """Whether a parameter fits any pattern; ``norm``: it belongs to a LayerNorm."""
    return any(fnmatchcase(name, p) or (p == "norms" and norm) for p in patterns)
