"""Renders PyPI's own JSON about a project, or about one version of it.

Knows where it has lists of files. Must never know the Simple Repository API.
"""

from __future__ import annotations

from itertools import chain

import msgspec

from mypypi.ecosystems.simple_html import Document
from mypypi.ecosystems.simple_links import (
    TO_FILES_HERE,
    absolute_url,
    is_valid_file,
    is_web_url,
    link_and_path,
    named_by_path,
    without_credentials,
)
from mypypi.ecosystems.simple_page import check_name, content_type, decode_json
from mypypi.model import PageId, PageRules, RenderedForm, RenderedPage, SourceDocument


def render_json(page: PageId, source: SourceDocument, _rules: PageRules) -> RenderedPage:
    """Let the links of all files lead to this server. Raises errors of many kinds for another document."""
    document = decode_json(source, content_type(source)[1])
    if not isinstance(document.get("info"), dict):
        raise TypeError("it has no object 'info'")
    check_name(document["info"].get("name"), page.project)
    base = without_credentials(source.url)
    releases = document.get("releases")
    lists = [document.get("urls"), *(releases.values() if isinstance(releases, dict) else ())]
    lists = [files for files in lists if isinstance(files, list)]
    for files in lists:
        files[:] = [file for file in files if not is_valid_file(file) or _is_web_file(file, base)]
    listed = list(chain.from_iterable(lists))
    named = named_by_path(listed, base)
    for file in listed:
        if is_valid_file(file) and (url := absolute_url(base, file["url"])) is not None:
            served = link_and_path(url, named)
            file["url"] = f"{TO_FILES_HERE}{served[1]}" if served else url
    return RenderedPage({"json": RenderedForm("application/json", msgspec.json.encode(document), based=True)})


def _is_web_file(file: Document, base: str) -> bool:
    url = absolute_url(base, file["url"])
    return url is None or is_web_url(url)
