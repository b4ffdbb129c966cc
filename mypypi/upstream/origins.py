"""What this process has seen of origins lately, and the requests to them that wait.

Pages list files on any number of origins, so only the last ones are remembered. Knows origins, URLs and times. Must
never know what follows from a failure.
"""

from __future__ import annotations

from collections import OrderedDict

from attrs import define, field

#: Origins that this process remembers, besides those with requests that wait.
MOST_ORIGINS = 1000
#: URLs of an origin that are remembered as silent.
_MOST_SILENT_URLS = 100


@define(eq=False)
class Permit:
    """
    Permission for one request. The caller reports how the request ended.

    After a pause of its origin only one request is sent as a `trial`, until it is answered. With `tries_kind`, it is
    sent during a pause of its kind, which ends if it succeeds. A `late` request was not answered within the time-out,
    and goes on.
    """

    origin: str
    kind: str
    url: str
    since: float
    trial: bool = False
    tries_kind: bool = False
    late: bool = False


@define
class Origin:
    """What this process has seen of an origin lately."""

    answered_at: float = float("-inf")
    waiting: set[Permit] = field(factory=set)
    failed_urls: list[str] = field(factory=list)
    #: URLs that got no answer in time, since the last answer to any URL.
    silent_urls: set[str] = field(factory=set)

    def note_silence(self, url: str) -> None:
        """Note that this URL got no answer in time."""
        if len(self.silent_urls) < _MOST_SILENT_URLS:
            self.silent_urls.add(url)


class Origins:
    """The origins that were seen last, by their names."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, Origin] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def get(self, name: str) -> Origin | None:
        """Return what is known of this origin, if anything is."""
        return self._seen.get(name)

    def seen(self, name: str) -> Origin:
        """Return what is known of this origin, now the last one seen; forget the one that was seen first."""
        origin = self._seen.setdefault(name, Origin())
        self._seen.move_to_end(name)
        if len(self._seen) > MOST_ORIGINS:
            idle = (each for each, found in self._seen.items() if each != name and not found.waiting)
            self._seen.pop(next(idle, ""), None)
        return origin
