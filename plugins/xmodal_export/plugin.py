"""Table of contents of this plugin."""

from __future__ import annotations
