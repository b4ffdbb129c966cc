"""The operator's command line: jobs that were set aside are seen, queued again, dropped; trouble is told in a line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import hiredis
import pytest
from twisted.logger import formatTime

from mypypi.cli import main as cli
from mypypi.daemon.embedded_redis import EmbeddedRedis
from mypypi.model import Job
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
    """What the command says and does, over a queue in memory."""

    def setUp(self) -> None:
        super().setUp()
        self.queue = MemoryQueue(self.clock, "d1")

    def set_aside(self, job: Job, why: str = WHY) -> str:
        """Let a job fail once too often; its id from then on."""
        self.now(self.queue.put(Job(job.kind, job.name, disk=job.disk, tries=MOST_TRIES - 1)))
        (taken,) = self.now(self.queue.take(1))
        self.now(self.queue.failed(taken, why))
        return self.now(self.queue.dead())[-1].id

    def told(self, *arguments: str) -> list[str]:
        """The lines that the command prints where all goes well."""
        options = cli._parser().parse_args(arguments)
        lines: list[str] = []
        self.now(options.command(self.queue, options, lines.append))
        return lines

    def complaint(self, *arguments: str) -> tuple[list[str], str]:
        """The lines that it prints, and what it ends with."""
        options = cli._parser().parse_args(arguments)
        lines: list[str] = []
        failed = self.failureResultOf(self._settled(options.command(self.queue, options, lines.append)), SystemExit)
        return lines, str(failed.value)

    def waiting(self) -> list[Job]:
        return [taken.job for taken in self.now(self.queue.take(10))] if self.now(self.queue.state()).waiting else []

    def test_nothing_to_do(self) -> None:
        """One line, which says so."""
        assert self.told("jobs") == ["0 waiting or being done, 0 to be tried again later, 0 set aside"]

    def test_jobs_that_were_set_aside_have_a_line_each(self) -> None:
        """Id, kind, name, tries, when and why, in columns; and before them how many jobs there are, on any disk."""
        first, second = self.set_aside(UPLOAD), self.set_aside(FETCH, "no\n such\x1b[J host\r")
        self.now(self.queue.put(Job("upload", "elsewhere", disk="d2")))
        self.now(self.queue.put(Job("fetch", "again")))
        (taken,) = self.now(self.queue.take(1))
        self.now(self.queue.failed(taken, WHY))
        assert self.told("jobs") == [
            "1 waiting or being done, 1 to be tried again later, 2 set aside",
            f"{first}  upload  {UPLOAD.name}  24 tries  {formatTime(NOW)}  {WHY}",
            f"{second}  fetch   {FETCH.name}      24 tries  {formatTime(NOW)}  no such\ufffd[J host",
        ]

    def test_jobs_for_programs(self) -> None:
        """The same as JSON."""
        identity = self.set_aside(UPLOAD)
        (line,) = self.told("jobs", "--json")
        told: dict[str, Any] = {"id": identity, "kind": "upload", "name": UPLOAD.name, "disk": "d1"}
        told |= {"tries": MOST_TRIES, "at": formatTime(NOW), "why": WHY}
        assert json.loads(line) == {"waiting": 0, "later": 0, "set_aside": [told]}

    def test_retry_queues_a_job_anew(self) -> None:
        """The one that is named, with all its tries; it is said which, and the others stay."""
        first, second = self.set_aside(UPLOAD), self.set_aside(FETCH)
        assert self.told("jobs", "retry", first) == [f"queued again: {first}  upload  {UPLOAD.name}"]
        assert self.waiting() == [UPLOAD]
        assert [dead.id for dead in self.now(self.queue.dead())] == [second]

    def test_retry_all(self) -> None:
        """Each one, oldest first; where there is none, that is said, and nothing went wrong."""
        self.set_aside(FETCH)
        self.set_aside(UPLOAD)
        assert [line.split()[3] for line in self.told("jobs", "retry", "--all")] == ["fetch", "upload"]
        assert self.waiting() == [FETCH, UPLOAD]
        assert self.told("jobs", "retry", "--all") == ["no job is set aside"]

    def test_retry_what_is_not_there(self) -> None:
        """A line for each id that is not there; those that are there are queued all the same, and once."""
        identity = self.set_aside(FETCH)
        lines, complaint = self.complaint("jobs", "retry", "7-0", identity, "8-0", identity)
        assert lines == [f"queued again: {identity}  fetch  {FETCH.name}"]
        assert complaint == "mypypi: no job 7-0 is set aside\nmypypi: no job 8-0 is set aside"
        assert self.waiting() == [FETCH]

    def test_drop(self) -> None:
        """What is dropped is forgotten, and never comes again."""
        first = self.set_aside(UPLOAD)
        self.set_aside(FETCH)
        assert self.told("jobs", "drop", first) == [f"dropped: {first}  upload  {UPLOAD.name}"]
        assert self.complaint("jobs", "drop", first) == ([], f"mypypi: no job {first} is set aside")
        assert len(self.told("jobs", "drop", "--all")) == 1
        assert self.now(self.queue.dead()) == []
        assert self.waiting() == []


def test_redis_of_these_settings(tmp_path: Path) -> None:
    """The one that is named; else the one in the data directory, where one runs; else the server's default."""
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
    """The command itself, where no other setting is in force."""
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


