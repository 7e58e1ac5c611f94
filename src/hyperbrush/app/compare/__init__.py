"""Comparing: a grid of pictures over settings."""
