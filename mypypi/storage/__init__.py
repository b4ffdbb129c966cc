"""Stores complete, verified package files on the local disk or in an S3 bucket.

Knows keys, digests and bytes. Must never know packages, nor which client requests a file.
"""
