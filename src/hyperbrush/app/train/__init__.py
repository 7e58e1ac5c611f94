"""Preparing and starting a training: pictures, captions, settings."""
