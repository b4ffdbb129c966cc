"""Tests files in a bucket, with real servers, workers, Redis and S3.

They include failures of the bucket, of Redis and of the processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from attrs import define

from tests.rig.clients import Pip
from tests.rig.daemon import Daemon
from tests.rig.faults import Fault, Gate, Hang, Status
from tests.rig.http import SlowReader, eventually, get, parallel
from tests.rig.packages import Artifact, make_sdist, make_wheel
from tests.rig.s3 import Pass, Swallow
from tests.rig.wire import Reply, Wire
from tests.support.cluster import Cluster

#: Size of a package that is uploaded in two parts; bytes.
IN_PARTS = 17 * 1024 * 1024


@define(eq=False)
class Slow(Fault):
    """Delays a correct answer by `seconds`, or until it is released."""

    seconds: float

    def serve(self, reply: Reply, wire: Wire) -> None:
        self._happened()
        with self._changed:
            self._changed.wait_for(lambda: self._released, self.seconds)
        wire.reply(reply)


@contextmanager
def failing_bucket(cluster: Cluster, failure: str) -> Iterator[None]:
    """Make the bucket fail in this way inside the block."""
    if failure == "refusing":
        with cluster.proxy.refusing():
            yield
        return
    cluster.proxy.fault("/", Swallow() if failure == "silent" else Status(int(failure)))
    yield
    cluster.proxy.mend()


class TestInstall:
    """Tests a pip install from an index whose files are in the bucket."""

    def test_pip_installs_from_the_bucket(self, cluster: Cluster, tmp_path: Path) -> None:
        """
        Each file is uploaded once, and the second install uses the bucket.

        The objects have the content, the headers and the digest of their files.
        """
        app = make_wheel("app", requires=["lib"], modules={"app.py": ""}, padding=40_000)
        lib = make_sdist("lib", "1.1", modules={"lib.py": ""})
        cluster.index.add_all(app, lib)
        server = cluster.server()
        cluster.workers(2)
        pip = Pip(tmp_path)
        assert pip.install(server.url, "app") == {"app": "1.0", "lib": "1.1"}
        cluster.wait_uploaded(app, lib)
        metadata = f"{cluster.object_name(app)}.metadata"
        assert cluster.objects() == sorted([cluster.object_name(app), metadata, cluster.object_name(lib)])
        for artifact in (app, lib):
            stored = cluster.s3.get(cluster.object_name(artifact))
            assert stored.content == artifact.content
            assert cluster.put_into_bucket(artifact) == 1
            assert stored.head["ContentType"] == "application/octet-stream"
            assert stored.head["CacheControl"] == "public, max-age=31536000, immutable"
            assert stored.head["ContentDisposition"] == f"attachment; filename*=UTF-8''{artifact.filename}"
            assert stored.head["Metadata"] == {"digest": f"sha256-{artifact.sha256}"}
        assert cluster.s3.get(metadata).content == app.metadata
        asked = len(cluster.index.seen("/packages/"))
        assert pip.install(server.url, "app") == {"app": "1.0", "lib": "1.1"}
        assert len(cluster.index.seen("/packages/")) == asked
        assert [len(cluster.proxy.asked("GET", cluster.object_name(each))) for each in (app, lib)] == [1, 1]


class TestKilled:
    """
    Tests that ``kill -9`` loses no file and no job.

    Afterwards each file is stored once, with its right content, and no job, draft or upload is left over.
    """

    def test_a_worker_during_an_upload(self, cluster: Cluster) -> None:
        """Another worker finishes the uploads of a killed worker. The server goes on serving the files meanwhile."""
        small, large = cluster.publish(50_000), cluster.publish(IN_PARTS)
        server, (doomed,) = cluster.server(), cluster.workers()
        cluster.proxy.fault(cluster.put_of(small), held := Swallow())
        cluster.proxy.fault(cluster.put_of(large), first_part := Pass(), times=1)
        cluster.proxy.fault(cluster.put_of(large), second_part := Swallow())
        for wheel in (small, large):
            assert cluster.get(server, wheel).body == wheel.content
        for fault in (held, first_part, second_part):
            fault.wait_served()
        assert cluster.pending() == [cluster.object_name(large)]
        cluster.worker()
        doomed.kill()
        cluster.proxy.mend()
        assert cluster.objects() == []
        assert cluster.get(server, small).status == 200
        cluster.wait_uploaded(small, large)
        for wheel in (small, large):
            assert cluster.s3.get(cluster.object_name(wheel)).content == wheel.content
            assert cluster.fetched(wheel) == 1
        assert cluster.put_into_bucket(small) == 1

    def test_a_server_during_a_fetch(self, cluster: Cluster) -> None:
        """The next server resumes the draft of a killed server. The client's transfer is aborted."""
        wheel = cluster.publish(100_000)
        server, _ = cluster.server(), cluster.workers(2)
        gate = cluster.index.fault(cluster.index.path_of(wheel.filename), Gate(), times=1)
        gate.allow(60_000)
        with SlowReader(server.url + cluster.path(wheel)) as client:
            client.read(50_000)
            assert len(cluster.drafts()) == 1
            server.kill()
            assert not client.rest().complete
        gate.allow_all()
        server = cluster.server()
        assert cluster.get(server, wheel).body == wheel.content
        cluster.wait_uploaded(wheel)
        assert cluster.s3.get(cluster.object_name(wheel)).content == wheel.content
        assert cluster.put_into_bucket(wheel) == 1

    def test_redis_during_uploads_and_fetches(self, cluster: Cluster) -> None:
        """
        Files that are uploaded or fetched without Redis are not lost.

        When Redis is back, the upload is recorded and the upload of the fetched file is queued.
        """
        unrecorded, unqueued = cluster.publish(50_000), cluster.publish(50_000)
        server, _ = cluster.server(), cluster.workers(2)
        answer = cluster.proxy.fault(cluster.put_of(unrecorded), Hang())
        assert cluster.get(server, unrecorded).status == 200
        assert cluster.get(server, unqueued, method="HEAD").status == 200  # loads the project's page
        answer.wait_served()
        cluster.redis.kill()
        answer.release()
        assert cluster.get(server, unqueued).body == unqueued.content
        assert cluster.get(server, unrecorded).body == unrecorded.content
        server.wait_for_log("could not be queued")
        cluster.redis.start()
        cluster.wait_uploaded(unrecorded, unqueued)
        for wheel in (unrecorded, unqueued):
            assert cluster.s3.get(cluster.object_name(wheel)).content == wheel.content
            assert cluster.fetched(wheel) == 1
            assert cluster.get(server, wheel).status == 302

    def test_a_worker_every_second(self, cluster: Cluster) -> None:
        """
        Four workers finish 200 jobs although one is killed each second.

        Each is killed while it works, and a new worker replaces it.
        """
        wheels = [make_wheel("many", f"1.{number}", padding=2_000) for number in range(200)]
        cluster.index.add_all(*wheels)
        server = cluster.server()
        for start in range(0, 200, 20):
            answers = parallel(20, lambda number: cluster.get(server, wheels[start + number]))  # noqa: B023
            assert {answer.status for answer in answers} == {200}
        eventually(cluster.jobs, lambda jobs: len(jobs) == 400)  # 200 jobs, each with its marker
        cluster.proxy.fault(f"PUT /{cluster.s3.bucket}/", Slow(0.5))
        workers = cluster.workers(4)
        killed_at_work = 0
        while len(cluster.waiting()) > 20:
            time.sleep(1)
            doomed = workers.pop(0)
            doomed.kill()
            killed_at_work += "uploaded" in doomed.log
            workers.append(cluster.launch_worker())
        assert killed_at_work >= 5
        cluster.proxy.mend()
        cluster.wait_uploaded(*wheels, timeout=60)
        assert len(cluster.objects()) == 200
        assert all(cluster.s3.get(cluster.object_name(wheel)).content == wheel.content for wheel in wheels)
        assert {cluster.get(server, wheel).status for wheel in wheels} == {302}
        assert {cluster.fetched(wheel) for wheel in wheels} == {1}


