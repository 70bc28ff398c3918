"""Table of contents of this plugin."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path

from xmodal import hookimpl


@hookimpl
def xmodal_embedders() -> Mapping[str, str]:
    """Grids, sequences, tables, and whole samples."""
    return {
        "auto": "xmodal_basics.embedders.auto:AutoEmbedder",
        "patch": "xmodal_basics.embedders.patch:Patch",
        "conv-1d": "xmodal_basics.embedders.conv1d:Conv1d",
        "fold-2d": "xmodal_basics.embedders.fold2d:Fold2d",
        "random-kernels": "xmodal_basics.embedders.random_kernels:RandomKernels",
        "columns": "xmodal_basics.embedders.columns:Columns",
        "row-ple": "xmodal_basics.embedders.encoded_columns:EncodedColumns",
        "flat": "xmodal_basics.embedders.flat:Flat",
        "native": "xmodal_basics.embedders.native:NativeEmbedder",
        "as-picture": "xmodal_basics.embedders.picture:Picture",
        "as-pretrained": "xmodal_basics.embedders.picture:OwnEmbedder",
    }


@hookimpl
def xmodal_backbones() -> Mapping[str, str]:
    """The backbone that changes nothing."""
    return {"identity": "xmodal_basics.identity:Identity"}


@hookimpl
def xmodal_mixers() -> Mapping[str, str]:
    """The mixer that mixes nothing."""
    return {"none": "xmodal_basics.mixers:NoMixing"}


@hookimpl
def xmodal_predictors() -> Mapping[str, str]:
    """Heads for every kind of label, and scikit-learn models."""
    return {
        "auto": "xmodal_basics.predictors:AutoPredictor",
        "pooled": "xmodal_basics.predictors:Pooled",
        "classification": "xmodal_basics.predictors:Classification",
        "multi-label": "xmodal_basics.predictors:MultiLabel",
        "regression": "xmodal_basics.predictors:Regression",
        "dense": "xmodal_basics.predictors:Dense",
        "dense-1d": "xmodal_basics.predictors:Dense1d",
        "dense-2d": "xmodal_basics.predictors:Dense2d",
        "sklearn": "xmodal_basics.sklearn_baseline:Sklearn",
        "local-linear": "xmodal_basics.local_linear:LocalLinear",
        "majority": "xmodal_basics.majority:Majority",
        "forest": "xmodal_basics.forest:Forest",
        "frozen-features": "xmodal_basics.frozen_features:FrozenFeatures",
        "kernels": "xmodal_basics.kernels:ConvolutionKernels",
        "nearest": "xmodal_basics.nearest:Nearest",
        "residual": "xmodal_basics.residual:ResidualPredictor",
    }


@hookimpl
def xmodal_stages() -> Mapping[str, str]:
    """Gradient training, and fitting once to all samples."""
    return {
        "finetune": "xmodal_basics.finetune:Finetune",
        "fit": "xmodal_basics.fit:Fit",
        "fit-cheap": "xmodal_basics.residual:FitCheap",
    }


@hookimpl
def xmodal_losses() -> Mapping[str, str]:
    """Losses of every sample."""
    return {
        "cross-entropy": "xmodal_basics.losses:CrossEntropy",
        "focal": "xmodal_basics.losses:Focal",
        "bce": "xmodal_basics.losses:BinaryCrossEntropy",
        "mse": "xmodal_basics.losses:SquaredError",
        "l1": "xmodal_basics.losses:AbsoluteError",
        "rmse": "xmodal_basics.losses:RootMeanSquaredErrorLoss",
        "relative-l2": "xmodal_basics.losses:RelativeL2Loss",
        "nrmse": "xmodal_basics.losses:NormalisedRMSELoss",
    }


@hookimpl
def xmodal_metrics() -> Mapping[str, str]:
    """Errors over a whole split."""
    return {
        "error-rate": "xmodal_basics.metrics:ErrorRate",
        "balanced-error": "xmodal_basics.metrics:BalancedError",
        "f1-error": "xmodal_basics.metrics:F1Error",
        "auroc-error": "xmodal_basics.metrics:AUROCError",
        "average-precision-error": "xmodal_basics.metrics:AveragePrecisionError",
        "pixel-auroc-error": "xmodal_basics.pixel_auroc:PixelAUROCError",
        "grouped-error-rate": "xmodal_basics.grouped:GroupedErrorRate",
        "grouped-rmse": "xmodal_basics.grouped:GroupedRMSE",
        "grouped-average-precision-error": "xmodal_basics.grouped:GroupedAveragePrecisionError",
        "mae": "xmodal_basics.metrics:MeanAbsoluteError",
        "rmse": "xmodal_basics.metrics:RootMeanSquaredError",
        "nrmse": "xmodal_basics.metrics:NormalisedRMSE",
        "relative-l2": "xmodal_basics.metrics:RelativeL2Error",
        "r2-error": "xmodal_basics.metrics:R2Error",
    }


@hookimpl
def xmodal_recipes() -> Traversable:
    """The shipped recipes: beside this module in a wheel, at the top of a source checkout."""
    here = Path(__file__).resolve().parent
    packed = here / "recipes"
    return packed if packed.is_dir() else here.parent.parent / "recipes"
