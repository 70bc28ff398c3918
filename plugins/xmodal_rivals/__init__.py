"""Rivals: models from elsewhere that a fine-tuned transformer has to beat."""
