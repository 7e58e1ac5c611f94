"""Generated weights, and the layers they are for."""
