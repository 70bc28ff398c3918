"""Per-sample losses ``[B]``.

Labels that are NaN are left out of a sample's mean, so masked maps need no special loss. Prediction
and label must have equal shapes: nothing broadcasts. Labels that are numbers may come standardised,
each output by itself. Relative losses then undo the shift for the size of a label, but not for the
error, whose digits a large mean would cost.

Shapes: B samples, K outputs; dense predictions and labels are ``[B, K, *shape]``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from xmodal.interfaces import Context, Loss, Settings, Target


class CrossEntropy(Loss):
    """Softmax cross-entropy, optionally with classes weighted by their rarity.

    With ``balanced: batch``, the mean over a micro-batch of training is torch's weighted mean.
    """

    class Config(Settings):
        balanced: bool | Literal["batch"] = Field(
            False,
            description="Weight classes by 1 / frequency in the training split, scaled so that the "
            "mean weight over its samples is 1; batch: over the samples that training computes at "
            "once, as the released ORCA does.",
        )
        label_smoothing: float = Field(
            0.0, ge=0, lt=1, description="Share spread over all classes."
        )

    weight_K: Tensor | None

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        # Not saved in checkpoints: a resumed run calls ``fit`` again with the same labels.
        self.register_buffer("weight_K", None, persistent=False)
        self.classes = (context.output or context.facts.task.target).size

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Exactly one class per sample."""
        return output.kind == "classification"

    def fit(self, y: Tensor) -> None:
        """Compute w_c = n / (number of classes that occur * n_c), or 1 if class c never occurs."""
        if not self.config.balanced:
            return
        count_K = torch.bincount(y.flatten().long(), minlength=self.classes).to(torch.float32)
        weight_K = len(y) / (count_K.count_nonzero() * count_K)
        self.weight_K = torch.where(count_K > 0, weight_K, 1.0)

    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The loss of logits ``[B, K]`` against classes ``[B]``."""
        loss_B = functional.cross_entropy(
            prediction, y, reduction="none", label_smoothing=self.config.label_smoothing
        )
        if not self.config.balanced:
            return loss_B
        if self.weight_K is None:
            raise RuntimeError("loss 'cross-entropy' with balanced: true needs fit() first")
        weight_B = self.weight_K.to(loss_B)[y]
        # Not in evaluation, whose batches must not change a score.
        if self.config.balanced == "batch" and self.training:
            weight_B = weight_B / weight_B.mean()
        return loss_B * weight_B

    def agreement(self, prediction: Tensor, other: Tensor) -> Tensor:
        """KL(softmax(other) || softmax(prediction)), without class weights and smoothing."""
        return softmax_divergence(prediction, other)


class Focal(Loss):
    """alpha * (1 - p_t)^gamma * cross-entropy (Lin et al. 2017)."""

    class Config(Settings):
        alpha: float = Field(1.0, gt=0, description="Factor of the whole loss.")
        gamma: float = Field(2.0, ge=0, description="How much to discount well-classified samples.")

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Exactly one class per sample."""
        return output.kind == "classification"

    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The loss of logits ``[B, K]`` against classes ``[B]``."""
        loss_B = functional.cross_entropy(prediction, y, reduction="none")
        # 1 - p_t as -expm1(log p_t): exact for confident samples.
        miss_B = -torch.expm1(-loss_B)
        return self.config.alpha * miss_B**self.config.gamma * loss_B  # type: ignore[no-any-return]

    def agreement(self, prediction: Tensor, other: Tensor) -> Tensor:
        """alpha * KL(softmax(other) || softmax(prediction)); without a true class, no focusing."""
        alpha: float = self.config.alpha
        return alpha * softmax_divergence(prediction, other)


class _Elementwise(Loss):
    """The mean of an elementwise loss over a sample's known labels."""

    kinds: ClassVar[tuple[str, ...]] = ("regression", "dense")

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Labels that are numbers."""
        return output.kind in cls.kinds

    @abstractmethod
    def each(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The loss of every number."""

    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The mean over all but the first axis; 0 for a sample without a known label."""
        y, known = filled(prediction, y)
        loss = torch.where(known, self.each(prediction, y), 0.0)
        return loss.flatten(1).sum(1) / known.flatten(1).sum(1).clamp_min(1)


class BinaryCrossEntropy(_Elementwise):
    """Sigmoid cross-entropy of every label."""

    class Config(Settings):
        pos_weight: float = Field(1.0, gt=0, description="Weight of the labels that are 1.")

    kinds = ("multi-label", "dense")
    standardises = False

    def each(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The loss of every logit."""
        return functional.binary_cross_entropy_with_logits(
            prediction,
            y,
            reduction="none",
            pos_weight=prediction.new_full((), self.config.pos_weight),
        )

    def agreement(self, prediction: Tensor, other: Tensor) -> Tensor:
        """The mean KL(Bernoulli(σ(other)) || Bernoulli(σ(prediction))), without ``pos_weight``."""
        yes = functional.logsigmoid(other) - functional.logsigmoid(prediction)
        no = functional.logsigmoid(-other) - functional.logsigmoid(-prediction)
        divergence = torch.sigmoid(other) * yes + torch.sigmoid(-other) * no
        return divergence.flatten(1).mean(1)


