"""For authors of plugins: write a new package, check one, and describe what is installed."""
