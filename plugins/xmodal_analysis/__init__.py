"""Commands that measure and draw what a method does."""
