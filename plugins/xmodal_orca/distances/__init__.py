"""Distances between the features of two data sets, differentiable in the target's."""
