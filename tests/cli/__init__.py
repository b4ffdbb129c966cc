"""Tests of `mypypi.cli`."""
