"""Tests of `mypypi.observability`."""
