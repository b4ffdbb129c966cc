"""Records the addresses that this process connects to and the names that it resolves, and keeps it on loopback.

FUZZ_CONNECTIONS names the file. A name such as ``10-0-0-1.fuzz.example`` resolves to the address in it, and no other
name but ``localhost`` resolves. A name that begins with ``slow-`` takes long to fail. Python imports this module at its
start, before the program.
"""  # noqa: INP001 - Python wants this name

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from typing import Any

_ZONE = ".fuzz.example"
_SLOW, _SLOW_SECONDS = "slow-", 20.0


def _observe(path: str) -> None:
    out = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event != "socket.connect" or not isinstance(args[1], tuple):
            return
        host, port = str(args[1][0]), args[1][1]
        os.write(out, f"{host} {port}\n".encode())
        if not host.startswith("127.") and host not in ("::1", "localhost"):
            raise OSError(errno.ECONNREFUSED, "this test connects to loopback only")

    def getaddrinfo(host: Any, port: Any, *more: Any, **named: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        os.write(out, f"?{name} 0\n".encode("utf-8", "backslashreplace"))
        if name is not None and name.startswith(_SLOW):
            time.sleep(_SLOW_SECONDS)
            raise socket.gaierror(socket.EAI_AGAIN, "this name server is slow")
        if name is not None and name.lower().rstrip(".").endswith(_ZONE):
            name = name.lower().rstrip(".").removesuffix(_ZONE).replace("-", ".")
        elif name is not None and name.strip("0123456789.xXabcdefABCDEF:%[]") and name.lower() != "localhost":
            raise socket.gaierror(socket.EAI_NONAME, "this test has no name server")
        return real(name, port, *more, **named)

    real = socket.getaddrinfo
    socket.getaddrinfo = getaddrinfo
    sys.addaudithook(hook)


if "FUZZ_CONNECTIONS" in os.environ:
    _observe(os.environ["FUZZ_CONNECTIONS"])
