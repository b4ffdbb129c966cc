"""Fuzzers of raw bytes against real daemons: answers of upstream, and requests of clients.

See `tests.fuzz.raw.__main__`.
"""
