"""The operator's command line, ``mypypi``.

Shows the job queue, retries jobs that failed, and drops jobs that were set aside. Knows the queue, and how to find the
Redis of daemons with the same settings. Must never know what a job does.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

from twisted.internet.task import react
from twisted.logger import formatTime

from mypypi.daemon.redis_program import socket_of, url_of
from mypypi.errors import CatalogDown
from mypypi.job import DeadJob, IQueue, Job, LaterJob
from mypypi.redis.client import RedisClient
from mypypi.redis.queue import RedisQueue
from mypypi.settings.loading import SettingsError, load_settings
from mypypi.settings.settings import Settings
from mypypi.settings.types import RedisUrl

#: Called with each line of output at once, so that completed actions are reported even if a later one fails.
WriteLine = Callable[[str], None]
#: By the ids of jobs: each job, and what to do with it. That returns False if the job is gone.
Actions = dict[str, tuple[Job, Callable[[], Awaitable[bool]]]]

_ABOUT = "Manages the jobs of a running MyPyPi. Its settings are the same environment variables as the daemons'."
_WHERE = "check MYPYPI_REDIS_URL, or MYPYPI_DATA_DIRECTORY if twistd mypypi runs its own Redis"


async def show(queue: IQueue, options: Namespace, write_line: WriteLine) -> None:
    """
    Show the number of jobs on all disks, and a line for each job that failed.

    Jobs that are tried again later come first, soonest first. Then come those that were set aside, oldest first.
    """
    state, later, dead = await queue.state(everywhere=True), await queue.later(), await queue.dead()
    if options.json:
        jobs = {
            "waiting": state.waiting,
            "later": state.later,
            "tried_again": [_as_json(each) for each in later],
            "set_aside": [_as_json(each) | {"why": each.why} for each in dead],
        }
        write_line(json.dumps(jobs, indent=2))
        return
    write_line(f"{state.waiting} waiting or being done, {len(later)} to be tried again later, {len(dead)} set aside")
    rows = [[*_as_row(each), "is tried again then"] for each in later]
    for line in _in_columns([*rows, *([*_as_row(each), _printable(each.why)] for each in dead)]):
        write_line(line)


async def retry(queue: IQueue, options: Namespace, write_line: WriteLine) -> None:
    """
    Queue jobs again that were set aside or wait for their next try, with all their tries.

    Raises SystemExit if a job is not found.
    """
    actions: Actions = {each.id: (each.job, partial(queue.revive, each)) for each in await queue.dead()}
    actions |= {each.id: (each.job, partial(queue.hurry, each)) for each in await queue.later()}
    await _apply(actions, "queued again", "set aside or to be tried again", options, write_line)


async def drop(queue: IQueue, options: Namespace, write_line: WriteLine) -> None:
    """Delete jobs that were set aside. Raises SystemExit if a job is not found."""
    actions: Actions = {each.id: (each.job, partial(queue.drop, each)) for each in await queue.dead()}
    await _apply(actions, "dropped", "set aside", options, write_line)


async def _apply(actions: Actions, done: str, state: str, options: Namespace, write_line: WriteLine) -> None:
    """Call these actions, or those of the ids that the options name. `state` is that of the jobs, in words."""
    if options.all and not actions:
        write_line(f"no job is {state}")
    absent = []
    for identity in list(actions) if options.all else dict.fromkeys(options.ids):
        job, act = actions.get(identity, (None, None))
        if job is not None and act is not None and await act():
            write_line(f"{done}: {identity}  {job.kind}  {_printable(job.name)}")
        elif not options.all:  # with --all, another operator or a worker may have been faster
            absent.append(f"mypypi: no job {_printable(identity)} is {state}")
    if absent:
        raise SystemExit("\n".join(absent))


def _as_row(failed: DeadJob | LaterJob) -> list[str]:
    job = failed.job
    tries = f"{job.tries} {'try' if job.tries == 1 else 'tries'}"
    return [failed.id, job.kind, _printable(job.name), tries, formatTime(failed.at)]


def _as_json(failed: DeadJob | LaterJob) -> dict[str, str | int]:
    job = failed.job
    fields: dict[str, str | int] = {"id": failed.id, "kind": job.kind, "name": job.name, "disk": job.disk}
    return fields | {"tries": job.tries, "at": formatTime(failed.at)}


def _in_columns(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Format rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    for *row, last in rows:
        yield "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=True)), last])


def _printable(text: str) -> str:
    """Return untrusted text as one line, with control characters replaced."""
    return "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))


def redis_of(settings: Settings) -> RedisUrl:
    """
    Find the Redis of the daemons with these settings.

    `settings` are loaded with the defaults of ``twistd mypypi``. The Redis is that of MYPYPI_REDIS_URL. If that is not
    set, it is the embedded one of a ``twistd mypypi`` that runs on the data directory, else the servers' default.

    Raises OSError if the data directory can't be accessed.
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
    except CatalogDown as error:  # react logs every exception but SystemExit
        raise SystemExit(f"mypypi: {error} ({url}; {_WHERE})") from None
    finally:
        await client.stop()


def _print(line: str) -> None:
    """Print a line. Raises SystemExit if the reader has closed the pipe, as ``head`` does."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes the rest when it exits
        raise SystemExit(1) from None


def _parser() -> ArgumentParser:
    parser = ArgumentParser("mypypi", description=_ABOUT)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    jobs = commands.add_parser("jobs", help="show the jobs, and those that failed", description=show.__doc__)
    jobs.add_argument("--json", action="store_true", help="print JSON, for programs")
    jobs.set_defaults(command=show)
    actions = jobs.add_subparsers(metavar="[ACTION]", title="actions on jobs that failed")
    for command, about in ((retry, "queue them again, now"), (drop, "delete those that were set aside")):
        action = actions.add_parser(command.__name__, help=about)
        which = action.add_mutually_exclusive_group(required=True)
        which.add_argument("ids", nargs="*", default=[], metavar="ID", help="id of a job, as `mypypi jobs` lists it")
        which.add_argument("--all", action="store_true", help="all of them")
        action.set_defaults(command=command)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Always raises SystemExit: after a failure with a message, or a number other than 0."""
    options = _parser().parse_args(arguments)
    try:
        settings = load_settings(os.environ, embedded=True)
        url = redis_of(settings)
    except (SettingsError, OSError) as error:
        sys.exit(f"mypypi: {error}")
    react(_run, (options, settings, url))
