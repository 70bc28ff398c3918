"""Table of contents of this plugin."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from xmodal import hookimpl


@hookimpl
def xmodal_predictors() -> Mapping[str, str]:
    """Rivals, by name."""
    return {
        "coarse-solve": "xmodal_rivals.coarse_solve:CoarseSolve",
        "pinn": "xmodal_rivals.pinn:PINN",
        "xgboost": "xmodal_rivals.boosting:XGBoost",
        "lightgbm": "xmodal_rivals.boosting:LightGBM",
        "catboost": "xmodal_rivals.boosting:CatBoost",
        "deepcr": "xmodal_rivals.deepcr:DeepCR",
        "minirocket": "xmodal_rivals.elsewhere:MiniRocket",
        "hydra": "xmodal_rivals.elsewhere:Hydra",
        "quant": "xmodal_rivals.elsewhere:Quant",
        "autogluon": "xmodal_rivals.elsewhere:AutoGluon",
        "realmlp": "xmodal_rivals.elsewhere:RealMLP",
        "tabm": "xmodal_rivals.elsewhere:TabM",
        "tabpfn": "xmodal_rivals.elsewhere:TabPFN",
        "fno": "xmodal_rivals.fno:FNO",
        "unet": "xmodal_rivals.unet:UNet",
        "wide-resnet": "xmodal_rivals.wide_resnet:WideResNet",
        "dash": "xmodal_rivals.dash:Dash",
        "gated-cnn": "xmodal_rivals.gated_cnn:GatedCNN",
        "perceiver-io": "xmodal_rivals.perceiver:PerceiverIO",
    }


@hookimpl
def xmodal_commands(app: Any) -> None:
    """``xmodal rivals``."""
    importlib.import_module("xmodal_rivals.commands").add_to(app)


@hookimpl
def xmodal_stages() -> Mapping[str, str]:
    """The search of ``dash``."""
    return {"search-kernels": "xmodal_rivals.dash:SearchKernels"}
