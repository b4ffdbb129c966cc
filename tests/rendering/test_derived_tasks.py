"""Tests of the order of tasks that derive forms. Clients decide how many there are, so pages do not wait for them."""

from __future__ import annotations

from mypypi.model import Form
from mypypi.rendering.tasks import LARGE, LARGE_DERIVED, DeriveTask, encode_task, is_derived, is_large, restated
from tests.rendering.processes import URL, encoded_work
from tests.rendering.test_pool import PoolTestCase, large, small


def derived(name: str, work: int = LARGE_DERIVED) -> bytes:
    """Encode a task that derives a form of so many bytes."""
    return encode_task("npm", URL, DeriveTask(Form("", name, work, b""), "http://here.example"))


def test_a_task_says_whether_it_derives() -> None:
    """Deriving a form of one megabyte is a large task already. Rendering a page of that size is not."""
    tasks = [derived("a", LARGE_DERIVED - 1), derived("a"), encoded_work("a", LARGE - 1), encoded_work("a", LARGE)]
    assert [(is_derived(task), is_large(task)) for task in tasks] == [
        (True, False),
        (True, True),
        (False, False),
        (False, True),
    ]
    assert is_derived(restated(tasks[0]))


class TestOrder(PoolTestCase):
    """Two processes, and many tasks that derive a form."""

    def test_small_pages_do_not_wait_for_derived_forms(self) -> None:
        """Derived forms never take all processes. A page that arrives later is rendered at once."""
        self.run_tasks(*(derived(f"{number}") for number in range(50)))
        assert len(self.threads.waiting) == 1
        for name in "abc":
            (page,) = self.run_tasks(small(name))
            assert len(self.threads.waiting) == 2
            self.threads.waiting.pop()()
            assert self.successResultOf(page) == small(name)

    def test_large_pages_and_derived_forms_take_turns(self) -> None:
        """Neither of the two keeps the other waiting for more than one task."""
        forms = [derived(f"{number}") for number in range(4)]
        pages = [large(name) for name in "abc"]
        self.run_tasks(*forms, *pages)
        self.threads.finish()
        assert self.done == [forms[0], pages[0], forms[1], pages[1], forms[2], pages[2], forms[3]]

    def test_small_forms_are_small_tasks(self) -> None:
        """A small derived form does not wait for large ones: a client needs it for each package."""
        self.run_tasks(derived("1"), derived("2"), small("a"), derived("3", 1000))
        self.threads.waiting.pop()()
        self.threads.waiting.pop()()
        assert self.done == [small("a"), derived("3", 1000)]
