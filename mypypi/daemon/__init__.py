"""How everything is put together and run: the twistd plugins, processes, sockets, start and stop.

Knows every part by its class. Must never know what a part does.
"""
