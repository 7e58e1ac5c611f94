"""A folder of hypernetworks: names, notes, summaries, what a file holds."""