def beside(daemon: Daemon, *arguments: str) -> list[str]:
    """The lines that the command prints with the settings of this daemon."""
    done = mypypi(*arguments, env=daemon._env)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "COMMAND"),
        (("jobs", "retry"), 2, "one of the arguments ID --all is required"),
        (("jobs", "retry", "1-0", "--all"), 2, "argument --all: not allowed with argument ID"),
        (("jobs",), 1, "Connection refused"),
        (("jobs", "retry", "--all"), 1, "Connection refused"),
    ],
)
def test_trouble_is_told(arguments: tuple[str, ...], code: int, said: str, tmp_path: Path) -> None:
    """What was typed wrong, and a Redis that is not there: one line that says what it is, and no traceback."""
    url = f"redis://:hush@127.0.0.1:{free_port()}"
    done = mypypi(*arguments, env={"MYPYPI_REDIS_URL": url, "MYPYPI_DATA_DIRECTORY": str(tmp_path / "data")})
    assert (done.returncode, done.stdout) == (code, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("mypypi")
    assert said in last
    assert len(done.stderr.splitlines()) == 1 or done.stderr.startswith("usage: ")
    assert "Traceback" not in done.stderr
    assert "hush" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_settings_that_can_not_be_used() -> None:
    """Each problem has its line, as when a daemon starts."""
    done = mypypi("jobs", env={"MYPYPI_CACHE_TIME": "soon", "MYPYPI_REDIS": "x"})
    assert done.returncode == 1
    problems = done.stderr.splitlines()
    assert problems[0] == "mypypi: the settings in the environment can't be used:"
    assert [line.split()[0] for line in problems[1:]] == ["MYPYPI_CACHE_TIME", "MYPYPI_REDIS"]


class TestBesideDaemons:
    """The real command, with the settings of a daemon that runs."""

    def test_an_upload_that_was_given_up_is_done_after_all(self, cluster: Cluster) -> None:
        """The bucket refuses until the job is set aside: it is seen with the reason, and done when it is retried."""
        wheel = cluster.publish(50_000)
        refused = cluster.proxy.fault(cluster.put_of(wheel), Status(403))
        server, worker = cluster.server(), cluster.worker()
        assert cluster.get(server, wheel).status == 200
        let_fail_for_the_last_time(cluster)
        worker.wait_for_log("upload .* is set aside")
        assert refused.served > 0
        counts, line = beside(worker, "jobs")
        assert counts.endswith(", 1 set aside")
        identity, kind, name, tries, _, _, why = line.split(maxsplit=6)
        assert (kind, cluster.name + "/" + name, tries) == ("upload", cluster.object_name(wheel), "24")
        assert "403" in why
        absent = mypypi("jobs", "retry", "1-1", env=worker._env)
        assert (absent.returncode, absent.stdout, absent.stderr) == (1, "", "mypypi: no job 1-1 is set aside\n")
        cluster.proxy.mend()
        assert beside(server, "jobs", "retry", "--all") == [f"queued again: {identity}  upload  {name}"]
        cluster.wait_uploaded(wheel)
        assert beside(server, "jobs", "retry", "--all") == ["no job is set aside"]

    def test_beside_a_redis_of_the_daemons_own(self, daemon_factory: DaemonFactory) -> None:
        """Where no Redis is named, that of the ``twistd mypypi`` in the data directory is found."""
        daemon = daemon_factory()
        job = json.dumps({"kind": "unheard", "name": "of", "tries": MOST_TRIES - 1})
        ask(EmbeddedRedis(None, daemon.data).socket, "XADD", "mypypi:queue:pypi", "*", "job", job)
        daemon.wait_for_log("unheard of is set aside")
        (dead,) = json.loads("\n".join(beside(daemon, "jobs", "--json")))["set_aside"]
        assert (dead["kind"], dead["tries"]) == ("unheard", MOST_TRIES)
        assert dead["why"] == "there is no job of this kind: unheard"
        assert beside(daemon, "jobs", "drop", dead["id"]) == [f"dropped: {dead['id']}  unheard  of"]
        assert beside(daemon, "jobs", "drop", "--all") == ["no job is set aside"]


def let_fail_for_the_last_time(cluster: Cluster) -> None:
    """Once the only upload has failed: it has one try left, now, in place of what would take hours."""

    def later() -> list[tuple[str, str]]:
        names = cluster.redis.keys(f"{cluster.name}:queue:*:later")
        return [(name, job) for name in names for job in cluster.redis.call("ZRANGE", name, 0, -1)]

    (found,) = eventually(later, lambda found: len(found) == 1)
    name, text = found
    job: dict[str, Any] = json.loads(text)
    cluster.redis.call("ZADD", name, 0, json.dumps(job | {"tries": MOST_TRIES - 1}))
    cluster.redis.call("ZREM", name, text)


def ask(path: Path, *command: str) -> None:
    """Have a Redis on a unix socket do something."""
    with socket.socket(socket.AF_UNIX) as redis:
        redis.settimeout(BOUND)
        redis.connect(str(path))
        redis.sendall(hiredis.pack_command(command))  # type: ignore[arg-type] # its own says: one word
        assert not redis.recv(1024).startswith(b"-")
