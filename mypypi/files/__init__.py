"""Fetches package files from upstream into storage, and shares their bytes with readers meanwhile.

Knows drafts, transfers and fetches. Must never know ecosystems or clients.
"""
