"""Samplers, their names and noise schedules, and drawing with a whole model."""
