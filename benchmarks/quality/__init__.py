"""The study behind benchmarks/quality.py: data, methods, one run, measures, tables."""
