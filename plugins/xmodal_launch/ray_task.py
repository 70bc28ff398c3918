"""What runs on a node as a task of Ray: one cell, which saves itself when the task is cancelled."""

from __future__ import annotations

from xmodal_launch.process import Order, end, start, wait


def run(order: Order, threads: int, grace: float) -> int:
    """Run the command to its end and return its exit code; a cancelled task ends it softly.

    It is in a session of its own: Ctrl-C in the terminal reaches the comparison only.
    """
    process = start(order, threads, own_session=True)
    try:
        return wait(process)
    except BaseException:  # KeyboardInterrupt is how Ray cancels
        end(process, grace)
        wait(process)
        raise
