"""Embedders: raw samples of any form to tokens of a pretrained backbone's width."""
