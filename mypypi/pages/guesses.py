"""Counts requests for pages of a project that upstream turned out not to have, such as those of invented versions.

Knows pages, clients and times. Must never know what a page lists.
"""

from __future__ import annotations

from typing import Any

from cachetools import TTLCache

from mypypi.model import PageId

#: Pages of one project that may turn out to be missing, one after the other, before upstream is asked for more.
MOST_GUESSES = 10
#: Seconds after the last one in which they are forgotten.
GUESS_SECONDS = 60.0
#: Projects and clients that are remembered.
_MOST_NAMES = 10_000


class Guesses:
    """
    Counts missing pages: for each project, and for each client that asked for pages of that project.

    The page that lists what a project has stands for the project.
    """

    def __init__(self, clock: Any) -> None:
        self._counts: TTLCache[tuple[PageId, str | None], int] = TTLCache(_MOST_NAMES, GUESS_SECONDS, clock.seconds)

    def note(self, listed_on: PageId, client: str) -> None:
        """Note that a page is missing which this client asked for."""
        for name in ((listed_on, None), (listed_on, client)):
            self._counts[name] = self._counts.get(name, 0) + 1

    def are_many(self, listed_on: PageId, client: str | None = None) -> bool:
        """Whether too many pages were missing lately: of those that this client asked for, if one is given."""
        return self._counts.get((listed_on, client), 0) >= MOST_GUESSES