class TestStop:
    """Tests the orderly stop of a worker."""

    def test_a_worker_hands_back_an_unfinished_job(self, cluster: Cluster) -> None:
        """Another worker runs the job at once, before any claim expires."""
        wheel = cluster.publish(50_000)
        server, leaving = cluster.server(), cluster.worker()
        cluster.proxy.fault(cluster.put_of(wheel), held := Swallow(), times=1)
        assert cluster.get(server, wheel).status == 200
        held.wait_served()
        cluster.worker()
        leaving.stop()
        assert leaving.ended_in_order
        cluster.wait_uploaded(wheel, timeout=5)


class TestFailures:
    """Tests failures of the bucket, the local disk space and Redis."""

    @pytest.mark.parametrize("failure", ["503", "403", "refusing", "silent"])
    def test_clients_are_served_while_the_bucket_fails(self, cluster: Cluster, failure: str) -> None:
        """
        The server serves files that are not in the bucket yet.

        Its health reports the failure, and the queue drains when the bucket works again.
        """
        before, during = cluster.publish(50_000), cluster.publish(50_000)
        server, _ = cluster.server(), cluster.workers(2)
        assert cluster.get(server, before).status == 200
        cluster.wait_uploaded(before)
        assert cluster.health(server)["checks"]["storage"] == "ok"
        with failing_bucket(cluster, failure):
            asked_at = time.monotonic()
            assert cluster.get(server, during).body == during.content
            assert time.monotonic() - asked_at < 8  # pip's timeout is 15 seconds
            assert cluster.get(server, during).body == during.content
            if failure in ("503", "403"):
                eventually(lambda: any("is tried again" in each.log for each in cluster.daemons), bool)
            health = cluster.health(server)
            assert health["status"] == "degraded"
            assert "S3" in health["checks"]["storage"]
            assert cluster.get(server, during).body == during.content
            # The file is served while it is being stored, which takes a moment.
            eventually(cluster.waiting, lambda waiting: len(waiting) == 1)
        cluster.wait_uploaded(during, timeout=60)
        assert cluster.fetched(during) == 1
        # The server tries the bucket again within five seconds. The workers need not have told it.
        eventually(lambda: cluster.get(server, during).status, lambda status: status == 302)
        assert cluster.health(server)["status"] == "ok"

    def test_waiting_files_use_up_the_space(self, cluster: Cluster) -> None:
        """
        Clients are redirected to upstream when waiting files use up the space.

        The log says so once, and the server stores files again when there is space.
        """
        wheels = [cluster.publish(600_000) for _ in range(4)]
        server, _ = cluster.server(DRAFTS_MAX_BYTES="1000000"), cluster.workers()
        with failing_bucket(cluster, "503"):
            assert cluster.get(server, wheels[0]).status == 200
            eventually(cluster.drafts, lambda drafts: drafts == [])
            for wheel in wheels[1:3]:
                answer = cluster.get(server, wheel)
                upstream = cluster.index.url_of(wheel.filename)
                assert (answer.status, answer.headers["Location"]) == (302, upstream)
            assert cluster.get(server, wheels[0]).status == 200
            assert server.log.count("files can't be stored") == 1
        cluster.wait_uploaded(wheels[0], timeout=60)
        # The server measures the waiting files every two seconds.
        eventually(lambda: cluster.get(server, wheels[3]).body, lambda body: body == wheels[3].content)
        assert server.log.count("files can be stored again") == 1
        cluster.wait_uploaded(wheels[3])

    def test_redis_is_emptied(self, cluster: Cluster) -> None:
        """One request to the bucket finds a file after Redis was emptied. The file is not fetched again."""
        wheel, waiting = cluster.publish(50_000), cluster.publish(50_000)
        server, _ = cluster.server(), cluster.workers(2)
        assert cluster.get(server, wheel).status == 200
        cluster.wait_uploaded(wheel)
        held = cluster.proxy.fault(cluster.put_of(waiting), Swallow(), times=1)
        assert cluster.get(server, waiting).status == 200
        held.wait_served()
        cluster.redis.call("FLUSHALL")
        held.release()
        asked = len(cluster.proxy.asked("HEAD", cluster.object_name(wheel)))
        answers = parallel(10, lambda _: cluster.get(server, wheel))
        assert {answer.status for answer in answers} == {302}
        assert len({answer.headers["Location"] for answer in answers}) == 1
        assert len(cluster.proxy.asked("HEAD", cluster.object_name(wheel))) == asked + 1
        cluster.wait_uploaded(waiting)
        assert (cluster.fetched(wheel), cluster.fetched(waiting)) == (1, 1)

    def test_a_file_that_is_stored_while_the_bucket_is_asked_is_not_fetched_again(self, cluster: Cluster) -> None:
        """
        A slow answer from the bucket causes no second fetch.

        A second client arrives during the fetch, and the file is stored before the bucket answers that it does not have
        it.
        """
        wheel = cluster.publish(200_000)
        server = cluster.server()
        gate = cluster.index.fault(cluster.index.path_of(wheel.filename), Gate())
        with SlowReader(server.url + cluster.path(wheel)) as first, ThreadPoolExecutor() as pool:
            held = cluster.proxy.fault(f"HEAD {cluster.proxy.path_of(cluster.object_name(wheel))}", Hang())
            second = pool.submit(cluster.get, server, wheel)
            held.wait_served()
            gate.allow_all()
            assert first.rest().body == wheel.content
            server.wait_for_log(rf"stored \S*{wheel.filename}")
            held.release()
            assert second.result().body == wheel.content
        assert cluster.fetched(wheel) == 1


