"""Table of contents of this plugin."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_tasks() -> Mapping[str, str]:
    """Tasks, by name."""
    return {
        "pdebench/advection": "xmodal_pdebench.one_dimensional:Advection",
        "pdebench/burgers": "xmodal_pdebench.one_dimensional:Burgers",
        "pdebench/diffusion-reaction": "xmodal_pdebench.one_dimensional:DiffusionReaction",
        "pdebench/diffusion-sorption": "xmodal_pdebench.one_dimensional:DiffusionSorption",
        "pdebench/navier-stokes": "xmodal_pdebench.one_dimensional:NavierStokes",
        "pdebench/darcy": "xmodal_pdebench.two_dimensional:DarcyFlow",
        "pdebench/shallow-water": "xmodal_pdebench.two_dimensional:ShallowWater",
        "pdebench/diffusion-reaction-2d": "xmodal_pdebench.two_dimensional:DiffusionReaction2D",
    }
