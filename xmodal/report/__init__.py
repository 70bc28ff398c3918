"""Pages people read: one self-contained HTML file a run or a comparison.

Reads run directories only; computes no score of its own beyond errors of the samples it shows.
"""
