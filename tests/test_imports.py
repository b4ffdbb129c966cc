"""The packages and their arrows: which package may import which, checked over the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mypypi

ROOT = Path(mypypi.__file__).parent

#: What each package may import, besides the modules of ``mypypi/`` itself (called "words" here). docs/design.rst shows
#: the same table as a picture. Read it from the bottom up to follow a request.
MAY_IMPORT: dict[str, set[str]] = {
    "words": set(),
    "settings": set(),
    "observability": set(),
    "ecosystems": {"words"},
    "storage": {"words", "settings"},
    "redis": {"words", "settings"},
    "upstream": {"words", "observability"},
    "pages": {"words", "observability", "ecosystems", "redis", "upstream"},
    "files": {"words", "observability", "redis", "upstream"},
    "worker": {"words", "files", "storage"},
    "proxy": {"words", "files", "pages", "upstream", "worker"},
    "web": {"words", "observability", "ecosystems", "files", "pages", "proxy", "upstream"},
    "daemon": {
        "words", "settings", "observability", "ecosystems", "storage", "redis", "upstream", "pages", "files", "worker",
        "proxy", "web",
    },
    "cli": {"words", "settings", "redis", "daemon"},
}  # fmt: skip
#: The longest way from a package down to one that imports nothing, in packages.
MOST_LEVELS = 8
#: A library that one place knows, and no other.
ONLY = {
    "treq": "upstream.requester",
    "txredisapi": "redis",
    "environ": "settings",
    "klein": "web",
    "boto3": "storage.s3",
    "botocore": "storage",
    "prometheus_client": "observability.metrics",
}
#: Lines of a module. A longer one is two ideas in one file.
LONGEST = 310


def name_of(path: Path) -> str:
    """A module's dotted name below ``mypypi``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def package_of(module: str) -> str:
    """The package that a module belongs to; "words" for the modules of ``mypypi/`` itself."""
    package = module.partition(".")[0]
    return package if (ROOT / package).is_dir() and package else "words"


def imported_by(module: str) -> Iterator[str]:
    """The dotted names that a module imports, anywhere in it, type checking included."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(imported: str) -> str | None:
    """The module of this project that an imported name is or comes from; None for a library's."""
    if imported.partition(".")[0] != "mypypi":
        return None
    name = imported.removeprefix("mypypi").removeprefix(".")
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def own_imports(module: str) -> set[str]:
    """The modules of this project that a module imports."""
    return {name for name in map(own, imported_by(module)) if name is not None and name != module}


def libraries_of(module: str) -> set[str]:
    """The top-level names of everything that a module imports."""
    return {name.partition(".")[0] for name in imported_by(module)}


def is_within(module: str, place: str) -> bool:
    return module == place or module.startswith(f"{place}.")


def levels(package: str) -> int:
    """How many packages the longest way down from this one has."""
    return 1 + max((levels(below) for below in MAY_IMPORT[package]), default=0)


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_table(module: str) -> None:
    """A module imports from its own package and from those that the table names."""
    package = package_of(module)
    assert {package_of(name) for name in own_imports(module)} - {package} <= MAY_IMPORT[package]


def test_the_table_names_no_arrow_that_does_not_exist() -> None:
    """The table is the picture of the code as it is, and not of what it once was."""
    drawn = {(package, below) for package, all_below in MAY_IMPORT.items() for below in all_below}
    found = {(package_of(module), package_of(name)) for module in MODULES for name in own_imports(module)}
    assert {(package, below) for package, below in found if package != below} == drawn


def test_there_are_few_levels() -> None:
    """Somebody who reads from the bottom up has a short way to the top."""
    assert max(map(levels, MAY_IMPORT)) <= MOST_LEVELS


def test_no_modules_import_each_other() -> None:
    """There is an order in which all modules can be read."""
    graph = {module: own_imports(module) for module in MODULES if not MODULES[module].name.startswith("__init__")}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(("library", "place"), ONLY.items())
def test_one_place_knows_a_library(library: str, place: str) -> None:
    """Nothing else needs to change when the library does."""
    users = [module for module in MODULES if library in libraries_of(module)]
    assert users
    assert [user for user in users if not is_within(user, place)] == []


def test_reactor_is_imported_where_a_daemon_is_put_together() -> None:
    """Everywhere else it comes in as an argument, so that a test can bring its own."""
    users = [module for module in MODULES if "twisted.internet.reactor" in set(imported_by(module))]
    assert all(is_within(user, "daemon") and user.endswith("_tap") for user in users), users


@pytest.mark.parametrize("module", [module for module in MODULES if is_within(module, "ecosystems")])
def test_ecosystems_are_pure(module: str) -> None:
    """No I/O, no clock, no request: bytes from upstream in, values out."""
    assert libraries_of(module).isdisjoint(
        {"twisted", "treq", "txredisapi", "klein", "boto3", "asyncio", "socket", "time", "os"}
    )


@pytest.mark.parametrize("module", [module for module in MODULES if package_of(module) in ("pages", "files")])
def test_pages_and_files_know_interfaces(module: str) -> None:
    """The catalog and the storage are what the interfaces say; of Redis, only leases are known."""
    assert {name for name in own_imports(module) if package_of(name) == "redis"} <= {"redis.leases"}


@pytest.mark.parametrize("module", ["interfaces", "model", "errors"])
def test_model_knows_no_framework(module: str) -> None:
    """Values, errors and interfaces are the words of the domain."""
    assert libraries_of(module).isdisjoint({"twisted", "treq", "txredisapi", "klein", "boto3", "msgspec"})


@pytest.mark.parametrize("module", MODULES)
def test_module_says_what_it_is_about(module: str) -> None:
    """Before all else, in words."""
    assert ast.get_docstring(ast.parse(MODULES[module].read_text())), module


def test_modules_are_short() -> None:
    """One idea each."""
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert [module for module, length in lengths.items() if length > LONGEST] == []
