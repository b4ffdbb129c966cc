"""Tests of `mypypi.pages`."""
