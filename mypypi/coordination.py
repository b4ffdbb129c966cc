"""What processes of a fleet tell each other: who does what, and what must wait. All values are frozen.

Knows leases and back-offs. Must never know where they are kept, or what they are for.
"""

from __future__ import annotations

from attrs import frozen


def fetch_lease(key: str) -> str:
    """Name the lease to fetch the file with this key. The lease's owner is a disk, by its id."""
    return f"fetch:{key}"


@frozen
class HeldLease:
    """A lease that another owner holds.

    It expires in `left` seconds unless that owner renews it. `about` is that owner's text for other processes.
    """

    owner: str
    left: float
    about: str = ""


@frozen
class Pause:
    """
    A back-off after a failure: no requests `until` then (seconds since the epoch).

    `why` is the failure's message, `failures` the number of back-offs in a row. `status` is the one for clients: 503 if
    upstream was down, 502 if its response could not be used, or the status with which it refused.
    """

    until: float
    why: str
    failures: int = 1
    status: int = 503
