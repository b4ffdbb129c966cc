"""Rough weather: everything fails at random for a while, and clients check every byte. See `tests.chaos.__main__`."""
