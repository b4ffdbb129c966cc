"""Composes and runs the daemons: twistd plugins, processes, sockets, start and stop.

Knows every part by its class. Must never know what a part does.
"""
