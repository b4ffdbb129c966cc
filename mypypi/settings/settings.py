"""The settings, each a field of `Settings` with its help, default and check.

The same field parses the environment variable, and fills ``--settings`` and the README's table. Knows texts and the
values they stand for. Must never open what a setting names: no connection, no file, no reactor.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Literal
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
    TrustedHost,
    choice,
    endpoint,
    matching,
    networks,
    number,
    trusted_hosts,
    url,
)

PREFIX = "MYPYPI_"


def default_upstream(package_type: str) -> str:
    """
    Return the address of PyPI or the npm registry.

    It is that of the page where purl2url places an arbitrary package, so that no host name is written down here.
    """
    address = {
        "pypi": purl2url.get_repo_url("pkg:pypi/x"),
        "npm": purl2url.get_download_url("pkg:npm/x@1"),
    }[package_type]
    return f"https://{urlsplit(address).netloc}"


def default_render_processes() -> int:
    """One process per core, but at least two, so that small pages do not wait for large ones, and at most four."""
    return max(2, min(4, os.cpu_count() or 1))


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
    Declare a setting, with metadata for the tables and for ``twistd mypypi``.

    `default` is the variable's default text, or a factory of its value. `embedded` replaces it for ``twistd mypypi``.
    `shown` describes, in reStructuredText, a default that is not a text.
    """
    made = environ.var(default=default, converter=kind, name=name, help=about)
    made.metadata.update(embedded=embedded, shown=shown)
    return made


