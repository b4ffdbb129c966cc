"""The ecosystems, by their value of MYPYPI_PACKAGE_TYPE.

Knows where each is implemented. Must never know more about an ecosystem than `IEcosystem` declares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mypypi.ecosystems.npm import NPM
from mypypi.ecosystems.pypi import PyPI
from mypypi.interfaces import IEcosystem

#: Maps a package type to a constructor whose argument is upstream's base URL.
ECOSYSTEMS: Final[dict[str, Callable[[str], IEcosystem]]] = {PyPI.name: PyPI, NPM.name: NPM}
