"""Tests mirror the package: what `mypypi.x` promises is checked in `tests.test_x`."""
