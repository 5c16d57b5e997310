"""Scores of the three tasks, and the report of a run."""
