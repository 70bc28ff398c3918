"""Commands that measure a method's effects and draw them."""
