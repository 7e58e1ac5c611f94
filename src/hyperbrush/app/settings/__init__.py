"""Preferences, devices and the doctor."""
