"""The gallery: every picture that was drawn, with its prompt, to search, star, look at, compare and use again."""
