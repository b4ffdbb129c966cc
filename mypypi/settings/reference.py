"""Describes the settings for people: ``--help`` and the README's table, made from the fields of `Settings`.

Knows fields and texts. Must never read the environment.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, cast

import environ
from attrs import fields, frozen

from mypypi.settings.settings import Settings
from mypypi.settings.types import SettingType

if TYPE_CHECKING:
    from attrs import AttrsInstance


@frozen
class Variable:
    """An environment variable, as its field declares it. `help` and `default` are reStructuredText."""

    name: str
    help: str
    default: str
    embedded: str | None
    kind: SettingType


def variables() -> list[Variable]:
    """Every variable there is, in the order of the fields."""
    # A formatter may return anything; this one leaves environ-config's own rows as they are.
    rows = cast("list[dict[str, Any]]", environ.generate_help(Settings, formatter=list))
    return [
        Variable(
            row["var_name"],
            row["help_str"],
            _default_words(row["default"], field.metadata["shown"], field.metadata["embedded"]),
            field.metadata["embedded"],
            cast("SettingType", field.converter),
        )
        for row, field in zip(rows, fields(cast("type[AttrsInstance]", Settings)), strict=True)
    ]


def _default_words(default: object, shown: str, embedded: str | None) -> str:
    words = [f"``{default}``" if isinstance(default, str) else shown]
    if embedded is not None:
        words.append(f"``mypypi``: ``{embedded}``" if embedded else "``mypypi``: none")
    return "; ".join(words)


def describe() -> str:
    """The settings as plain text for ``--help``."""
    lines: list[str] = []
    for variable in variables():
        default = f" Default: {variable.default}." if variable.default else ""
        wrapped = textwrap.wrap(f"{variable.help}{default}".replace("``", ""), 75)
        lines += [variable.name, *(f"    {words}" for words in wrapped)]
    return "\n".join(lines)


def as_rst_table() -> str:
    """The settings as the README's ``list-table``."""
    rows = [
        ("Name", "What it sets", "Default"),
        *((f"``{variable.name}``", variable.help, variable.default) for variable in variables()),
    ]
    cells = "\n".join(f"   * - {name}\n     - {words}\n     - {default}".rstrip() for name, words, default in rows)
    return f".. list-table::\n   :header-rows: 1\n   :widths: auto\n\n{cells}\n"
