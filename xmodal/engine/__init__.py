"""Carries a run out: from a recipe to a directory that holds its result.

From the outside in:

    plan, identity, directory   what a run is, before anything is loaded, and where it goes
    build, session, model       what it works with; device, distributed: where, and with whom
    run                         drives the loop and writes the directory
    saving, checkpoint, result  what it writes
    loop                        stages and epochs, as records; evaluate: the score of a split
    step                        one optimizer step, by the host or left to the device
    capture, graphs             steps as graphs that are replayed
    python_state, writes        what a replay would miss
    memory                      what happens when it runs out
    process, turns, together    the process of a run, or of several that take turns in it
    observe, tracking           who is told; speed, profiling: how fast it is, and why
    dry_run                     shows a run without making one
"""
