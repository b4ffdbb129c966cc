"""A page's life: looked up, revalidated, rendered, kept in memory and in the catalog.

Knows when a page is fresh, stale or missing. Must never know HTTP towards clients.
"""
