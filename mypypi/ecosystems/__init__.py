"""The kinds of package index that can be served, by the name that MYPYPI_PACKAGE_TYPE gives them.

Knows where each is implemented. Must never know anything about one of them that `IEcosystem` does not say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mypypi.ecosystems.npm import NPM
from mypypi.ecosystems.pypi import PyPI
from mypypi.interfaces import IEcosystem

#: From package type to a constructor that takes upstream's base URL.
ECOSYSTEMS: Final[dict[str, Callable[[str], IEcosystem]]] = {PyPI.name: PyPI, NPM.name: NPM}
