"""Tests of `mypypi.worker`."""
