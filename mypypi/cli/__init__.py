"""The operator's command line, ``mypypi``.

Knows arguments, and how answers are printed. Must never decide what the daemons do.
"""
