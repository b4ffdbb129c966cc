"""The settings: every environment variable's name, help, default and check, and the one place that reads them.

Knows texts and the values they stand for. Must never open what it names: no connection, no file, no reactor.

A setting is one field of `Settings`. What checks it, what fills it, what ``--help`` prints and what the README's
table says all come from that field.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import environ
from attrs import Factory
from packageurl.contrib import purl2url

from mypypi.settings.types import (
    BOOLEAN,
    CREDENTIAL,
    DIRECTORY,
    REDIS_URL,
    SECONDS,
    URL,
    RedisUrl,
    Secret,
    SettingType,
    choice,
    endpoint,
    matching,
    networks,
    number,
    url,
)

if TYPE_CHECKING:
    pass

PREFIX = "MYPYPI_"


def default_upstream(package_type: str) -> str:
    """The address of the public index or registry: that of the page where purl2url places an arbitrary package."""
    address = {
        "pypi": purl2url.get_repo_url("pkg:pypi/x"),
        "npm": purl2url.get_download_url("pkg:npm/x@1"),
    }[package_type]
    return f"https://{urlsplit(address).netloc}"


def _setting(
    default: Any,
    kind: SettingType,
    about: str,
    *,
    name: str | None = None,
    embedded: str | None = None,
    shown: str = "",
) -> Any:
    """
    `environ.var` with what tables and ``twistd mypypi`` need besides.

    `default` is the variable's text (or what computes the value), `embedded` the one which `twistd mypypi` has in its
    place, and `shown` says in reStructuredText what the default is where it is no text.
    """
    made = environ.var(default=default, converter=kind, name=name, help=about)
    made.metadata.update(embedded=embedded, shown=shown)
    return made


# None: environ-config's own methods would stop at the first problem, and their errors might show a secret.
@environ.config(prefix="MYPYPI", from_environ=None, generate_help=None, frozen=True)  # type: ignore[call-overload]
class Settings:
    """What the environment says, checked and converted. Times are in whole seconds, paths are absolute."""

    package_type: Literal["pypi", "npm"] = _setting(
        "pypi", choice("pypi", "npm"), "``pypi`` or ``npm``: what this deployment serves."
    )
    upstream_url: str = _setting(
        Factory(lambda settings: default_upstream(settings.package_type), takes_self=True),
        SettingType(url, f"{URL} (those go in {PREFIX}UPSTREAM_USERNAME and {PREFIX}UPSTREAM_PASSWORD)"),
        "The index or registry behind it, without the trailing ``/simple``.",
        shown="the public PyPI in pypi mode, the public npm registry in npm mode",
    )
    upstream_username: str | None = _setting(
        None,
        matching(r"[^:\x00-\x1f\x7f]+", "a user's name, without a colon or control character (RFC 7617, section 2)"),
        "User for HTTP basic auth towards upstream; sent to the upstream host, and to a file host only where it is "
        "the same host.",
    )
    upstream_password: Secret | None = _setting(None, CREDENTIAL, "Password for HTTP basic auth towards upstream.")
    upstream_strict: bool = _setting(
        "false", BOOLEAN, "Clients wait for a whole, checked file: never a redirect, never an unchecked byte."
    )
    cache_time: int = _setting(
        "300",
        number("a whole number of seconds", 0),
        "Seconds for which a page from upstream counts as fresh: the bound on how late a new version appears.",
    )
    data_directory: Path = _setting(
        "data", DIRECTORY, "Where the daemon keeps what it must keep on disk (drafts, the embedded Redis)."
    )
    file_storage_driver: Literal["local", "s3"] = _setting(
        "local", choice("local", "s3"), "``local`` or ``s3``: where package files are kept."
    )
    file_storage_directory: Path = _setting(
        Factory(lambda settings: settings.data_directory / "files", takes_self=True),
        DIRECTORY,
        "With ``local``: where package files lie; a relative path is taken from ``MYPYPI_DATA_DIRECTORY`` when that "
        "is set, else from the working directory.",
        shown="``data/files``",
    )
    s3_bucket: str | None = _setting(
        None,
        matching("[A-Za-z0-9._-]{1,255}|arn:[!-~]+", "a bucket's name alone (or the ARN of an access point)"),
        "With ``s3``: the bucket, which is required.",
    )
    s3_prefix: str = _setting(
        None,
        SettingType(lambda text: text.strip("/"), "text", unset=""),
        "With ``s3``: what every key in the bucket begins with.",
    )
    s3_access_key: Secret | None = _setting(
        None,
        CREDENTIAL,
        "Access key for S3; where it and the secret key are absent, boto3's own chain (instance role, profile).",
    )
    s3_secret_key: Secret | None = _setting(None, CREDENTIAL, "Secret key for S3.")
    s3_endpoint_url: str | None = _setting(
        None, SettingType(url, URL), "For other providers than AWS: the endpoint with its ``https://``."
    )
    s3_region: str | None = _setting(
        None, matching("[A-Za-z0-9-]+", "a region's name, as in eu-central-1"), "The bucket's region."
    )
    s3_public: bool = _setting(
        "false",
        BOOLEAN,
        "The bucket is public: links without a query string, permanent redirects, so that clients cache them.",
    )
    s3_key_ttl: int = _setting(
        "600",
        number("a whole number of seconds", 61, 604_800),  # seven days: the most that a SigV4 link may hold
        "Seconds for which a pre-signed link holds; must be greater than 60; no effect when public.",
    )
    s3_serve: Literal["redirect", "proxy"] = _setting(
        "redirect",
        choice("redirect", "proxy"),
        "How clients get a file from the bucket: ``redirect`` sends them there, ``proxy`` streams it through the "
        "server, for clients that can't reach the bucket.",
    )
    drafts_max_bytes: int = _setting(
        "20000000000",
        number("a whole number of bytes", 1_000_000, 999_999_999_999_999),
        "What drafts, and files that wait for their upload, may take on the disk; beyond it, clients are sent to "
        "upstream for files that are not cached yet.",
    )
    redis_url: RedisUrl | None = _setting(
        "redis://localhost:6379",
        SettingType(RedisUrl.parse, REDIS_URL, secret=True),
        "``redis://`` or ``rediss://`` (TLS), with user, password and database, or ``unix://`` and a path; "
        "``mypypi`` starts a private Redis of its own where this is not set.",
        embedded="",
    )
    redis_prefix: str = _setting(
        "mypypi", matching("[A-Za-z0-9._:{}/-]+", "letters, digits and any of . _ : { } / -"), "Prefix of every key."
    )
    workers: int = _setting(
        "8", number("a whole number", 1, 1024), "Server processes to spawn.", name="WORKERS", embedded="1"
    )
    worker_concurrency: int = _setting("4", number("a whole number", 1, 256), "Jobs that a worker does at once.")
    mode: Literal["server", "worker"] = _setting(
        "server",
        choice("server", "worker"),
        "In the container image: ``server`` or ``worker``, the daemon to run.",
    )
    listen: str = _setting(
        "tcp:80",
        SettingType(endpoint, "a Twisted server endpoint description, as in tcp:80 or unix:/run/mypypi.sock"),
        "A Twisted server endpoint description (``tcp:80``, ``unix:…``, ``systemd:…``, ``ssl:…``); also ``--listen``.",
        embedded="tcp:8080:interface=127.0.0.1",
    )
    public_url: str | None = _setting(
        None,
        SettingType(url, URL),
        "The address clients use, where it differs from the request's own (TLS termination, path prefix).",
        shown="taken from the request",
    )
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = _setting(
        None,
        SettingType(networks, "addresses or networks, separated by commas, as in 127.0.0.1, 10.0.0.0/8", unset=()),
        "Proxies in front of this server, by address or network: ``Forwarded`` and ``X-Forwarded-Proto``, ``-Host`` "
        "and ``-Prefix`` are believed from these alone.",
        shown="none",
    )
    cold_files: Literal["stream", "redirect"] = _setting(
        "stream",
        choice("stream", "redirect"),
        "``stream`` or ``redirect``: a file that is not cached yet is handed on while it arrives, or the client is "
        "sent to upstream for it while a worker fetches it.",
    )
    strict_wait: int = _setting(
        "10",
        number("a whole number of seconds", 1, 14),  # pip and poetry give up reading after 15 s
        "Strict: seconds for which a request waits for its file before it gets a 503; below the 15 s in which pip and "
        "poetry give up reading.",
    )
    negative_cache_time: int = _setting(
        "60", number("a whole number of seconds", 0), 'Seconds for which "upstream says 404" is believed.'
    )
    upstream_concurrency: int = _setting(
        "64", number("a whole number"), "Requests to upstream in flight at once, per process."
    )
    upstream_timeout: int = _setting(
        "15",
        SECONDS,
        "Seconds for connecting and for the response head; the body has an idle limit of the same length.",
    )
    log_format: Literal["text", "json"] = _setting(
        "text", choice("text", "json"), "``text`` or ``json``: how log lines are written, one of them for each request."
    )
    log_level: Literal["debug", "info", "warn", "error"] = _setting(
        "info",
        choice("debug", "info", "warn", "error"),
        "The lowest level of log lines that are written; ``debug`` adds what Redis and Twisted say.",
    )
    connections_per_address: int = _setting(
        "0",
        number("a whole number", 0),
        "Connections that one address may have at once, per process; more of them are closed; ``0`` is any number, "
        "which it must be behind a proxy, whose address all clients have.",
    )

    drain_time: int = _setting(
        "30",
        number("a whole number of seconds", 0, 86_400),
        "Seconds that a stopping server gives the requests under way; what is not done then is broken off.",
    )
    stale_after: int = _setting(
        "3",
        number("a whole number of seconds", 1, 14),  # pip and poetry give up reading after 15 s
        "Seconds after which a page that is here is answered as it was, while upstream is still being asked.",
    )
    hot_pages_bytes: int = _setting(
        "134217728",
        number("a whole number of bytes", 1_000_000, 999_999_999_999),
        "Memory for pages, per server process; a quarter of it is for pages with the clients' address in their links.",
    )
