"""The commands of the container image: run a daemon, and check its health.

MYPYPI_MODE names the daemon. Knows the image's conventions, and how to reach a daemon in the same container. Must never
know what a daemon does.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from mypypi.daemon.description import Description
from mypypi.errors import CatalogDown
from mypypi.settings.loading import SettingsError, load_settings
from mypypi.settings.settings import Settings
from mypypi.settings.types import RedisUrl

_ALIVE = "/-/health/live"
#: Seconds for each step of a check: connecting, and waiting for the answer.
_TIMEOUT = 4.0
#: The kinds of endpoints at a port, and the port that Twisted takes if none is given.
_PORTS = {"tcp": "", "tcp6": "", "ssl": "", "tls": "443"}
#: Where to reach a server in this container that listens on all interfaces.
_LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - looked up, not bound


def run(settings: Settings) -> None:
    """
    Replace this process by the daemon, which then gets all signals itself.

    Raises OSError if there is no twistd. A SIGHUP that comes before the daemon handles signals is ignored: it reads all
    files afterwards anyway.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    twistd = Path(sys.executable).with_name("twistd")
    os.execv(twistd, [str(twistd), "--nodaemon", "--pidfile=", f"mypypi-{settings.mode}"])  # noqa: S606 - on purpose


def check(settings: Settings) -> None:
    """
    Check the health of the daemon in this container.

    Raises OSError, HTTPException or SystemExit with the reason if the daemon can't do its work. A server is asked
    whether it is alive, not whether it is ready, since it also serves without Redis. A worker can do nothing without
    Redis, so its check asks Redis. Its process needs no check: the container ends with it.
    """
    if settings.mode == "server":
        _check_server(settings.listen)
    else:
        assert settings.redis_url is not None
        _check_redis(settings.redis_url)


def _check_server(listen: str) -> None:
    # Without urllib, which would use the proxy in HTTP_PROXY.
    connection = HTTPConnection("localhost", timeout=_TIMEOUT)
    try:
        connection.sock = _connect(listen)
        connection.request("GET", _ALIVE)
        status = connection.getresponse().status
    finally:
        connection.close()
    if status != 200:  # noqa: PLR2004 - HTTP's own number
        raise OSError(f"the server answered {status} to {_ALIVE}")


def _connect(listen: str) -> Any:
    """Connect to the server at this Twisted endpoint description. Raises OSError."""
    description = Description.parse(listen)
    kind, named = description.kind, description.arguments
    if kind == "unix" and not description.proxied:
        local = socket.socket(socket.AF_UNIX)
        local.settimeout(_TIMEOUT)
        try:
            local.connect(named.get("address", ""))
        except OSError:
            local.close()
            raise
        return local
    if kind not in _PORTS or description.proxied:
        kind = "haproxy" if description.proxied else kind
        raise OSError(f"a server at {kind}: can't be asked for its health; give the container its own health check")
    interface = named.get("interface", "::" if kind in ("tcp6", "tls") else "")
    port = int(named.get("port", _PORTS[kind]))
    plain = socket.create_connection((_LOOPBACK.get(interface, interface), port), _TIMEOUT)
    if not description.has_tls:
        return plain
    context = ssl.create_default_context()  # the certificate is for other names than localhost
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(plain)


def _check_redis(url: RedisUrl) -> None:
    # Imported here since txredisapi installs a reactor, which neither `run` nor the server's check needs.
    from twisted.internet import task  # noqa: PLC0415

    from mypypi.redis.client import RedisClient  # noqa: PLC0415

    async def ask(reactor: Any) -> None:
        client = RedisClient(reactor, url, _TIMEOUT, connections=1)
        client.start()
        try:
            await client.check()
        except CatalogDown as error:
            raise SystemExit(str(error)) from None  # the one exception that react does not log
        finally:
            await client.stop()

    task.react(ask)


def main(arguments: Sequence[str]) -> None:
    """Run the command ``run`` or ``check``. Raises SystemExit with one line if it fails."""
    actions = {"run": run, "check": check}
    if len(arguments) != 1 or arguments[0] not in actions:
        sys.exit("usage: python -m mypypi.daemon.container run|check")
    try:
        actions[arguments[0]](load_settings(os.environ))
    except (SettingsError, OSError, HTTPException) as error:
        sys.exit(str(error) or type(error).__name__)


if __name__ == "__main__":
    main(sys.argv[1:])
