"""Hypernetworks and generated weights at work on a model."""
