"""MoNA: meta-learned alignment of the embedder."""
