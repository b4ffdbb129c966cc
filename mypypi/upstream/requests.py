"""A request to upstream, as a value.

Knows what is sent, and when it may wait. Must never know how it is sent, or what an answer means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import field, frozen

if TYPE_CHECKING:
    from mypypi.upstream.limiter import Demand


@frozen
class Request:
    """
    One HTTP request to upstream.

    `kind` is page, file, metadata, range, keys, attestations, search or audit. Requests of one kind share places and
    are held back together; it is a label of the metrics. `encoding` is the one content coding that is accepted, gzip or
    identity. A `patient` request waits for the end of a short pause. `late` is called if upstream does not answer
    within the time-out, and returns whether the request goes on, up to `mypypi.upstream.requester.LATE_LIMIT`. An
    `anonymous` one carries no credentials. `demand` says whether any client waits for it; without one, a client does.
    """

    kind: str
    url: str
    headers: dict[str, str] = field(repr=False)
    encoding: str = "gzip"
    method: str = "GET"
    content: bytes | None = field(default=None, repr=False)
    patient: bool = False
    anonymous: bool = False
    late: Callable[[], bool] = field(default=lambda: False, repr=False)
    demand: Demand | None = field(default=None, repr=False)
