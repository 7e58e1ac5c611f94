"""Jobs: the queue on disk, the worker that does them, and their kinds."""
