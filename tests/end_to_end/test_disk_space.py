"""Tests that files arriving at the same time never take more disk space than there is.

A file that finds no room comes from upstream. Health says so while it lasts.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import pytest

from tests.end_to_end.test_degraded import Deployment, deploy, mounted
from tests.rig.faults import Gate
from tests.rig.http import eventually, get
from tests.rig.redis import Redis

FILE = 12_000_000
ROOM = 30_000_000


@pytest.fixture(params=["limit", "disk", "limit of two processes"])
def tight(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Deployment]:
    """A deployment with room for two of the files: by the setting, by the disk, or by the setting for two processes."""
    (tmp_path / "data").mkdir()
    workers = 2 if request.param.endswith("two processes") else 1
    settings = {}
    with ExitStack() as ending:
        if request.param == "disk":
            ending.enter_context(mounted(tmp_path / "data", f"{ROOM}"))
        else:
            settings["DRAFTS_MAX_BYTES"] = str(ROOM)
        redis = ending.enter_context(Redis())
        yield ending.enter_context(deploy(tmp_path, workers=workers, REDIS_URL=redis.url, **settings))


def test_files_that_find_no_room_come_from_upstream(tight: Deployment) -> None:
    """
    Of four files at once, two have room and are stored; the clients of the others are redirected before the first byte.

    No transfer breaks. Health and metrics tell it until there is room.
    """
    wheels = [tight.publish(FILE) for _ in range(4)]
    for wheel in wheels:
        tight.get_page(wheel)
    gate = tight.index.fault("/packages/", Gate())
    urls = [f"{tight.daemon.url}/file/{tight.index.url_of(wheel.filename).replace('://', '/')}" for wheel in wheels]
    with ThreadPoolExecutor(len(wheels)) as pool:
        running = [pool.submit(get, url) for url in urls]
        redirected = [each.result() for each in islice(as_completed(running), 2)]
        assert [answer.status for answer in redirected] == [302, 302]
        gate.wait_served(2)  # the others have begun, and wait
        tight.assert_degraded("storage", "no room for a file of")
        gate.allow_all()
        answers = [each.result() for each in running]
    assert sorted(answer.status for answer in answers) == [200, 200, 302, 302]
    for answer, wheel in zip(answers, wheels, strict=True):
        found = get(answer.headers["Location"]) if answer.status == 302 else answer
        assert found.complete
        assert found.body == wheel.content
    tight.wait_stored(2)
    if (tight.data / "files").stat().st_dev != tight.data.parent.stat().st_dev:  # a small disk, full of stored files
        tight.assert_degraded("storage", "no room for a file of")
        shutil.rmtree(tight.data / "files")
    tight.assert_recovered()
    assert tight.serves(*wheels[:1])
    eventually(lambda: list((tight.data / "drafts").iterdir()), lambda left: left == [])
    assert 1 <= tight.count_logged("files can't be stored") <= 2  # once in each process
