"""What a request for a page or a file means: the place where pages, files and storage come together.

Knows where to look, in which order, and what a client gets meanwhile. Must never know Klein, HTTP headers, Redis or S3.
"""
