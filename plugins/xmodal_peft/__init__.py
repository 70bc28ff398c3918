"""Adapters from the peft library."""
