"""Table of contents of this plugin."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_tasks() -> Mapping[str, str]:
    """Tasks of NAS-Bench-360."""
    return {
        "cifar100": "xmodal_nasbench360.cifar100:Cifar100",
        "cosmic": "xmodal_nasbench360.cosmic:Cosmic",
        "darcy": "xmodal_nasbench360.darcy:Darcy",
        "deepsea": "xmodal_nasbench360.deepsea:DeepSea",
        "ecg": "xmodal_nasbench360.ecg:Ecg",
        "fsd50k": "xmodal_nasbench360.fsd50k:Fsd50k",
        "ninapro": "xmodal_nasbench360.ninapro:NinaPro",
        "psicov": "xmodal_nasbench360.psicov:Psicov",
        "satellite": "xmodal_nasbench360.satellite:Satellite",
        "spherical": "xmodal_nasbench360.spherical:Spherical",
    }


@hookimpl
def xmodal_metrics() -> Mapping[str, str]:
    """Metrics of a single task."""
    return {"mae-lr-d8": "xmodal_nasbench360.psicov_metric:LongRangeError"}
