"""Table of contents of this plugin."""
