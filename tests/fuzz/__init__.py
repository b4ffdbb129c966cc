"""Fuzz tests: Hypothesis sends random requests, pages and conversations to an in-memory server."""