# None disables environ-config's own methods: they stop at the first problem, and their errors may show a secret.
@environ.config(prefix="MYPYPI", from_environ=None, generate_help=None, frozen=True)  # type: ignore[call-overload]
class Settings:
    """The settings, checked and converted. Times are in whole seconds, paths are absolute."""

    package_type: Literal["pypi", "npm"] = _setting(
        "pypi", choice("pypi", "npm"), "The kind of packages to serve: ``pypi`` or ``npm``."
    )
    upstream_url: str = _setting(
        Factory(lambda settings: default_upstream(settings.package_type), takes_self=True),
        SettingType(url, f"{URL} (those go in {PREFIX}UPSTREAM_USERNAME and {PREFIX}UPSTREAM_PASSWORD)"),
        "URL of the upstream index or registry, without a trailing ``/simple``.",
        shown="PyPI in pypi mode, the npm registry in npm mode",
    )
    upstream_username: str | None = _setting(
        None,
        matching(
            r"[^:\x00-\x1f\x7f]+",
            "a user's name, without a colon or control character (RFC 7617, section 2)",
            secret=True,
        ),
        "User name for HTTP basic authentication at upstream, which is sent to the upstream host only and not to a "
        "separate host for files.",
    )
    upstream_password: Secret | None = _setting(None, CREDENTIAL, "Password for HTTP basic authentication at upstream.")
    upstream_trust: tuple[TrustedHost, ...] = _setting(
        None,
        SettingType(
            trusted_hosts,
            "hosts, host:port, addresses or networks, separated by commas, as in files.example:8080, 10.0.0.0/8",
            unset=(),
        ),
        "Hosts and networks that upstream's pages and redirects may lead to although their addresses are not public; "
        "those of the same class as upstream's own (loopback, private) need not be named.",
        shown="none",
    )
    upstream_strict: bool = _setting(
        "false",
        BOOLEAN,
        "Strict mode: clients wait for the complete, verified file, and get no redirect to upstream and no unverified "
        "byte.",
    )
    cache_time: int = _setting(
        "300",
        number("a whole number of seconds", 0),
        "Seconds for which a page from upstream is fresh, so that a new version appears at most this late.",
    )
    data_directory: Path = _setting(
        "data", DIRECTORY, "Directory for the daemon's own data, such as drafts and the embedded Redis."
    )
    file_storage_driver: Literal["local", "s3"] = _setting(
        "local", choice("local", "s3"), "Where package files are stored: ``local`` or ``s3``."
    )
    file_storage_directory: Path = _setting(
        Factory(lambda settings: settings.data_directory / "files", takes_self=True),
        DIRECTORY,
        "With ``local``: directory of the package files; a relative path starts at ``MYPYPI_DATA_DIRECTORY`` if that "
        "is set, else at the working directory.",
        shown="``data/files``",
    )
    s3_bucket: str | None = _setting(
        None,
        matching("[A-Za-z0-9._-]{1,255}|arn:[!-~]+", "a bucket's name alone (or the ARN of an access point)"),
        "With ``s3``: name of the bucket (required).",
    )
    s3_prefix: str = _setting(
        None,
        SettingType(lambda text: text.strip("/"), "text", unset=""),
        "With ``s3``: prefix of every key in the bucket.",
    )
    s3_access_key: Secret | None = _setting(
        None,
        CREDENTIAL,
        "Access key for S3; without access key and secret key, boto3 looks for credentials (instance role, profile).",
    )
    s3_secret_key: Secret | None = _setting(None, CREDENTIAL, "Secret key for S3.")
    s3_endpoint_url: str | None = _setting(
        None, SettingType(url, URL), "URL of the S3 endpoint, for providers other than AWS."
    )
    s3_region: str | None = _setting(
        None, matching("[A-Za-z0-9-]+", "a region's name, as in eu-central-1"), "Region of the bucket."
    )
    s3_public: bool = _setting(
        "false",
        BOOLEAN,
        "The bucket is public: clients get permanent redirects to URLs without a query, which they can cache.",
    )
    s3_key_ttl: int = _setting(
        "600",
        number("a whole number of seconds", 61, 604_800),  # seven days, the limit of SigV4
        "Seconds for which a pre-signed S3 URL is valid, more than 60; unused with ``MYPYPI_S3_PUBLIC``.",
    )
    s3_serve: Literal["redirect", "proxy"] = _setting(
        "redirect",
        choice("redirect", "proxy"),
        "How clients get a file from the bucket: ``redirect`` sends them to S3, ``proxy`` streams it through the "
        "server, for clients that can't reach S3.",
    )
    drafts_max_bytes: int = _setting(
        "20000000000",
        number("a whole number of bytes", 1_000_000, 999_999_999_999_999),
        "Bytes of disk space for drafts and for files that wait for their upload; beyond it, clients are redirected to "
        "upstream for files that are not cached yet.",
    )
    redis_url: RedisUrl | None = _setting(
        "redis://localhost:6379",
        SettingType(RedisUrl.parse, REDIS_URL, secret=True),
        "URL of Redis: ``redis://`` or ``rediss://`` (TLS), with user, password and database, or ``unix://`` and a "
        "path; ``mypypi`` starts its own private Redis if this is not set.",
        embedded="",
    )
    redis_prefix: str = _setting(
        "mypypi",
        matching("[A-Za-z0-9._:{}/-]+", "letters, digits and any of . _ : { } / -"),
        "Prefix of every key in Redis.",
    )
    workers: int = _setting(
        "8", number("a whole number", 1, 1024), "Server processes to spawn.", name="WORKERS", embedded="1"
    )
    worker_concurrency: int = _setting("4", number("a whole number", 1, 256), "Jobs that a worker runs at once.")
    mode: Literal["server", "worker"] = _setting(
        "server",
        choice("server", "worker"),
        "Daemon to run in the container image: ``server`` or ``worker``.",
    )
    listen: str = _setting(
        "tcp:80",
        SettingType(endpoint, "a Twisted server endpoint description, as in tcp:80 or unix:/run/mypypi.sock"),
        "Twisted server endpoint to listen on (``tcp:80``, ``unix:…``, ``systemd:…``, ``ssl:…``); also ``--listen``.",
        embedded="tcp:8080:interface=127.0.0.1",
    )
    public_url: str | None = _setting(
        None,
        SettingType(url, URL),
        "Address that clients use, if it differs from that in their requests (TLS termination, or a path prefix, which "
        "the proxy may strip or not).",
        shown="taken from the request",
    )
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = _setting(
        None,
        SettingType(networks, "addresses or networks, separated by commas, as in 127.0.0.1, 10.0.0.0/8", unset=()),
        "Addresses or networks of the proxies in front of this server; only they may tell the address of this server "
        "and of a client, with the headers that ``MYPYPI_TRUSTED_HEADERS`` names.",
        shown="none",
    )
    trusted_headers: Literal["x-forwarded", "forwarded"] = _setting(
        "x-forwarded",
        choice("x-forwarded", "forwarded"),
        "Headers of trusted proxies that are believed: ``x-forwarded`` (``X-Forwarded-For``, ``-Proto``, ``-Host`` and "
        "``-Prefix``, which the proxy must set or remove) or ``forwarded`` (RFC 7239); the others are ignored.",
    )
    cold_files: Literal["stream", "redirect"] = _setting(
        "stream",
        choice("stream", "redirect"),
        "How clients get a file that is not cached yet: ``stream`` sends it while it arrives, ``redirect`` sends them "
        "to upstream while a worker fetches it.",
    )
    core_metadata: bool = _setting(
        "true", BOOLEAN, "Offer the metadata of wheels (PEP 658) where upstream's pages do not: it is read out of them."
    )
    strict_wait: int = _setting(
        "10",
        number("a whole number of seconds", 1, 14),  # pip and poetry time out after 15 s without a byte
        "Seconds for which a request in strict mode waits for its file before it gets a 503; below the 15 s after "
        "which pip and poetry time out.",
    )
    negative_cache_time: int = _setting(
        "60",
        number("a whole number of seconds", 0),
        "Seconds for which a 404 or another refusal of upstream is cached.",
    )
    upstream_concurrency: int = _setting(
        "64",
        number("a whole number"),
        "Concurrent requests to one origin, per process, of which pages or files take at most half, and one client "
        "less; all origins but upstream's own take twice as many together.",
    )
    upstream_timeout: int = _setting(
        "15",
        SECONDS,
        "Seconds for which clients wait for upstream's answer, which may take up to 60 and is kept; also the limit to "
        "connect, and to silence in a body.",
    )
    upstream_min_rate: int = _setting(
        "1000",
        number("a whole number of bytes", 0),
        "Bytes per second below which the body of an answer of upstream or the bucket is ended, measured over 30 "
        "seconds; ``0`` is no limit.",
    )
    render_processes: int = _setting(
        Factory(default_render_processes),
        number("a whole number", 1, 64),
        "Processes that parse and render pages, per server process; large pages leave one of them to small ones.",
        shown="one per core, from ``2`` to ``4``",
    )
    log_format: Literal["text", "json"] = _setting(
        "text", choice("text", "json"), "Format of the log, which has a line for every request: ``text`` or ``json``."
    )
    log_level: Literal["debug", "info", "warn", "error"] = _setting(
        "info",
        choice("debug", "info", "warn", "error"),
        "Lowest level of log lines to write; ``debug`` adds the messages of Redis and Twisted.",
    )
    max_connections: int = _setting(
        "0",
        number("a whole number", 0),
        "Connections of clients per server process, of which one address may have 3/4; beyond them an idle one is "
        "closed, or a new one gets a 503; ``0`` is as many as the file descriptors allow, and at most 8192.",
    )
    connections_per_address: int = _setting(
        "0",
        number("a whole number", 0),
        "Connections per client address and process, beyond which new ones are closed; ``0`` is no limit but 3/4 of "
        "``MYPYPI_MAX_CONNECTIONS``, and trusted proxies have neither.",
    )
    drain_time: int = _setting(
        "30",
        number("a whole number of seconds", 0, 86_400),
        "Seconds for which a stopping server lets running requests finish before it aborts them.",
    )
    stale_after: int = _setting(
        "3",
        number("a whole number of seconds", 1, 14),  # pip and poetry time out after 15 s without a byte
        "Seconds after which clients get the stale page while upstream has not answered yet.",
    )
    hot_pages_bytes: int = _setting(
        "134217728",
        number("a whole number of bytes", 1_000_000, 999_999_999_999),
        "Bytes of memory for pages, per server process; a quarter is for copies with the server's address in them.",
    )