class TestLinks:
    """Tests the links to which clients are redirected."""

    def test_all_clients_get_the_same_link(self, cluster: Cluster) -> None:
        """
        Two servers redirect to the same signed link.

        It is valid for the file's whole transfer, works with Range, and may be cached while it is valid.
        """
        wheel = cluster.publish(50_000)
        server, other, _ = cluster.server(), cluster.server(), cluster.workers()
        assert cluster.get(server, wheel).status == 200
        cluster.wait_uploaded(wheel)
        first, second = cluster.get(server, wheel), cluster.get(other, wheel)
        assert (first.status, second.status) == (302, 302)
        assert first.headers["Location"] == second.headers["Location"]
        assert "X-Amz-Signature=" in first.headers["Location"]
        assert 530 <= int(first.headers["Cache-Control"].removeprefix("public, max-age=")) <= 540
        assert get(first.headers["Location"]).body == wheel.content
        part = cluster.follow(server, wheel, {"Range": "bytes=100-199"})
        assert (part.status, part.body) == (206, wheel.content[100:200])
        described = cluster.get(server, wheel, method="HEAD")
        assert (described.status, described.headers["Content-Length"]) == (200, str(wheel.size))

    def test_a_public_bucket(self, cluster: Cluster) -> None:
        """Links to a public bucket are unsigned and cacheable for ever."""
        cluster.s3.let_everybody_read()
        wheel = cluster.publish(50_000)
        server, _ = cluster.server(S3_PUBLIC="true"), cluster.workers()
        assert cluster.get(server, wheel).status == 200
        cluster.wait_uploaded(wheel)
        answer = cluster.get(server, wheel)
        assert answer.status == 301
        assert "?" not in answer.headers["Location"]
        assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert get(answer.headers["Location"]).body == wheel.content


