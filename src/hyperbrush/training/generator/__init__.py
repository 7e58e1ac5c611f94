"""Training networks that generate weights."""
