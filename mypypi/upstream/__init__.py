"""How upstream is asked: connections, credentials, time limits, retries, back-off.

Knows URLs, and what upstream's statuses mean. Must never know what a page or a package file is asked for.
"""
