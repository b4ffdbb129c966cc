"""Tests of `mypypi.upstream`."""
