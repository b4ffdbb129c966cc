"""Tests of `mypypi.proxy`."""
