"""Tests of `mypypi.ecosystems`."""
