"""The tools that all fetches of a process share.

Knows them by their names. Must never know what a fetch does with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    from mypypi.files.wheel_metadata import WheelMetadata
    from mypypi.interfaces import ICatalog, IStorage
    from mypypi.redis.leases import Leases
    from mypypi.threads import Threads
    from mypypi.upstream.backoff import Backoff
    from mypypi.upstream.client import Upstream


@frozen
class FetchTools:
    """
    The tools that all fetches share.

    The owner of `leases` must be the disk that has the drafts. A file that failed, or that upstream lists but does not
    have, is not requested again until its `backoff` ends; one that upstream refuses, for `negative_cache_time` seconds.
    """

    upstream: Upstream
    storage: IStorage
    threads: Threads
    clock: Any
    leases: Leases
    backoff: Backoff
    catalog: ICatalog
    negative_cache_time: float = 60
    #: Threads for decoding files, so that this takes no time of `threads`.
    decoding: Threads | None = None
    #: Reads metadata out of wheels, for files that have a `wheel`.
    wheels: WheelMetadata | None = None
