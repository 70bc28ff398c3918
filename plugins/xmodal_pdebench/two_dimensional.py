"""PDEBench's tasks in two dimensions."""

from __future__ import annotations

from xmodal_pdebench.arrays import Making
from xmodal_pdebench.layout import Field, FileLayout
from xmodal_pdebench.problem import PDEProblem, darus
from xmodal_pdebench.task import PDETask


class DarcyFlow(PDETask):
    """Darcy flow, permeability to pressure at t = 1.75 (PDEBench, beta = 0.1)."""

    problem = PDEProblem(
        name="darcy-pdebench",
        task="darcy",
        title="Darcy flow",
        file=darus("2D_DarcyFlow_beta0.1_Train.hdf5", 133218, "294f9a03a4aa16b0e386469ca8b471be"),
        size=1.3e9,
        layout=FileLayout(
            {"nu": (128, 128), "tensor": (1, 128, 128)}, (Field("nu"),), (Field("tensor", 0),)
        ),
        making=Making("xmodal_pdebench.darcy_flow:samples", chunk=50),
        same="permeabilities and starts sample for sample, the published equations in space, "
        "solved exactly in time",
        stride=2,
        images={"permeability": 0},
        coarse="xmodal_pdebench.darcy_flow:coarse",
        coarse_points=32,
    )


class ShallowWater(PDETask):
    """A radial dam break, depth at t = 0 to depth at t = 1 (PDEBench)."""

    problem = PDEProblem(
        name="shallow-water",
        title="shallow water",
        file=darus("2D_rdb_NA_NA.h5", 133021, "75d838c47aa410694bdc912ea7f22282"),
        size=6.2e9,
        layout=FileLayout(
            {"data": (101, 128, 128, 1)},
            (Field("data", 0, 0),),
            (Field("data", 100, 0),),
            grouped=True,
        ),
        making=Making("xmodal_pdebench.shallow_water:samples", chunk=10),
        same="radii sample for sample, solved by the published scheme",
        samples=1000,
        test="last",
        images={"depth at t = 0": 0},
        coarse="xmodal_pdebench.shallow_water:coarse",
        coarse_points=32,
    )


class DiffusionReaction2D(PDETask):
    """FitzHugh-Nagumo, activator at t = 0 to inhibitor at t = 5 (PDEBench, as ORCA uses it)."""

    problem = PDEProblem(
        name="diffusion-reaction-2d",
        title="diffusion-reaction in two dimensions",
        file=darus("2D_diff-react_NA_NA.h5", 133017, "b8d0b86064193195ddc30c33be5dc949"),
        size=13e9,
        layout=FileLayout(
            {"data": (101, 128, 128, 2)},
            (Field("data", 0, 0),),
            (Field("data", 100, 1),),
            grouped=True,
        ),
        making=Making("xmodal_pdebench.reaction_diffusion_2d:samples", chunk=10),
        same="starts sample for sample, solved by the published scheme",
        samples=1000,
        test="last",
        images={"activator at t = 0": 0},
        coarse="xmodal_pdebench.reaction_diffusion_2d:coarse",
        coarse_points=32,
    )
