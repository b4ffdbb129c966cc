"""Which statuses of upstream are refusals, what clients are told instead, and upstream's own reason for one.

Knows statuses, and how registries write reasons. Must never know what was requested.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import msgspec
from attrs import frozen

from mypypi.errors import BadUpstreamResponse, MyPyPiError, NotFound, UpstreamDown, UpstreamRefused
from mypypi.gunzip import beginning
from mypypi.upstream.bodies import BodyCollector, abort_connection
from mypypi.upstream.responses import FileResponse

if TYPE_CHECKING:
    from twisted.web.iweb import IResponse

    from mypypi.upstream.pace import PaceLimits

#: Seconds until a refusal is passed on without its reason, if that comes slowly.
_REASON_SECONDS = 2.0
#: Bytes of a refusal's body that are read for its reason.
LARGEST_REASON = 64 * 1024
#: Characters of a reason that clients are told.
_LONGEST_REASON = 300
#: Members of a JSON body that give a reason, as registries write them, and how deep they are nested.
_MEMBERS, _DEEPEST = ("error", "message", "detail", "reason", "errors"), 4
_SPACE = re.compile(r"\s+")


@frozen
class Rule:
    """
    What a refusal means: the `status` for clients, and whether it `replaces` a page that was cached.

    A refusal that may be a mistake of our own credentials replaces nothing: the cached page is served.
    """

    status: int
    replaces: bool
    words: str


#: The table "Refusals" of docs/operations.rst.
RULES: dict[int, Rule] = {
    401: Rule(403, replaces=False, words="upstream wants other credentials than the configured ones"),
    402: Rule(402, replaces=True, words="upstream requires a payment for this"),
    403: Rule(403, replaces=True, words="upstream forbids access to this"),
    404: Rule(404, replaces=True, words="upstream does not have this"),
    407: Rule(502, replaces=False, words="a proxy in front of upstream wants credentials"),
    410: Rule(410, replaces=True, words="upstream does not have this any more"),
    451: Rule(451, replaces=True, words="upstream withholds this for legal reasons"),
}


async def read_refusal(
    clock: Any, pace: PaceLimits, response: IResponse, url: str, secrets: Collection[str]
) -> MyPyPiError:
    """Read a refusal's reason, where its body is short and comes in time, and return the error for it."""
    body = FileResponse(response.code, response.headers, url, response, lambda: None)
    collector = BodyCollector(clock, pace, LARGEST_REASON, encoded=bool(body.encoding))
    body.deliver(collector)
    deadline = clock.callLater(_REASON_SECONDS, abort_connection, collector)
    try:
        content = await collector.done
    except (UpstreamDown, BadUpstreamResponse):
        content = b""
    finally:
        if deadline.active():
            deadline.cancel()
    if body.encoding:
        content = (beginning(content, LARGEST_REASON) or b"") if body.encoding == "gzip" else b""
    phrase = response.phrase.decode("latin-1").strip()
    return refusal(response.code, phrase, body.header("content-type"), content, secrets)


def refusal(status: int, phrase: str, content_type: str, body: bytes, secrets: Collection[str]) -> MyPyPiError:
    """
    Return the error for a refusal. `status` must be one of `RULES`.

    `phrase` is the reason phrase, `body` what was read of the body, decoded. A text with one of `secrets` in it is not
    repeated.
    """
    rule = RULES[status]
    if rule.status == NotFound.status:
        return NotFound(rule.words)
    reason = reason_of(content_type, body, secrets) or _line(phrase, secrets)
    message = f"{rule.words} ({status}): {reason}" if reason else f"{rule.words} ({status})"
    return UpstreamRefused(message, rule.status, status)


def reason_of(content_type: str, body: bytes, secrets: Collection[str] = ()) -> str:
    """Return upstream's reason: a JSON member or a plain text, as one short line, and never HTML."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return ""
    content_type = content_type.lower()
    if "json" in content_type or text.lstrip().startswith("{"):
        text = _from_json(body)
    elif not content_type.startswith("text/plain"):
        return ""
    return _line(text, secrets)


def _line(text: str, secrets: Collection[str]) -> str:
    """Return a text as one short line; empty if it has markup, control characters or a secret."""
    line = _SPACE.sub(" ", text).strip()
    if "<" in line or not line.isprintable():
        return ""
    if any(secret in text or secret in line for secret in secrets if secret):
        return ""
    return line if len(line) <= _LONGEST_REASON else f"{line[: _LONGEST_REASON - 1]}…"


def _from_json(body: bytes) -> str:
    try:
        return _text_in(msgspec.json.decode(body))
    except (msgspec.MsgspecError, RecursionError):
        return ""


def _text_in(document: object, depth: int = 0) -> str:
    """Return the first text of a reason; some registries put it into an object or a list of errors."""
    if isinstance(document, list):
        document = document[0] if document else ""
    if isinstance(document, str):
        return document
    if not isinstance(document, dict) or depth >= _DEEPEST:
        return ""
    return next(filter(None, (_text_in(document.get(name), depth + 1) for name in _MEMBERS)), "")
