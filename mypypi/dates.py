"""Reads dates as HTTP has them, whoever wrote them.

Knows the date's forms. Must never know which header it stands in.
"""

from __future__ import annotations

from datetime import datetime

from werkzeug import http


def parse_date(text: str | None) -> datetime | None:
    """The moment that an HTTP-date names (RFC 9110, section 5.6.7), with its zone; None for anything else."""
    try:
        return http.parse_date(text)
    except OverflowError:  # a day or a year of twenty digits
        return None
