"""Styles generated from pictures."""
