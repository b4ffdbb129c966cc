"""A package file's way from upstream into the storage, and the bytes that readers see meanwhile.

Knows drafts, transfers and fetches. Must never know ecosystems or clients.
"""
