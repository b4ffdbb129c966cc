"""Tests of `mypypi.daemon`."""
