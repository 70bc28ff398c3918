"""The search for the best model of a data file: answers, rungs, clock, leaderboard."""
