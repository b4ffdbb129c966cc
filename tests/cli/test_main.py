"""Tests of ``mypypi``: jobs that failed are shown, retried and dropped; a failure is one line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hiredis
import pytest
from twisted.logger import formatTime

from mypypi.cli import main as cli
from mypypi.daemon.embedded_redis import EmbeddedRedis
from mypypi.job import Job, LaterJob
from mypypi.redis.queue import MOST_TRIES
from mypypi.settings.loading import load_settings
from tests.conftest import DaemonFactory
from tests.rig.daemon import ROOT, Daemon
from tests.rig.faults import Status
from tests.rig.http import eventually
from tests.rig.redis import free_port
from tests.rig.wire import BOUND
from tests.support.cluster import Cluster
from tests.support.fakes import MemoryQueue
from tests.support.memory import NOW, MemoryTestCase

FETCH = Job("fetch", "https/files.example/x-1.0.whl")
UPLOAD = Job("upload", "https/files.example/thing-1.0.whl", disk="d1")
WHY = "S3 refuses: 403 Forbidden"


class JobsTests(MemoryTestCase):
    """The commands, run on a queue in memory."""

    def setUp(self) -> None:
        super().setUp()
        self.queue = MemoryQueue(self.clock, "d1")

    def set_aside(self, job: Job, why: str = WHY) -> str:
        """Let a job fail for the last time, and return its id in the list."""
        self.now(self.queue.put(Job(job.kind, job.name, disk=job.disk, tries=MOST_TRIES - 1)))
        (taken,) = self.now(self.queue.take(1))
        self.now(self.queue.failed(taken, why))
        return self.now(self.queue.dead())[-1].id

    def postpone(self, job: Job) -> LaterJob:
        """Let a job fail for the first time, and return it as it waits for its next try."""
        self.now(self.queue.put(job))
        (taken,) = self.now(self.queue.take(1))
        self.now(self.queue.failed(taken, WHY))
        return next(each for each in self.now(self.queue.later()) if each.job.name == job.name)

    def output(self, *arguments: str) -> list[str]:
        """Return the lines that a command prints. It must succeed."""
        options = cli._parser().parse_args(arguments)
        lines: list[str] = []
        self.now(options.command(self.queue, options, lines.append))
        return lines

    def output_and_error(self, *arguments: str) -> tuple[list[str], str]:
        """Return the lines that a command prints, and its error message."""
        options = cli._parser().parse_args(arguments)
        lines: list[str] = []
        failed = self.failureResultOf(self._settled(options.command(self.queue, options, lines.append)), SystemExit)
        return lines, str(failed.value)

    def waiting(self) -> list[Job]:
        return [taken.job for taken in self.now(self.queue.take(10))] if self.now(self.queue.state()).waiting else []

    def test_nothing_to_do(self) -> None:
        """Without any job, one line says so."""
        assert self.output("jobs") == ["0 waiting or being done, 0 to be tried again later, 0 set aside"]

    def test_jobs_that_failed_have_a_line_each(self) -> None:
        """Each job that failed has a line, in columns. The line before them counts the jobs on all disks."""
        first, second = self.set_aside(UPLOAD), self.set_aside(FETCH, "no\n such\x1b[J host\r")
        self.now(self.queue.put(Job("upload", "elsewhere", disk="d2")))
        later = self.postpone(Job("fetch", "again"))
        name, at = "again".ljust(len(UPLOAD.name)), formatTime(later.at)
        assert self.output("jobs") == [
            "1 waiting or being done, 1 to be tried again later, 2 set aside",
            f"{later.id}  fetch   {name}  1 try     {at}  is tried again then",
            f"{first:12}  upload  {UPLOAD.name}  24 tries  {formatTime(NOW)}  {WHY}",
            f"{second:12}  fetch   {FETCH.name}      24 tries  {formatTime(NOW)}  no such\ufffd[J host",
        ]

    def test_jobs_for_programs(self) -> None:
        """``--json`` prints the same as JSON."""
        identity, later = self.set_aside(UPLOAD), self.postpone(FETCH)
        (line,) = self.output("jobs", "--json")
        aside: dict[str, Any] = {"id": identity, "kind": "upload", "name": UPLOAD.name, "disk": "d1"}
        aside |= {"tries": MOST_TRIES, "at": formatTime(NOW), "why": WHY}
        again: dict[str, Any] = {"id": later.id, "kind": "fetch", "name": FETCH.name, "disk": ""}
        again |= {"tries": 1, "at": formatTime(later.at)}
        assert json.loads(line) == {"waiting": 0, "later": 1, "tried_again": [again], "set_aside": [aside]}

    def test_retry_queues_a_job_again(self) -> None:
        """``retry`` queues the named job with all its tries, and prints it. The other jobs stay set aside."""
        first, second = self.set_aside(UPLOAD), self.set_aside(FETCH)
        assert self.output("jobs", "retry", first) == [f"queued again: {first}  upload  {UPLOAD.name}"]
        assert self.waiting() == [UPLOAD]
        assert [dead.id for dead in self.now(self.queue.dead())] == [second]

    def test_retry_all(self) -> None:
        """``retry --all`` queues every job, oldest first. If there is none, it says so and succeeds."""
        self.set_aside(FETCH)
        self.set_aside(UPLOAD)
        assert [line.split()[3] for line in self.output("jobs", "retry", "--all")] == ["fetch", "upload"]
        assert self.waiting() == [FETCH, UPLOAD]
        assert self.output("jobs", "retry", "--all") == ["no job is set aside or to be tried again"]

    def test_retry_reaches_jobs_that_wait_for_their_next_try(self) -> None:
        """``retry`` queues a job at once that waits for its next try, and gives it all its tries again."""
        first, second = self.postpone(UPLOAD), self.postpone(FETCH)
        assert self.output("jobs", "retry", first.id) == [f"queued again: {first.id}  upload  {UPLOAD.name}"]
        assert self.waiting() == [UPLOAD]
        assert self.output("jobs", "retry", "--all") == [f"queued again: {second.id}  fetch  {FETCH.name}"]
        assert self.waiting() == [FETCH]

    def test_retry_of_unknown_ids(self) -> None:
        """Each unknown id has a line in the error message. The known ones are queued all the same, once each."""
        identity = self.set_aside(FETCH)
        lines, error = self.output_and_error("jobs", "retry", "7-0", identity, "8-0", identity)
        assert lines == [f"queued again: {identity}  fetch  {FETCH.name}"]
        assert error == "\n".join(f"mypypi: no job {each} is set aside or to be tried again" for each in ("7-0", "8-0"))
        assert self.waiting() == [FETCH]

    def test_drop(self) -> None:
        """A dropped job is deleted and never runs again."""
        first = self.set_aside(UPLOAD)
        self.set_aside(FETCH)
        assert self.output("jobs", "drop", first) == [f"dropped: {first}  upload  {UPLOAD.name}"]
        assert self.output_and_error("jobs", "drop", first) == ([], f"mypypi: no job {first} is set aside")
        assert len(self.output("jobs", "drop", "--all")) == 1
        assert self.now(self.queue.dead()) == []
        assert self.waiting() == []


def test_redis_of_these_settings(tmp_path: Path) -> None:
    """
    The Redis is that of MYPYPI_REDIS_URL, if it is set.

    Otherwise it is the embedded one of the data directory, or else the server's default.
    """
    data = {"MYPYPI_DATA_DIRECTORY": str(tmp_path)}
    named = load_settings(data | {"MYPYPI_REDIS_URL": "redis://redis.example/3"}, embedded=True)
    unnamed = load_settings(data, embedded=True)
    assert str(cli.redis_of(unnamed)) == "redis://localhost:6379/0"
    embedded = EmbeddedRedis(None, tmp_path).socket
    embedded.parent.mkdir(parents=True)
    embedded.touch()
    assert str(cli.redis_of(unnamed)) == f"unix://{embedded}?db=0"
    assert str(cli.redis_of(named)) == "redis://redis.example:6379/3"


def mypypi(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the real command with these settings and no others."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MYPYPI_")}
    return subprocess.run(
        [sys.executable, "-c", "from mypypi.cli.main import main; main()", *arguments],
        cwd=ROOT,
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )


def run_beside(daemon: Daemon, *arguments: str) -> list[str]:
    """Return the lines that the command prints with a daemon's settings."""
    done = mypypi(*arguments, env=daemon._env)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "COMMAND"),
        (("jobs", "retry"), 2, "one of the arguments ID --all is required"),
        (("jobs", "retry", "1-0", "--all"), 2, "argument --all: not allowed with argument ID"),
        (("jobs",), 1, "Connection refused"),
        (("jobs", "retry", "--all"), 1, "Connection refused"),
    ],
)
def test_a_failure_is_one_line_without_a_traceback(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path
) -> None:
    """
    A wrong command line, or a Redis that is down, gives one line with the reason.

    There is no traceback and no password in it.
    """
    url = f"redis://:hush@127.0.0.1:{free_port()}"
    done = mypypi(*arguments, env={"MYPYPI_REDIS_URL": url, "MYPYPI_DATA_DIRECTORY": str(tmp_path / "data")})
    assert (done.returncode, done.stdout) == (code, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("mypypi")
    assert message in last
    assert len(done.stderr.splitlines()) == 1 or done.stderr.startswith("usage: ")
    assert "Traceback" not in done.stderr
    assert "hush" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_invalid_settings_are_reported() -> None:
    """Each invalid setting has its line, as when a daemon starts."""
    done = mypypi("jobs", env={"MYPYPI_CACHE_TIME": "soon", "MYPYPI_REDIS": "x"})
    assert done.returncode == 1
    problems = done.stderr.splitlines()
    assert problems[0] == "mypypi: the settings in the environment can't be used:"
    assert [line.split()[0] for line in problems[1:]] == ["MYPYPI_CACHE_TIME", "MYPYPI_REDIS"]


class TestBesideDaemons:
    """The real command, with the settings of a running daemon."""

    def test_an_upload_that_was_set_aside_succeeds_after_a_retry(self, cluster: Cluster) -> None:
        """
        An upload that was set aside is listed with its reason, and succeeds after a retry.

        The bucket refuses it until then.
        """
        wheel = cluster.publish(50_000)
        refused = cluster.proxy.fault(cluster.put_of(wheel), Status(403))
        server, worker = cluster.server(), cluster.worker()
        assert cluster.get(server, wheel).status == 200
        leave_one_try(cluster)
        worker.wait_for_log("upload .* is set aside")
        assert refused.served > 0
        counts, line = run_beside(worker, "jobs")
        assert counts.endswith(", 1 set aside")
        identity, kind, name, tries, _, _, why = line.split(maxsplit=6)
        assert (kind, cluster.name + "/" + name, tries) == ("upload", cluster.object_name(wheel), "24")
        assert "403" in why
        absent = mypypi("jobs", "retry", "1-1", env=worker._env)
        assert (absent.returncode, absent.stdout) == (1, "")
        assert absent.stderr == "mypypi: no job 1-1 is set aside or to be tried again\n"
        cluster.proxy.mend()
        assert run_beside(server, "jobs", "retry", "--all") == [f"queued again: {identity}  upload  {name}"]
        cluster.wait_uploaded(wheel)
        assert run_beside(server, "jobs", "retry", "--all") == ["no job is set aside or to be tried again"]

    def test_an_upload_that_waits_for_its_next_try_can_be_hurried(self, cluster: Cluster) -> None:
        """An upload that waits for ten minutes is listed, and is done at once after a retry."""
        wheel = cluster.publish(50_000)
        refused = cluster.proxy.fault(cluster.put_of(wheel), Status(403))
        server, worker = cluster.server(), cluster.worker()
        assert cluster.get(server, wheel).status == 200
        worker.wait_for_log("upload .* is tried again")
        assert refused.served > 0
        (name, _) = the_job_that_waits(cluster, at=int(time.time()) + 600)
        cluster.proxy.mend()
        counts, line = run_beside(server, "jobs")
        assert counts.endswith(" 1 to be tried again later, 0 set aside")
        identity, kind, key = line.split()[:3]
        assert (kind, line.endswith("is tried again then"), name.endswith(":later")) == ("upload", True, True)
        assert run_beside(server, "jobs", "retry", identity) == [f"queued again: {identity}  upload  {key}"]
        cluster.wait_uploaded(wheel)

    def test_the_embedded_redis_is_found(self, daemon_factory: DaemonFactory) -> None:
        """Without MYPYPI_REDIS_URL, the embedded Redis of the data directory is found."""
        daemon = daemon_factory()
        job = json.dumps({"kind": "unheard", "name": "of", "tries": MOST_TRIES - 1})
        ask(EmbeddedRedis(None, daemon.data).socket, "XADD", "mypypi:queue:pypi", "*", "job", job)
        daemon.wait_for_log("unheard of is set aside")
        (dead,) = json.loads("\n".join(run_beside(daemon, "jobs", "--json")))["set_aside"]
        assert (dead["kind"], dead["tries"]) == ("unheard", MOST_TRIES)
        assert dead["why"] == "there is no job of this kind: unheard"
        assert run_beside(daemon, "jobs", "drop", dead["id"]) == [f"dropped: {dead['id']}  unheard  of"]
        assert run_beside(daemon, "jobs", "drop", "--all") == ["no job is set aside"]


def the_job_that_waits(cluster: Cluster, at: int) -> tuple[str, str]:
    """Let the job that waits for its next try wait until `at`. Return its set's name, and the job as stored there."""

    def later() -> list[tuple[str, str]]:
        names = cluster.redis.keys(f"{cluster.name}:queue:*:later")
        waiting = [(name, job) for name in names for job in cluster.redis.call("ZRANGE", name, 0, -1)]
        return [each for each in waiting if cluster.redis.call("ZADD", each[0], "XX", "CH", at, each[1])]

    (found,) = eventually(later, lambda found: len(found) == 1)
    return found


def leave_one_try(cluster: Cluster) -> None:
    """Leave the failed upload one try, which is due now. Its back-off would take hours."""
    name, text = the_job_that_waits(cluster, at=int(time.time()) + 600)
    job: dict[str, Any] = json.loads(text)
    cluster.redis.call("ZADD", name, 0, json.dumps(job | {"tries": MOST_TRIES - 1}))
    cluster.redis.call("ZREM", name, text)


def ask(path: Path, *command: str) -> None:
    """Send a command to the Redis on a unix socket."""
    with socket.socket(socket.AF_UNIX) as redis:
        redis.settimeout(BOUND)
        redis.connect(str(path))
        redis.sendall(hiredis.pack_command(command))  # type: ignore[arg-type] # hiredis's own type allows one word only
        assert not redis.recv(1024).startswith(b"-")
