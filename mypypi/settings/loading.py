"""Reads the settings from an environment and reports every problem at once.

Knows names, texts and which settings go together. Must never open what a setting names, or show a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import environ

from mypypi.settings.reference import variables
from mypypi.settings.settings import PREFIX, Settings
from mypypi.settings.types import NOT_SHOWN

# Where a value that is no secret by itself may hold one all the same: credentials or a token in an address, or
# a password that is read as a port since the host is missing.
_MAY_HIDE_A_SECRET = re.compile(r"[@?#]|//[^/]*:(?!\d*(/|$))")


class SettingsError(ValueError):
    """The environment does not make settings. `problems` has one line for each reason; none holds a secret."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n  ".join(["the settings in the environment can't be used:", *problems]))
        self.problems = tuple(problems)


def load_settings(source: Mapping[str, str], *, embedded: bool = False) -> Settings:
    """
    The settings from an environment, with the defaults of ``twistd mypypi`` where `embedded`.

    An empty text is as good as none. Raises SettingsError with every problem at once.
    """
    texts = {name: text for name, text in source.items() if text}
    del source
    problems = [*_wrong(texts), *_contradictions(texts), *_unknown(texts)]
    if problems:
        del texts  # whoever shows a traceback with its local variables must not find secrets in them
        raise SettingsError(problems)
    if {"MYPYPI_DATA_DIRECTORY", "MYPYPI_FILE_STORAGE_DIRECTORY"} <= texts.keys():
        directory = Path(texts["MYPYPI_DATA_DIRECTORY"], texts["MYPYPI_FILE_STORAGE_DIRECTORY"])
        texts["MYPYPI_FILE_STORAGE_DIRECTORY"] = str(directory)
    if embedded:
        texts = {v.name: v.embedded for v in variables() if v.embedded is not None} | texts
    loaded: Settings = environ.to_config(Settings, texts)
    return loaded


def _held(text: str) -> str:
    return NOT_SHOWN if _MAY_HIDE_A_SECRET.search(text) else repr(text)


def _wrong(texts: Mapping[str, str]) -> Iterator[str]:
    """Variables that hold what they can't."""
    for variable in variables():
        text = texts.get(variable.name)
        if text is not None and not variable.kind.takes(text):
            held = NOT_SHOWN if variable.kind.secret else _held(text)
            yield f"{variable.name} holds {held}; expected {variable.kind.expected}"


def _contradictions(texts: Mapping[str, str]) -> Iterator[str]:
    """Variables that do not go with one another."""
    if texts.get("MYPYPI_FILE_STORAGE_DRIVER") == "s3" and "MYPYPI_S3_BUCKET" not in texts:
        yield "MYPYPI_S3_BUCKET is not set; expected a bucket's name, since MYPYPI_FILE_STORAGE_DRIVER is 's3'"
    for pair in (
        ("MYPYPI_UPSTREAM_USERNAME", "MYPYPI_UPSTREAM_PASSWORD"),
        ("MYPYPI_S3_ACCESS_KEY", "MYPYPI_S3_SECRET_KEY"),
    ):
        for present, absent in (pair, pair[::-1]):
            if present in texts and absent not in texts:
                yield f"{absent} is not set; expected a value, since {present} is set, or neither"
    upstream = texts.get("MYPYPI_UPSTREAM_URL", "")
    if upstream.rstrip("/").endswith("/simple") and texts.get("MYPYPI_PACKAGE_TYPE", "pypi") == "pypi":
        yield f"MYPYPI_UPSTREAM_URL holds {_held(upstream)}; expected the same without the trailing /simple"


def _unknown(texts: Mapping[str, str]) -> Iterator[str]:
    """Names that look like ours and are not. What they hold may be a secret whose name was mistyped."""
    known = {variable.name.removeprefix(PREFIX): variable.name for variable in variables()}
    for name, text in texts.items():
        if name.startswith(PREFIX) and name not in known.values() and not _is_from_kubernetes(name, text):
            nearest = known[get_close_matches(name.removeprefix(PREFIX), known, n=1, cutoff=0)[0]]
            yield f"{name} holds {NOT_SHOWN}; expected no such name, the nearest known one is {nearest}"


def _is_from_kubernetes(name: str, text: str) -> bool:
    """Kubernetes sets such variables in every container when a Service is called mypypi or mypypi-something."""
    service = re.fullmatch(r"MYPYPI_(\w+_)?(SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_(TCP|UDP|SCTP)\w*)", name)
    return bool(service or (name.endswith("_PORT") and re.match("(tcp|udp|sctp)://", text)))
