"""Parses HTTP dates, including malformed ones.

Knows the formats of a date. Must never know which header contains it.
"""

from __future__ import annotations

from datetime import datetime

from werkzeug import http


def parse_date(text: str | None) -> datetime | None:
    """Parse an HTTP-date (RFC 9110, section 5.6.7). None for any other text."""
    try:
        return http.parse_date(text)
    except OverflowError:  # a day or a year of twenty digits
        return None
