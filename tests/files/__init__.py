"""Tests of `mypypi.files`."""
