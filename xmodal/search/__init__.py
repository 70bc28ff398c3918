"""The search for the best model of a data file: candidates, rungs, clock, leaderboard."""
