"""Where the runs of a comparison run."""
