"""Table of contents of this plugin."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_tasks() -> Mapping[str, str]:
    """Tasks, by name."""
    return {
        "cosmic-simulated": "xmodal_standins.cosmic_simulated:CosmicSimulated",
        "crop": "xmodal_standins.crop:Crop",
        "dna-dhs": "xmodal_standins.dna:DnaDhs",
        "dna-rice": "xmodal_standins.dna:DnaRice",
        "ecg-subset": "xmodal_standins.ecg_subset:EcgSubset",
        "esc10": "xmodal_standins.esc10:Esc10",
        "myo": "xmodal_standins.myo:Myo",
        "pacs": "xmodal_standins.pacs:Pacs",
        "proteins": "xmodal_standins.proteins:ProteinChains",
    }
