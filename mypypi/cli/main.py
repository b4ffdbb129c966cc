"""The operator's command line, ``mypypi``: what waits for workers, what was set aside, and what becomes of that.

Knows the queue, and how to find the Redis of the daemons that have the same settings. Must never know what a job does.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from twisted.internet.task import react
from twisted.logger import formatTime

from mypypi.daemon.redis_server import socket_of, url_of
from mypypi.errors import CatalogDown
from mypypi.interfaces import IQueue
from mypypi.model import DeadJob
from mypypi.redis.client import RedisClient
from mypypi.redis.queue import RedisQueue
from mypypi.settings.loading import SettingsError, load_settings
from mypypi.settings.settings import Settings
from mypypi.settings.types import RedisUrl

#: Takes each line as soon as it holds, so that what was done is told even if what comes next fails.
Say = Callable[[str], None]

_ABOUT = "Looks after a running MyPyPi. Takes its settings from the same environment variables as the daemons."
_WHERE = "MYPYPI_REDIS_URL, or MYPYPI_DATA_DIRECTORY where mypypi runs a Redis of its own, says where it is"


async def show(queue: IQueue, options: Namespace, say: Say) -> None:
    """How many jobs there are, on whichever disk, and those that were set aside: oldest first, one line each."""
    state, dead = await queue.state(everywhere=True), await queue.dead()
    if options.json:
        jobs = {"waiting": state.waiting, "later": state.later, "set_aside": [_as_json(each) for each in dead]}
        say(json.dumps(jobs, indent=2))
        return
    say(f"{state.waiting} waiting or being done, {state.later} to be tried again later, {len(dead)} set aside")
    for line in _in_columns([_as_row(each) for each in dead]):
        say(line)


async def retry(queue: IQueue, options: Namespace, say: Say) -> None:
    """Queue jobs anew that were set aside, with all their tries. Raises SystemExit where one was not there."""
    await _each(queue.revive, "queued again", queue, options, say)


async def drop(queue: IQueue, options: Namespace, say: Say) -> None:
    """Forget jobs that were set aside. Raises SystemExit where one was not there."""
    await _each(queue.drop, "dropped", queue, options, say)


async def _each(
    act: Callable[[DeadJob], Awaitable[bool]], done: str, queue: IQueue, options: Namespace, say: Say
) -> None:
    dead = {each.id: each for each in await queue.dead()}
    if options.all and not dead:
        say("no job is set aside")
    absent = []
    for identity in list(dead) if options.all else dict.fromkeys(options.ids):
        if identity in dead and await act(dead[identity]):
            say(f"{done}: {identity}  {dead[identity].job.kind}  {_printable(dead[identity].job.name)}")
        elif not options.all:  # else somebody else was faster, and it is not there as it was meant to be
            absent.append(f"mypypi: no job {_printable(identity)} is set aside")
    if absent:
        raise SystemExit("\n".join(absent))


def _as_row(dead: DeadJob) -> list[str]:
    tries = f"{dead.job.tries} {'try' if dead.job.tries == 1 else 'tries'}"
    return [dead.id, dead.job.kind, _printable(dead.job.name), tries, formatTime(dead.at), _printable(dead.why)]


def _as_json(dead: DeadJob) -> dict[str, str | int]:
    job = dead.job
    told: dict[str, str | int] = {"id": dead.id, "kind": job.kind, "name": job.name, "disk": job.disk}
    return told | {"tries": job.tries, "at": formatTime(dead.at), "why": dead.why}


def _in_columns(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Each row as a line, in which the columns but for the last are as wide as they have to be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    for *row, last in rows:
        yield "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=True)), last])


def _printable(text: str) -> str:
    """A text that comes from elsewhere as one line, without what a terminal would obey."""
    return "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))


def redis_of(settings: Settings) -> RedisUrl:
    """
    The Redis of daemons with these settings, which were loaded as ``twistd mypypi`` loads them.

    That is the one that is named; else that of a ``twistd mypypi`` that runs on the data directory; else the one that
    is asked where none is named. Raises OSError when the data directory may not be looked at.
    """
    if settings.redis_url is not None:
        return settings.redis_url
    socket = socket_of(settings.data_directory)
    if socket.exists():
        return RedisUrl.parse(url_of(socket))
    default = load_settings({}).redis_url
    assert default is not None
    return default


async def _run(reactor: Any, options: Namespace, settings: Settings, url: RedisUrl) -> None:
    client = RedisClient(reactor, url, connections=1, quiet=True)
    client.start()
    try:
        queue = RedisQueue(client, settings.redis_prefix, settings.package_type, "", reactor)
        await options.command(queue, options, _print)
    except CatalogDown as error:  # SystemExit is the one exception that react does not log
        raise SystemExit(f"mypypi: {error} ({url}; {_WHERE})") from None
    finally:
        await client.stop()


def _print(line: str) -> None:
    """Raises SystemExit where nobody reads on, as ``head`` does not."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes out the rest when it ends
        raise SystemExit(1) from None


def _parser() -> ArgumentParser:
    parser = ArgumentParser("mypypi", description=_ABOUT)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    jobs = commands.add_parser("jobs", help="what waits for workers, and what they set aside", description=show.__doc__)
    jobs.add_argument("--json", action="store_true", help="for programs")
    jobs.set_defaults(command=show)
    actions = jobs.add_subparsers(metavar="[ACTION]", title="with jobs that were set aside")
    for command, about in ((retry, "queue them anew"), (drop, "forget them")):
        action = actions.add_parser(command.__name__, help=about)
        which = action.add_mutually_exclusive_group(required=True)
        which.add_argument("ids", nargs="*", default=[], metavar="ID", help="as `mypypi jobs` lists it")
        which.add_argument("--all", action="store_true", help="whichever there are")
        action.set_defaults(command=command)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command. Always raises SystemExit: with what to say, or with a number that is not 0, where it went wrong."""
    options = _parser().parse_args(arguments)
    try:
        settings = load_settings(os.environ, embedded=True)
        url = redis_of(settings)
    except (SettingsError, OSError) as error:
        sys.exit(f"mypypi: {error}")
    react(_run, (options, settings, url))