class SquaredError(_Elementwise):
    """The mean squared error of a sample."""

    degree = 2

    def each(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Squares."""
        return (prediction - y).square()


class AbsoluteError(_Elementwise):
    """The mean absolute error of a sample."""

    degree = 1

    def each(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Absolute values."""
        return (prediction - y).abs()


class RelativeL2Loss(Loss):
    """||p - y|| / ||y|| of a sample (Li et al. 2021, Darcy flow), the mean over its outputs.

    y is the label in its own unit, also if labels are standardised. A label that is zero everywhere
    has no relative error and is left out.
    """

    class Config(Settings):
        """Settings of the relative error."""

        factor: float = Field(
            1.0,
            gt=0,
            description="Factor of the whole loss; the size of the batch gives the sum over the "
            "batch instead of its mean.",
        )

    degree = 0
    offset: Tensor | None

    def __init__(self, config: Settings, context: Context) -> None:
        super().__init__(config, context)
        # Not saved in checkpoints: a resumed run calls ``unit`` again.
        self.register_buffer("offset", None, persistent=False)

    def unit(self, mean: Tensor, scale: Tensor) -> None:
        """Keep the label 0 in standardised units."""
        self.offset = (mean / scale).float()

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Labels that are numbers."""
        return output.kind in ("regression", "dense")

    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The ratio of norms over all but the first two axes, averaged over the second."""
        factor: float = self.config.factor
        return factor * relative_l2(prediction, y, self.offset)[0]


class NormalisedRMSELoss(RelativeL2Loss):
    """RMSE / RMS(y) of a sample: the relative L2 error under PDEBench's name."""


class RootMeanSquaredErrorLoss(Loss):
    """The root of a sample's mean squared error."""

    degree = 1

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Labels that are numbers."""
        return output.kind in ("regression", "dense")

    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The root over all but the first axis; its gradient at zero error is zero, not NaN."""
        y, known = filled(prediction, y)
        count_B = known.flatten(1).sum(1).clamp_min(1)
        error_B: Tensor = torch.linalg.vector_norm((prediction - y).flatten(1), dim=1)
        return error_B / count_B.sqrt()


def softmax_divergence(prediction: Tensor, other: Tensor) -> Tensor:
    """KL(q || p) ``[B]`` of the softmaxes of two logits ``[B, K]``; q is that of ``other``."""
    log_p_BK, log_q_BK = prediction.log_softmax(1), other.log_softmax(1)
    return functional.kl_div(log_p_BK, log_q_BK, reduction="none", log_target=True).sum(1)


def relative_l2(
    prediction: Tensor, y: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """||p - y|| / ||y + offset|| of each output ``[B, K, *shape]``, averaged over outputs: ``[B]``.

    Labels that are NaN count as absent. An output whose label is zero everywhere has no relative
    error and is left out; the second tensor ``[B]`` says which samples have any other.
    """
    y_filled, known = filled(prediction, y)
    error_BKS = (prediction - y_filled).unsqueeze(-1).flatten(2)
    y_BKS = torch.where(known, y_filled, 0.0).unsqueeze(-1).flatten(2)
    error_BK: Tensor = torch.linalg.vector_norm(error_BKS, dim=2)
    rounding_BK = torch.zeros_like(error_BK)
    if offset is not None:
        offset_BKS = torch.where(known, offset.to(y_filled), 0.0).unsqueeze(-1).flatten(2)
        # Below these digits the sum of the two is nothing but rounding.
        digits = 4 * torch.finfo(y_BKS.dtype).eps
        rounding_BK = digits * torch.linalg.vector_norm(offset_BKS, dim=2)
        y_BKS = y_BKS + offset_BKS
    size_BK: Tensor = torch.linalg.vector_norm(y_BKS, dim=2)
    sized_BK = size_BK > rounding_BK
    ratio_BK = torch.where(sized_BK, error_BK / torch.where(sized_BK, size_BK, 1.0), 0.0)
    count_B = sized_BK.sum(1)
    return ratio_BK.sum(1) / count_B.clamp_min(1), count_B > 0


def filled(prediction: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Labels with every NaN replaced by the prediction, and a mask of the known labels."""
    if prediction.shape != y.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and label {tuple(y.shape)} differ in shape"
        )
    known = ~y.isnan()
    return torch.where(known, y, prediction.detach()).to(prediction.dtype), known
