"""Decides how a request for a page or a file is answered.

Knows where to look, in which order, and what a client gets while a file is not stored. Must never know Klein, HTTP
headers, Redis or S3.
"""
