"""Training attention hypernetworks."""
