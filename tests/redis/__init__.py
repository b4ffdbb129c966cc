"""Tests of `mypypi.redis`."""
