"""Tests of `mypypi.web`."""
