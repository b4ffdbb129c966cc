"""Tests mirror the packages: `mypypi.pages.rendering` is checked in `tests.pages.test_rendering`."""
