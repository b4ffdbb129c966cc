"""Serves cached pages: looks them up, revalidates, renders and stores them.

Knows when a page is fresh, stale or missing. Must never know HTTP towards clients.
"""
