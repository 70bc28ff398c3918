"""Trackers: send the numbers of a run to other programs."""
