"""Shared test support: fakes, in-memory connections, sites and clusters."""
