"""The settings: environment variables, read and checked once at start.

Knows the variables' names, types, defaults and help texts. Must never open a file or a connection.
"""
