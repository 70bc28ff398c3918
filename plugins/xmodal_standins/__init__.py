"""Real or simulated data that stand in for benchmarks that cannot be had, under own names."""
