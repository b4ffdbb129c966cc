"""The test rig, on which tests with real processes depend.

It has packages, a fake upstream that can fail, a daemon runner and an HTTP client. Knows HTTP and package formats. Must
never import mypypi: these tests see the daemon only from outside.
"""
