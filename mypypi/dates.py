"""Parses and writes HTTP dates, from text that may be malformed.

Knows the formats of a date. Must never know which header contains it.
"""

from __future__ import annotations

from datetime import datetime, timezone
from email.utils import format_datetime, parsedate_to_datetime


def parse_date(text: str | None) -> datetime | None:
    """Parse an HTTP-date (RFC 9110, section 5.6.7). None for any other text."""
    if text is None:
        return None
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):  # the last one is for a day or a year of twenty digits
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


def http_date(text: str) -> str:
    """Convert a date of JavaScript's (ISO 8601) into an HTTP-date; empty if that can't be done."""
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return ""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    try:
        return format_datetime(moment.astimezone(timezone.utc), usegmt=True)
    except OverflowError:  # near the first or last possible day, the conversion to UTC leaves the range
        return ""
