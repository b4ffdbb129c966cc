"""Tests a Redis that answers, but slowly, with real processes: requests wait for it for a limited time in all."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from mypypi.redis_budget import REQUEST_BUDGET
from tests.conftest import daemons
from tests.observability.test_metrics import parsed, value
from tests.rig.http import Answer, eventually, get
from tests.rig.link import SlowLink
from tests.rig.redis import Redis
from tests.support.kinds import Kind, NPMKind, PyPIKind

#: Seconds of a round trip; the time limit for a command is 2 s.
SLOW = 1.9
#: Seconds for everything but Redis: upstream, rendering, and a machine that is busy with other tests.
REST = 2.5


def timed(ask: Callable[[], Answer]) -> tuple[Answer, float]:
    """The answer, and the seconds until it came."""
    began = time.monotonic()
    answer = ask()
    return answer, time.monotonic() - began


@pytest.mark.parametrize("kind", [PyPIKind(), NPMKind()], ids=["pypi", "npm"])
def test_a_slow_redis_delays_each_request_once(kind: Kind, redis: Redis, tmp_path: Path) -> None:
    """
    A Redis that takes 1.9 s for a command delays a request by two seconds, not by that for each command.

    Health and the log say that it is slow. What was written meanwhile is there when it is fast again.
    """
    with kind.upstream() as upstream, SlowLink(redis.port) as link, daemons(upstream.url, tmp_path / "data") as start:
        prefix = f"slow-{kind.package_type}"
        daemon = start(
            "mypypi-server",
            env={
                "MYPYPI_REDIS_URL": f"redis://127.0.0.1:{link.port}",
                "MYPYPI_REDIS_PREFIX": prefix,
                "MYPYPI_PACKAGE_TYPE": kind.package_type,
            },
        )
        cold, hot, cold_file, warm_file = (kind.publish(upstream, name) for name in ("cold", "hot", "file", "stored"))

        def get_page(name: str) -> Answer:
            return get(daemon.url + kind.page_path(name), {"Accept": kind.accept})

        for each in (hot, warm_file):
            assert get_page(each.name).status == 200
        assert get(daemon.url + warm_file.path).body == warm_file.content
        daemon.wait_for_log("stored ")
        link.delay = SLOW
        asks = [partial(get_page, each.name) for each in (cold, hot)]
        asks += [partial(get, daemon.url + each.path) for each in (cold_file, warm_file)]
        asks += [partial(get, f"{daemon.url}/-/{path}") for path in ("health/ready", "metrics")]
        with ThreadPoolExecutor(len(asks)) as threads:
            answers = list(threads.map(timed, asks))
        assert [answer.status for answer, _ in answers] == [200] * 6
        assert [answer.body for answer, _ in answers[2:4]] == [cold_file.content, warm_file.content]
        assert max(seconds for _, seconds in answers) < REQUEST_BUDGET + REST
        assert answers[0][1] > SLOW
        assert '"redis":"Redis takes ' in answers[4][0].text
        assert value(parsed(answers[5][0].text), "degraded", part="redis") == 1
        daemon.wait_for_log("makes requests wait, and they go on without it: Redis takes ")
        link.delay = 0.0
        eventually(lambda: get(f"{daemon.url}/-/health/ready").text, lambda health: '"status":"ok"' in health)
        eventually(lambda: redis.keys(f"{prefix}:page:*/{cold.name}"), bool)
        assert redis.keys(f"{prefix}:lease:*") == []
        assert link.delayed > 4
