"""The chaos test: everything fails at random while clients check every byte.

See `tests.chaos.__main__`.
"""
