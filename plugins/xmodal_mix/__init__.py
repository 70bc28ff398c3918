"""Mixup, CutMix and other mixing baselines."""
