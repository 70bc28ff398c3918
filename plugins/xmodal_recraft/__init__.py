"""RECRAFT: alignment by feature and label distortion."""