class TestThroughTheServer:
    """Tests MYPYPI_S3_SERVE=proxy, for clients that can't reach the bucket."""

    @pytest.fixture
    def server(self, cluster: Cluster) -> Daemon:
        cluster.workers(1)
        return cluster.server(S3_SERVE="proxy")

    @pytest.fixture
    def wheel(self, cluster: Cluster, server: Daemon) -> Artifact:
        """A wheel that is in the bucket."""
        wheel = cluster.publish(300_000)
        assert cluster.get(server, wheel).status == 200
        cluster.wait_uploaded(wheel)
        return wheel

    def test_an_object_is_served_like_a_file_on_disk(self, cluster: Cluster, server: Daemon, wheel: Artifact) -> None:
        """An object is served like a file on disk. This covers GET, Range, HEAD and If-None-Match."""
        whole = cluster.get(server, wheel)
        assert (whole.status, whole.body, whole.complete) == (200, wheel.content, True)
        assert whole.headers["Content-Length"] == str(wheel.size)
        assert whole.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert whole.headers["ETag"] == f'"sha256-{wheel.sha256}"'
        for asked, expected in (
            ("bytes=1000-1999", wheel.content[1000:2000]),
            ("bytes=-500", wheel.content[-500:]),
            (f"bytes={wheel.size - 10}-", wheel.content[-10:]),
        ):
            part = cluster.get(server, wheel, {"Range": asked})
            assert (part.status, part.body) == (206, expected)
            assert part.headers["Content-Length"] == str(len(expected))
        beyond = cluster.get(server, wheel, {"Range": f"bytes={wheel.size}-"})
        assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{wheel.size}")
        described = cluster.get(server, wheel, method="HEAD")
        assert (described.status, described.headers["Content-Length"]) == (200, str(wheel.size))
        assert cluster.get(server, wheel, {"If-None-Match": whole.headers["ETag"]}).status == 304
        assert cluster.fetched(wheel) == 1

    def test_a_deleted_object_is_fetched_again(self, cluster: Cluster, server: Daemon, wheel: Artifact) -> None:
        """A file whose object was deleted is fetched and uploaded again. The client gets it in the same response."""
        cluster.s3.delete(cluster.object_name(wheel))
        answer = cluster.get(server, wheel)
        assert (answer.status, answer.body) == (200, wheel.content)
        assert cluster.fetched(wheel) == 2
        cluster.wait_uploaded(wheel)
        assert cluster.get(server, wheel).body == wheel.content
        assert cluster.fetched(wheel) == 2

    @pytest.mark.parametrize("damage", ["another byte", "too short"])
    def test_wrong_bytes_abort_the_transfer(
        self, cluster: Cluster, server: Daemon, wheel: Artifact, damage: str
    ) -> None:
        """The transfer of a damaged object is aborted. The object is deleted, and the file is fetched again."""
        other = bytes([wheel.content[0] ^ 0xFF]) + wheel.content[1:]
        cluster.s3.put(cluster.object_name(wheel), other if damage == "another byte" else wheel.content[:-100])
        answer = cluster.get(server, wheel)
        assert not answer.complete
        assert len(answer.body) < wheel.size
        eventually(lambda: cluster.get(server, wheel), lambda answer: answer.complete and answer.body == wheel.content)
        cluster.wait_uploaded(wheel)
        assert cluster.get(server, wheel).body == wheel.content


