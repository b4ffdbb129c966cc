"""The operator's command line, ``mypypi``.

Knows arguments and output. Must never decide what the daemons do.
"""
