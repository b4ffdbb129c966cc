"""The ecosystems, by their value of MYPYPI_PACKAGE_TYPE.

Knows where each is implemented. Must never know more about an ecosystem than `IEcosystem` declares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mypypi.ecosystems.npm import NPM
from mypypi.ecosystems.pypi import PyPI
from mypypi.interfaces import IEcosystem

#: Maps a package type to a constructor. Its arguments are upstream's base URL, and by name `strict`: whether links that
#: can't be served from here are left out.
ECOSYSTEMS: Final[dict[str, Callable[..., IEcosystem]]] = {PyPI.name: PyPI, NPM.name: NPM}
