"""Tokens ranked by their norm: a selector and a mixer for xmodal."""
