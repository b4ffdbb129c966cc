"""Tests of the pool with real processes and pages made to hurt them."""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from attrs import evolve

from mypypi.errors import BadUpstreamResponse, TemporarilyUnavailable
from mypypi.rendering.pool import SMALL_SECONDS
from mypypi.rendering.process import RenderProcessEnded
from mypypi.rendering.tasks import LARGE, decode_result, perform, work_in
from tests.rendering.bombs import ANCHOR, BOMBS, ENDLESS, PAGE, TOO_MUCH, Bomb
from tests.rendering.processes import (
    SMALL,
    RealPool,
    cpu_seconds,
    document,
    encoded,
    executable,
    real_pool,
    render_task,
)

#: Seconds that a task may take here.
SECONDS = 2.5
#: Seconds for all that a busy machine does meanwhile. A page that is waited for takes longer.
SLACK = 5.0
TASK = encoded(document(SMALL))
RESULT = perform(TASK)


@pytest.fixture
def pool() -> Iterator[RealPool]:
    yield from real_pool(2, SECONDS)


@pytest.fixture
def patient_pool() -> Iterator[RealPool]:
    """A pool that gives four large tasks a process each, and more time than a test has."""
    yield from real_pool(5, 600.0)


def result_of(bomb: Bomb, result: object) -> str:
    """Return the error of a task, which must be one of upstream's page; `PAGE` if it is a page."""
    if isinstance(result, Exception):
        assert isinstance(result, BadUpstreamResponse)
        return str(result)
    assert isinstance(result, bytes)
    try:
        page = decode_result(render_task(bomb.source, bomb.page), result)
    except BadUpstreamResponse as error:
        return str(error)
    assert page.forms
    return PAGE


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_hurts_no_other_page(pool: RealPool, bomb: Bomb) -> None:
    """
    A hostile page becomes a page or an error within its time. Small pages that come meanwhile are rendered.

    Afterwards the pool works on, with no more processes than it may have, and no zombie.
    """
    pool.loop.wait(pool.pool.run(TASK))
    task = encoded(bomb.source, bomb.page)
    started = time.monotonic()
    running = pool.pool.run(task)
    assert pool.loop.wait(pool.pool.run(TASK)) == [RESULT]
    while not running.called:
        assert pool.loop.wait(pool.pool.run(TASK)) == [RESULT]
    assert time.monotonic() - started < SMALL_SECONDS + SECONDS + SLACK
    assert re.search(bomb.result, result_of(bomb, *pool.loop.wait(running)))
    assert pool.loop.wait(pool.pool.run(TASK)) == [RESULT]
    pool.loop.run_until(lambda: 1 <= len(pool.children) <= 2 and psutil.STATUS_ZOMBIE not in pool.children.values())


def test_small_pages_are_rendered_while_a_large_one_takes_its_time(pool: RealPool) -> None:
    """A page that takes its whole time and is killed then makes no small page wait for it."""
    pool.loop.wait(pool.pool.run(TASK))
    before = set(pool.children)
    bomb = pool.pool.run(encoded(ENDLESS.source))
    answered = 0
    while not bomb.called:
        assert pool.loop.wait(pool.pool.run(TASK), timeout=SECONDS) == [RESULT]
        answered += 1
    (error,) = pool.loop.wait(bomb)
    assert isinstance(error, RenderProcessEnded)
    pool.loop.run_until(lambda: before - set(pool.children))
    assert answered > 50


def test_a_page_that_seems_small_is_done_again_as_a_large_one(pool: RealPool) -> None:
    """
    A page may hide its size from the pool. It is no small task any more once that shows, and small pages do not wait.

    A gzip file of several members has the size of the last one at its end.
    """
    body = ENDLESS.source.body + gzip.compress(b" ")
    task = encoded(evolve(ENDLESS.source, body=body))
    assert work_in(task) < LARGE
    bombs = [pool.pool.run(task) for _ in range(2)]
    assert pool.loop.wait(pool.pool.run(TASK), timeout=SMALL_SECONDS + SLACK) == [RESULT]
    while not all(bomb.called for bomb in bombs):
        assert pool.loop.wait(pool.pool.run(TASK), timeout=SECONDS) == [RESULT]
    assert [type(error) for error in pool.loop.wait(*bombs)] == [RenderProcessEnded] * 2


def test_stopping_ends_bombs_at_once(patient_pool: RealPool) -> None:
    """A stop in the middle of four hostile pages takes no time, and leaves no process."""
    pool = patient_pool
    bomb = Bomb(lambda: b"<html>" + ANCHOR * 600_000, TOO_MUCH)
    bombs = [pool.pool.run(encoded(bomb.source)) for _ in range(4)]
    pool.loop.run_until(lambda: len(pool.children) == 4 and min(map(cpu_seconds, pool.children)) > 0.3)
    waiting = pool.pool.run(encoded(ENDLESS.source))
    assert not any(bomb.called for bomb in bombs)
    started = time.monotonic()
    pool.stop()
    errors = pool.loop.wait(*bombs, waiting)
    assert time.monotonic() - started < SLACK
    assert [type(error) for error in errors] == [TemporarilyUnavailable] * 5
    assert pool.children == {}


@pytest.mark.parametrize("command", ["exit 1", "exec sleep 600", "exec true"])
def test_a_program_that_is_no_render_process_is_no_page(tmp_path: Path, command: str) -> None:
    """A process that ends or hangs fails its own tasks only. When it works again, so does the pool."""
    with executable(tmp_path, command):
        pool = RealPool(2, SECONDS)
        (error,) = pool.loop.wait(pool.pool.run(TASK))
    try:
        assert isinstance(error, RenderProcessEnded)
        assert pool.loop.wait(pool.pool.run(TASK)) == [RESULT]
    finally:
        pool.stop()
