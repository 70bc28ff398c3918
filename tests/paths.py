"""Where things lie: the checkout, and the data sets that may lie beside it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
"""Packed real data sets; tests that need one skip where it is absent."""
