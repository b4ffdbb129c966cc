"""Tests of the paths below ``/-/``: each is reached by one spelling, so that a proxy's rule for it is enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.world import Transmission, World
from tests.support.memory import Exchange, response

FOR_OPERATORS = ("/-/metrics", "/-/health/ready", "/-/health/live", "/-/")
OF_NPM = ("/-/ping", "/-/whoami", "/-/npm/v1/keys", "/-/v1/search", "/-/package/app/dist-tags")


def upstream(_: Exchange) -> Transmission:
    """Upstream has one document at every address."""
    return Transmission(
        response(200, b'{"name": "app", "versions": {}, "dist-tags": {}}', content_type="application/json")
    )


def server(directory: Path, package_type: str, **settings: str) -> World:
    return World(package_type, directory, upstream, lambda _: True, settings)


def encodings(path: str) -> list[str]:
    """This path with one character encoded, in each place and in both cases of the digits."""
    found = []
    for place, character in enumerate(path[1:], 1):
        if character != "/":
            code = f"{ord(character):02x}"
            found += [f"{path[:place]}%{each}{path[place + 1 :]}" for each in {code, code.upper()}]
    return found


def spellings(path: str) -> list[str]:
    """Other ways to write this path, which some servers or proxies take for the same."""
    rest = path.removeprefix("/-/")
    return [
        *(f"//-/{rest}", f"/-//{rest}", f"/./-/{rest}", f"/-/./{rest}", f"/x/../-/{rest}", f"/-/x/../{rest}"),
        *(f"/%2e/-/{rest}", f"/x/%2e%2e/-/{rest}", f"/-%2f{rest}", f"/\\-/{rest}", f"/-\\{rest}", f"/-%5c{rest}"),
        *(f"/-;x/{rest}", f"/;/-/{rest}", f"/..;/-/{rest}", f"/%252d/{rest}", f"/-%00/{rest}", f"/-%20/{rest}"),
        *(f"/-/{rest}%20", f"/-/{rest}%00", f"/-/{rest};x", f"/\xad/{rest}", f"http://here{path}", f"x{path}"),
    ]


class TestOneSpelling:
    """A reserved path is not reached by any other spelling."""

    @pytest.mark.parametrize("package_type", ["pypi", "npm"])
    @pytest.mark.parametrize("path", FOR_OPERATORS)
    def test_operators_paths(self, tmp_path: Path, package_type: str, path: str) -> None:
        """An encoded letter, a dot segment, a second slash or a parameter does not lead there."""
        world = server(tmp_path, package_type)
        assert world.get(path).status == 200
        for other in encodings(path):
            assert world.get(other).status in (400, 404), other
        for other in spellings(path):  # npm has a package with the name "-"
            assert world.get(other).status >= 400, other

    @pytest.mark.parametrize("path", [*FOR_OPERATORS[:2], *(path.upper() for path in FOR_OPERATORS[:2])])
    def test_more_or_other_letters(self, tmp_path: Path, path: str) -> None:
        """Case counts, and so does a slash at the end."""
        world = server(tmp_path, "pypi")
        assert world.get(f"{path}/").status == 404
        assert world.get(path).status == (200 if path.islower() else 404)

    @pytest.mark.parametrize("path", OF_NPM)
    def test_paths_of_the_registry(self, tmp_path: Path, path: str) -> None:
        """The same holds for the endpoints of a registry, of which a proxy may block some."""
        world = server(tmp_path, "npm")
        assert world.get(path).status in (200, 401)
        for other in encodings(path):
            assert world.get(other).status in (400, 404), other

    @pytest.mark.parametrize("path", ["/app/%2d/metrics", "/%61pp/-/metrics", "/ap%70/%2D/health/ready"])
    def test_paths_below_a_prefix(self, tmp_path: Path, path: str) -> None:
        """Nor is one reached below the prefix that a proxy passes on, if the prefix or the rest is encoded."""
        world = server(tmp_path, "pypi", MYPYPI_PUBLIC_URL="https://packages.example/app")
        assert world.get("/app/-/metrics").status == 200
        assert world.get(path).status == 404

    def test_what_clients_encode_is_accepted(self, tmp_path: Path) -> None:
        """Clients encode a scope's slash and ``@``, and a version's plus, and these requests are answered."""
        world = server(tmp_path, "npm")
        for name in ("@acme%2fapp", "@acme%2Fapp", "%40acme%2fapp"):
            assert "another package" in world.get(f"/-/package/{name}/dist-tags").body.decode()
        assert world.get("/-/npm/v1/attestations/app@1.0.0%2Bx").status == 200
