"""Table of contents of this plugin."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_predictors() -> Mapping[str, str]:
    """Rivals, by name."""
    return {
        "coarse-solve": "xmodal_rivals.coarse_solve:CoarseSolve",
        "xgboost": "xmodal_rivals.boosting:XGBoost",
        "lightgbm": "xmodal_rivals.boosting:LightGBM",
        "catboost": "xmodal_rivals.boosting:CatBoost",
    }