class TestHosts:
    """Tests two hosts with a disk each."""

    def test_two_hosts_share_redis_and_bucket(self, cluster: Cluster) -> None:
        """A file is uploaded by a worker on its own host. Then every host redirects its clients to the bucket."""
        here, there = cluster.publish(50_000), cluster.publish(50_000)
        server, other = cluster.server("here"), cluster.server("there")
        cluster.worker("there")
        assert cluster.get(server, here).status == 200
        assert cluster.get(other, there).status == 200
        eventually(cluster.objects, lambda names: names == [cluster.object_name(there)])
        eventually(lambda: cluster.waiting("there"), lambda files: files == [])
        assert len(cluster.waiting("here")) == 1
        assert cluster.get(server, there).status == 302
        cluster.worker("here")
        eventually(lambda: cluster.waiting("here"), lambda files: files == [])
        assert cluster.get(other, here).status == 302
        assert (cluster.fetched(here), cluster.fetched(there)) == (1, 1)
        cluster.wait_settled()


class TestAllInOne:
    """Tests ``twistd mypypi`` with a bucket."""

    def test_one_process_does_it_all(self, cluster: Cluster) -> None:
        """One process runs the server, the worker and Redis."""
        wheel = cluster.publish(50_000)
        daemon = cluster.all_in_one()
        assert cluster.get(daemon, wheel).body == wheel.content
        cluster.wait_uploaded(wheel)
        assert cluster.follow(daemon, wheel).body == wheel.content
        assert cluster.fetched(wheel) == 1
