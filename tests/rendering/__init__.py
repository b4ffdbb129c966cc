"""Tests of `mypypi.rendering`."""
