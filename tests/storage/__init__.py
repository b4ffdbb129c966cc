"""Tests of `mypypi.storage`."""
