"""The webui's own endpoints."""
