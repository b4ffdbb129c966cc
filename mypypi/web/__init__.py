"""HTTP towards clients: routes, negotiation, ranges, headers, and how bytes get to a socket.

What is served is decided in `mypypi.proxy.proxy`; here it is only said in HTTP.
"""
