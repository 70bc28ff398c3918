"""Embedders: raw samples of any form to tokens of a pretrained body's width."""
