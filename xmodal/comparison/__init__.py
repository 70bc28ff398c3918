"""Methods side by side: what they cost, how they differ, and what may be said about it."""
