"""Tests of `mypypi.settings`."""
