"""Reads the settings from an environment, and reports all problems at once.

Knows names, texts, and which settings depend on each other. Must never open what a setting names, or show a secret.
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

# Matches values of ordinary settings that may contain a secret: an address with credentials or a token, or with a
# password in the place of the port because the host is missing.
_MAY_HIDE_A_SECRET = re.compile(r"[@?#]|//[^/]*:(?!\d*(/|$))")


class SettingsError(ValueError):
    """The environment has invalid settings. `problems` has a line for each, without secrets."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n  ".join(["the settings in the environment can't be used:", *problems]))
        self.problems = tuple(problems)


def load_settings(source: Mapping[str, str], *, embedded: bool = False) -> Settings:
    """
    Read and check the settings from an environment.

    An empty text counts as unset. With `embedded`, the defaults are those of ``twistd mypypi``.

    Raises SettingsError with all problems.
    """
    texts = {name: text for name, text in source.items() if text}
    del source
    problems = [*_invalid_values(texts), *_contradictions(texts), *_unknown_names(texts)]
    if problems:
        del texts  # it holds secrets, and error reporters show the local variables of a traceback
        raise SettingsError(problems)
    if {"MYPYPI_DATA_DIRECTORY", "MYPYPI_FILE_STORAGE_DIRECTORY"} <= texts.keys():
        directory = Path(texts["MYPYPI_DATA_DIRECTORY"], texts["MYPYPI_FILE_STORAGE_DIRECTORY"])
        texts["MYPYPI_FILE_STORAGE_DIRECTORY"] = str(directory)
    if embedded:
        texts = {v.name: v.embedded for v in variables() if v.embedded is not None} | texts
    loaded: Settings = environ.to_config(Settings, texts)
    return loaded


def _shown(text: str) -> str:
    return NOT_SHOWN if _MAY_HIDE_A_SECRET.search(text) else repr(text)


def _invalid_values(texts: Mapping[str, str]) -> Iterator[str]:
    """Report variables with invalid values."""
    for variable in variables():
        text = texts.get(variable.name)
        if text is not None and not variable.kind.takes(text):
            shown = NOT_SHOWN if variable.kind.secret else _shown(text)
            yield f"{variable.name} holds {shown}; expected {variable.kind.expected}"


def _contradictions(texts: Mapping[str, str]) -> Iterator[str]:
    """Report variables that contradict each other."""
    if texts.get("MYPYPI_FILE_STORAGE_DRIVER") == "s3" and "MYPYPI_S3_BUCKET" not in texts:
        yield "MYPYPI_S3_BUCKET is not set; expected a bucket's name, since MYPYPI_FILE_STORAGE_DRIVER is 's3'"
    for pair in (
        ("MYPYPI_UPSTREAM_USERNAME", "MYPYPI_UPSTREAM_PASSWORD"),
        ("MYPYPI_S3_ACCESS_KEY", "MYPYPI_S3_SECRET_KEY"),
    ):
        for present, absent in (pair, pair[::-1]):
            if present in texts and absent not in texts:
                yield f"{absent} is not set; expected both or neither, and {present} is set"
    upstream = texts.get("MYPYPI_UPSTREAM_URL", "")
    if upstream.rstrip("/").endswith("/simple") and texts.get("MYPYPI_PACKAGE_TYPE", "pypi") == "pypi":
        yield f"MYPYPI_UPSTREAM_URL holds {_shown(upstream)}; expected the same without the trailing /simple"


def _unknown_names(texts: Mapping[str, str]) -> Iterator[str]:
    """Report unknown names with our prefix, without values: a mistyped name may hold a secret."""
    known = {variable.name.removeprefix(PREFIX): variable.name for variable in variables()}
    for name, text in texts.items():
        if name.startswith(PREFIX) and name not in known.values() and not _is_from_kubernetes(name, text):
            nearest = known[get_close_matches(name.removeprefix(PREFIX), known, n=1, cutoff=0)[0]]
            yield f"{name} is not a setting; the nearest name is {nearest}"


def _is_from_kubernetes(name: str, text: str) -> bool:
    """
    Whether Kubernetes sets this variable by itself.

    It sets such variables in every container if a Service is called mypypi or mypypi-something.
    """
    service = re.fullmatch(r"MYPYPI_(\w+_)?(SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_(TCP|UDP|SCTP)\w*)", name)
    return bool(service or (name.endswith("_PORT") and re.match("(tcp|udp|sctp)://", text)))
