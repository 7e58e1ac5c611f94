"""The library of hypernetworks: cards, files, exports."""
