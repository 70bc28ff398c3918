"""Table of contents of this plugin."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_tasks() -> Mapping[str, str]:
    """Tables of OpenML-CC18: one generic task that reads files, and four tasks without files."""
    return {
        "openml": "xmodal_openml.task:OpenML",
        "openml/balance-scale": "xmodal_openml.task:BalanceScale",
        "openml/car": "xmodal_openml.task:Car",
        "openml/tic-tac-toe": "xmodal_openml.task:TicTacToe",
        "openml/wdbc": "xmodal_openml.task:Wdbc",
    }
