"""Where whole, checked package files are kept: on the local disk or in an S3 bucket.

Knows keys, digests and bytes. Must never know what a package is, or who asks for a file.
"""
