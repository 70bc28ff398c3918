"""ORCA: alignment of the embedder by a distance between data sets."""
