"""The Ray task that runs on a node: one cell, which saves itself when the task is cancelled."""

from __future__ import annotations

import signal

from xmodal_launch.process import Order, end, start, wait


def run(order: Order, threads: int, grace: float) -> int:
    """Run the command and return its exit code; if the task is cancelled, let the command save.

    The command has its own session, so Ctrl-C in the terminal reaches only the comparison.
    """
    # Ray cancels by SIGINT, which a node that was started in the background ignores.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = None
    try:
        process = start(order, threads, own_session=True)
        return wait(process)
    except BaseException:
        # Ray cancels again if it is not sure of the first time, on a busy node for example. That
        # must not cut off a command that saves itself.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if process is not None:
            end(process, grace)
            wait(process)
        raise
    finally:
        signal.signal(signal.SIGINT, before)
