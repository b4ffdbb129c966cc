"""Sends requests to upstream: connections, credentials, time limits, retries, back-off.

Knows URLs and the meaning of upstream's statuses. Must never know for what purpose a page or a package file is
requested.
"""
