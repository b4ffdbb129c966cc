"""Benchmarks. Run one from a checkout with ``python -m benchmarks.NAME``."""
