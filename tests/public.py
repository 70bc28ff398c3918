"""The modules that plugins may import from ``xmodal``. All else may change in any version."""

PUBLIC = (
    "xmodal",
    "xmodal.alignment",
    "xmodal.batch",
    "xmodal.cli.output",
    "xmodal.data",
    "xmodal.data.loader",
    "xmodal.data.tables",
    "xmodal.errors",
    "xmodal.files",
    "xmodal.hookspecs",
    "xmodal.interfaces",
    "xmodal.ops",
    "xmodal.optimize",
    "xmodal.randomness",
    "xmodal.report",
    "xmodal.settings",
    "xmodal.testing",
    "xmodal.testing.contract",
    "xmodal.text",
    "xmodal.workbench",
)
