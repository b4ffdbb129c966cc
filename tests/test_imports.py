"""Packages import each other only as one table allows. All modules are parsed, not run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mypypi

ROOT = Path(mypypi.__file__).parent

#: The packages that each package may import; "words" stands for the modules directly in ``mypypi/``. docs/design.rst
#: shows the same table as a picture. To follow a request, read it from the bottom up.
MAY_IMPORT: dict[str, set[str]] = {
    "words": set(),
    "settings": set(),
    "observability": set(),
    "ecosystems": {"words"},
    "storage": {"words", "settings"},
    "redis": {"words", "settings"},
    "upstream": {"words", "observability"},
    "rendering": {"words", "ecosystems"},
    "pages": {"words", "observability", "redis", "rendering", "upstream"},
    "files": {"words", "observability", "redis", "upstream"},
    "worker": {"words", "files", "storage"},
    "proxy": {"words", "files", "pages", "rendering", "upstream", "worker"},
    "web": {"words", "observability", "ecosystems", "files", "pages", "proxy", "upstream"},
    "daemon": {
        "words", "settings", "observability", "ecosystems", "storage", "redis", "upstream", "rendering", "pages",
        "files", "worker", "proxy", "web",
    },
    "cli": {"words", "settings", "redis", "daemon"},
}  # fmt: skip
#: The most packages that a chain of imports may have.
MAX_LEVELS = 8
#: Libraries that only one module or package may import, or a few: their names are separated by spaces.
USED_ONLY_IN = {
    "treq": "upstream.requester",
    "txredisapi": "redis",
    "environ": "settings",
    "klein": "web",
    "boto3": "storage.s3",
    "botocore": "storage",
    "prometheus_client": "observability.metrics",
    "lxml": "ecosystems.simple_html_reader",
    "isal": "rendering gunzip",
}
#: The most lines that a module may have. A longer one has two ideas in one file.
MAX_LINES = 310


def name_of(path: Path) -> str:
    """Return a module's dotted name below ``mypypi``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def package_of(module: str) -> str:
    """Return a module's package; "words" for the modules directly in ``mypypi/``."""
    package = module.partition(".")[0]
    return package if (ROOT / package).is_dir() and package else "words"


def imported_by(module: str) -> Iterator[str]:
    """Yield the dotted names that a module imports, also those for type checking."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(imported: str) -> str | None:
    """Return the module of this project that an imported name belongs to; None for a library."""
    if imported.partition(".")[0] != "mypypi":
        return None
    name = imported.removeprefix("mypypi").removeprefix(".")
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def own_imports(module: str) -> set[str]:
    """Return the modules of this project that a module imports."""
    return {name for name in map(own, imported_by(module)) if name is not None and name != module}


def libraries_of(module: str) -> set[str]:
    """Return the top-level names of a module's imports."""
    return {name.partition(".")[0] for name in imported_by(module)}


def is_within(module: str, place: str) -> bool:
    return module == place or module.startswith(f"{place}.")


def levels(package: str) -> int:
    """Return how many packages the longest chain of imports from this one has."""
    return 1 + max((levels(below) for below in MAY_IMPORT[package]), default=0)


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_table(module: str) -> None:
    """A module imports only from its own package and those in the table."""
    package = package_of(module)
    assert {package_of(name) for name in own_imports(module)} - {package} <= MAY_IMPORT[package]


def test_the_table_has_no_unused_entry() -> None:
    """The table has no import that the code lacks. So it shows the code as it is."""
    drawn = {(package, below) for package, all_below in MAY_IMPORT.items() for below in all_below}
    found = {(package_of(module), package_of(name)) for module in MODULES for name in own_imports(module)}
    assert {(package, below) for package, below in found if package != below} == drawn


def test_there_are_few_levels() -> None:
    """Chains of imports between packages are short. So the code is quick to read from the bottom up."""
    assert max(map(levels, MAY_IMPORT)) <= MAX_LEVELS


def test_no_modules_import_each_other_in_a_circle() -> None:
    """No modules import each other in a circle. So all modules can be read in order."""
    graph = {module: own_imports(module) for module in MODULES if not MODULES[module].name.startswith("__init__")}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(("library", "place"), USED_ONLY_IN.items())
def test_one_place_imports_a_library(library: str, place: str) -> None:
    """Only these modules or packages import this library. So a change of the library affects nothing else."""
    users = [module for module in MODULES if library in libraries_of(module)]
    assert users
    assert [user for user in users if not any(is_within(user, each) for each in place.split())] == []


def test_only_taps_import_the_reactor() -> None:
    """
    Only the daemon's ``*_tap`` modules import the reactor.

    Elsewhere it is an argument, so that a test can pass its own.
    """
    users = [module for module in MODULES if "twisted.internet.reactor" in set(imported_by(module))]
    assert all(is_within(user, "daemon") and user.endswith("_tap") for user in users), users


@pytest.mark.parametrize("module", [module for module in MODULES if is_within(module, "ecosystems")])
def test_ecosystems_are_pure(module: str) -> None:
    """Ecosystems do no I/O and know neither clock nor request. They turn upstream's bytes into values."""
    assert libraries_of(module).isdisjoint(
        {"twisted", "treq", "txredisapi", "klein", "boto3", "asyncio", "socket", "time", "os"}
    )


@pytest.mark.parametrize("module", [module for module in MODULES if package_of(module) in ("pages", "files")])
def test_pages_and_files_know_interfaces(module: str) -> None:
    """
    Pages and files know the catalog and the storage only by their interfaces.

    Of the package redis they may import the leases.
    """
    assert {name for name in own_imports(module) if package_of(name) == "redis"} <= {"redis.leases"}


@pytest.mark.parametrize("module", ["interfaces", "model", "errors"])
def test_model_knows_no_framework(module: str) -> None:
    """The domain's values, errors and interfaces depend on no framework."""
    assert libraries_of(module).isdisjoint({"twisted", "treq", "txredisapi", "klein", "boto3", "msgspec"})


@pytest.mark.parametrize("module", MODULES)
def test_module_has_a_docstring(module: str) -> None:
    """Every module begins with a docstring."""
    assert ast.get_docstring(ast.parse(MODULES[module].read_text())), module


def test_modules_are_short() -> None:
    """Every module is short, since it should have one idea."""
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert [module for module, length in lengths.items() if length > MAX_LINES] == []
