"""The Ray task that runs on a node: one cell, which saves itself when the task is cancelled."""

from __future__ import annotations

from xmodal_launch.process import Order, end, start, wait


def run(order: Order, threads: int, grace: float) -> int:
    """Run the command and return its exit code; if the task is cancelled, let the command save.

    The command has its own session, so Ctrl-C in the terminal reaches only the comparison.
    """
    process = start(order, threads, own_session=True)
    try:
        return wait(process)
    except BaseException:  # KeyboardInterrupt is how Ray cancels
        end(process, grace)
        wait(process)
        raise
