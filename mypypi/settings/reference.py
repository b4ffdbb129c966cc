"""Describes the settings, for ``--settings`` and for the README's table.

Made from the fields of `Settings`. Knows fields and texts. Must never read the environment.
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
    """An environment variable, as its field declares it.

    `help` and `default` are reStructuredText. `embedded` is the default of ``twistd mypypi``, if it has its own.
    """

    name: str
    help: str
    default: str
    embedded: str | None
    kind: SettingType


def variables() -> list[Variable]:
    """Return all variables, in the order of the fields."""
    # generate_help returns what its formatter returns: here, environ-config's own list of rows.
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
    """Describe the settings as plain text, for ``--settings``."""
    lines: list[str] = []
    for variable in variables():
        default = f" Default: {variable.default}." if variable.default else ""
        wrapped = textwrap.wrap(f"{variable.help}{default}".replace("``", ""), 75)
        lines += [variable.name, *(f"    {words}" for words in wrapped)]
    return "\n".join(lines)


def as_rst_table() -> str:
    """Describe the settings as a ``list-table``, for the README."""
    rows = [
        ("Name", "What it sets", "Default"),
        *((f"``{variable.name}``", variable.help, variable.default) for variable in variables()),
    ]
    cells = "\n".join(f"   * - {name}\n     - {words}\n     - {default}".rstrip() for name, words, default in rows)
    return f".. list-table::\n   :header-rows: 1\n   :widths: auto\n\n{cells}\n"
