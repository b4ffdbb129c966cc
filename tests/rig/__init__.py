"""What the tests with real processes stand on: packages, an upstream that can misbehave, a daemon, an HTTP client.

Knows HTTP and package formats. Must never import mypypi: these tests see the daemon from outside only.
"""
