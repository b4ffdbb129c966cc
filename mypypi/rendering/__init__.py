"""Parses and renders pages, and reads wheels, in processes of their own, with limits of time and memory.

Knows how upstream's bytes become a page's forms, and how such work stays away from the serving process. Must never know
when a page is rendered, or who asks for it.
"""
