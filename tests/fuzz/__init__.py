"""Requests, pages and conversations made up by Hypothesis, for a whole server in memory."""
