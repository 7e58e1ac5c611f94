"""Several trainings over settings."""
