"""HTTP towards clients: routes, negotiation, ranges, headers, and writing bodies to sockets.

Turns the answers of `mypypi.proxy.proxy` into HTTP. Must never decide what is served.
"""
