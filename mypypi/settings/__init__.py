"""The settings: environment variables, read and checked once at start.

Knows the environment: names, types, defaults, help. Must never know anything else: it opens no file and no connection.
"""
