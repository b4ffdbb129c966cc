"""Mends malformed fields of the Simple Repository API's JSON, so that clients accept the rest of the page.

uv rejects a whole page for one value of the wrong type, and pip for some of them. A value that can be understood is
converted, any other is removed. Knows the types of PEP 691, 700, 714 and 792. Must never know links.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from typing import Any

from mypypi.ecosystems.simple_html_reader import CORE_METADATA, HEX, REAL_HASHES

_HASH_LENGTHS = {name: hashlib.new(name, usedforsecurity=False).digest_size * 2 for name in REAL_HASHES}
_DIGITS = re.compile("[0-9]{1,18}")
#: Sizes from this on don't fit into the integers of all clients.
_TOO_LARGE = 2**63
#: A time that all clients can read, in UTC or with an offset.
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{3}|\.[0-9]{6})?(?:Z|[+-][0-9]{2}:[0-9]{2})"
)
#: Other forms of ISO 8601 and RFC 3339: date, hours and minutes, seconds, fraction, and the offset's parts.
_OTHER_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[Tt ]([0-9]{2}:[0-9]{2})(?:(:[0-9]{2})(\.[0-9]+)?)?)?"
    r" ?(?:[Zz]|([+-][0-9]{2}):?([0-9]{2}))?"
)
#: Some clients can't represent times in the last year.
_LAST_YEAR = 9999


def mend_page(document: dict[str, Any]) -> None:
    """Mend the fields of a project's page. Its files are not touched."""
    if "project-status" not in document:
        return
    status = document["project-status"]
    if not isinstance(status, dict):
        del document["project-status"]
        return
    for name in ("status", "reason"):
        if name in status and not isinstance(status[name], str):
            del status[name]


def mend_file(file: dict[str, Any]) -> None:
    """Mend the fields of one file, other than its url and filename."""
    hashes = file.get("hashes")
    file["hashes"] = usable_hashes(hashes) if isinstance(hashes, dict) else {}
    for name, mend in _MENDERS.items():
        if name in file:
            value = mend(file[name])
            if value is None:
                del file[name]
            else:
                file[name] = value
    for name in ("requires-python", "provenance"):
        if name in file and not isinstance(file[name], str | None):
            del file[name]


def usable_hashes(hashes: dict[str, Any]) -> dict[str, str]:
    """
    Return the hashes in lower case, as clients compare them, without malformed ones.

    Those of unknown algorithms may have any text, and stay as they are.
    """
    usable: dict[str, str] = {}
    for given, value in hashes.items():
        name = given.lower() if given.lower() in _HASH_LENGTHS else given
        if isinstance(value, str) and _is_hash(name, value) and (name == given or name not in hashes):
            usable.setdefault(name, value.lower() if name in _HASH_LENGTHS else value)
    return usable


def _is_hash(name: str, value: str) -> bool:
    length = _HASH_LENGTHS.get(name)
    return length is None or (len(value) == length and HEX.fullmatch(value) is not None)


def _size(value: object) -> int | None:
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    return value if type(value) is int and 0 <= value < _TOO_LARGE else None


def _yanked(value: object) -> bool | str | None:
    return value if isinstance(value, bool | str) else bool(value) or None


def _core_metadata(value: object) -> bool | dict[str, str] | None:
    """Return true, false or the hashes. Without a usable hash, the metadata is still announced."""
    if isinstance(value, bool):
        return value
    if isinstance(value, dict):
        return usable_hashes(value) or (True if value else {})
    return bool(value and value != "false") or None


def _upload_time(value: object) -> str | None:
    """Return the time, in the form of PEP 700 unless it has one that all clients read. Without an offset, it is UTC."""
    found = _OTHER_TIME.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    date, minutes, seconds, fraction, hours_off, minutes_off = found.groups("")
    offset = f"{hours_off}:{minutes_off}" if hours_off else ""
    text = f"{date}T{minutes or '00:00'}{seconds or ':00'}" + (f"{fraction:0<7.7}" if fraction else "")
    try:
        if datetime.fromisoformat(text + offset).year == _LAST_YEAR:
            return None
    except ValueError:
        return None
    return found[0] if _TIME.fullmatch(found[0]) else text + (offset or "Z")


_MENDERS = {
    "size": _size,
    "upload-time": _upload_time,
    "yanked": _yanked,
    **dict.fromkeys(CORE_METADATA, _core_metadata),
}
