"""Decides where the file that a page lists is requested first.

Knows URLs. Must never know what is requested, or what an answer means.
"""

from __future__ import annotations

from urllib.parse import urlsplit


def first_url(url: str, upstream: str, public_host: str) -> str:
    """
    Return where the file that a page of this `upstream` lists at `url` is requested first.

    A mirror's page may name the public registry's host. Then the same path is requested at the mirror, as npm does (its
    setting ``replace-registry-host``). `public_host` is empty where clients replace none.
    """
    try:
        parts = urlsplit(url)
        is_public = bool(public_host) and (parts.hostname, parts.port) == (public_host, None)
        if not is_public or urlsplit(upstream).hostname == public_host:
            return url
    except ValueError:  # sending the request fails, with the reason
        return url
    return upstream + parts.path + (f"?{parts.query}" if parts.query else "")
