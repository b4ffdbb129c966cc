from typing import Any

from twisted.application.service import ServiceMaker

from mypypi.daemon.signals import hold_signals


class Daemon(ServiceMaker):
    """A daemon's plugin. It holds signals before twistd imports the daemon, which takes most of its start."""

    @property
    def options(self) -> Any:
        """The class of the daemon's options. twistd asks for them when the daemon is to be run."""
        hold_signals()
        return super().options


server = Daemon("MyPyPi server", "mypypi.daemon.server_tap", "Serves packages to clients.", "mypypi-server")
worker = Daemon("MyPyPi worker", "mypypi.daemon.worker_tap", "Runs the jobs from the queue.", "mypypi-worker")
everything = Daemon("MyPyPi", "mypypi.daemon.all_tap", "Server, worker and Redis in one daemon.", "mypypi")
