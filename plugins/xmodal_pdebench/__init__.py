"""The eight tasks of PDEBench: solvers, published files, and coarse numerical answers."""
