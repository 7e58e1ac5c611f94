"""Base models: which there are, and trying one."""
