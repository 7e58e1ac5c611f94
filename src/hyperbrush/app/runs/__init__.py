"""Runs of trainings: live, compared, controlled."""
