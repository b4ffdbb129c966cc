"""The README's statements are true: it is the page that most people read."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins

from mypypi import __version__
from mypypi.ecosystems import ECOSYSTEMS
from mypypi.settings.reference import as_rst_table, variables
from tests.rig.daemon import _TWISTD, Daemon
from tests.rig.index import FakeIndex
from tests.rig.packages import make_wheel
from tests.rig.redis import Redis

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.rst").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.rst").read_text(encoding="utf-8")
SETUP = (ROOT / "setup.py").read_text(encoding="utf-8")

#: The commands in the README, and the single steps of those joined by ``&&``.
COMMANDS = re.findall(r"^ +\$ (.+)$", README, re.MULTILINE)
STEPS = [step for command in COMMANDS for step in command.split(" && ")]


def settings_in(text: str) -> set[str]:
    return set(re.findall(r"\bMYPYPI_\w+", text))


def test_the_table_of_settings_is_up_to_date() -> None:
    """The README's table of settings is the generated one."""
    (table,) = re.findall(r"^\.\. settings: begin .*?$\n\n(.*)\n^\.\. settings: end$", README, re.MULTILINE | re.DOTALL)
    assert table == as_rst_table()


@pytest.mark.parametrize("page", ["README.rst", "CHANGELOG.rst", "docs/design.rst"])
def test_every_setting_that_is_mentioned_exists(page: str) -> None:
    """Every setting on these pages exists. The daemons would refuse an unknown one."""
    mentioned = settings_in((ROOT / page).read_text(encoding="utf-8"))
    assert mentioned <= {variable.name for variable in variables()}


def test_every_plugin_that_is_shown_exists() -> None:
    """
    The README shows all plugins, and no other.

    No command writes a pid file: a second daemon in the directory would not start, nor one after a crash.
    """
    shown = set(re.findall(r"\btwistd -n --pidfile= ([a-z-]+)", README))
    assert shown == {maker.tapname for maker in getPlugins(IServiceMaker) if maker.tapname.startswith("mypypi")}
    assert re.findall(r"\btwistd (?:-n|--nodaemon) (?!--pidfile= )", README + OPERATIONS) == []


def test_every_extra_that_is_shown_exists() -> None:
    """
    Every extra in the README exists.

    ``pip install`` only warns of an unknown extra, and then packages are missing.
    """
    extras = set(re.findall(r"'\.\[(\w+)\]'", "\n".join(COMMANDS)))
    assert extras == set(re.findall(r'^ {8}"(\w+)": \[', SETUP, re.MULTILINE)) == {"embedded", "dev"}


def test_ci_runs_the_readmes_test_command() -> None:
    """CI runs the README's command for the tests, apart from options that reduce its output."""
    (command,) = (command for command in COMMANDS if command.endswith("pytest"))
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace('"${PYTHON:-python3}"', "python3")
    lines = [[word for word in line.split() if not word.startswith("--")] for line in script.splitlines()]
    steps = [step.split() for step in command.split(" && ")]
    assert [step for step in steps if step in lines] == steps


def test_examples_use_the_address_of_twistd_mypypi() -> None:
    """
    The README's examples use the address that ``twistd mypypi`` listens on.

    The commands that the daemon prints are among them.
    """
    (listen,) = (variable.embedded for variable in variables() if variable.name == "MYPYPI_LISTEN")
    assert listen == "tcp:8080:interface=127.0.0.1"
    assert set(re.findall(r"http://127[\d.:]*", README.replace("\\", ""))) == {"http://127.0.0.1:8080"}
    for package_type in ("pypi", "npm"):
        example = ECOSYSTEMS[package_type]("https://index.example").example("http://127.0.0.1:8080/")
        assert example in COMMANDS


def test_lock_files_are_translated_by_the_commands_shown(index: FakeIndex) -> None:
    """The README's ``sed`` commands translate a lock file's URLs both ways."""
    url = index.add(make_wheel("thing"))
    ours = f"http://127.0.0.1:8080/file/{url.replace('://', '/')}"
    entry = '    {{ url = "{}", hash = "sha256:00" }},\n'
    to_upstream, to_here = (shlex.split(step) for step in STEPS if step.startswith("sed "))
    assert translated(entry.format(ours), to_upstream) == entry.format(url)
    assert translated(entry.format(url), to_here) == entry.format(ours)


def translated(text: str, command: list[str]) -> str:
    """Return a lock file's text after a command from the README."""
    *words, name = command
    assert name == "uv.lock"
    return subprocess.run(words, input=text, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("page", ["README.rst", "CHANGELOG.rst"])
def test_the_version_is_named(page: str) -> None:
    """These pages name the current version."""
    assert __version__ in (ROOT / page).read_text(encoding="utf-8")


def test_server_and_worker_run_in_one_directory(redis: Redis, index: FakeIndex, tmp_path: Path) -> None:
    """The README's commands for server and worker work in one empty directory, and again after a ``kill -9``."""
    commands = [step for step in STEPS if re.match(r"twistd .* mypypi-(server|worker)\b", step)]
    assert len(commands) == 2
    env = {"MYPYPI_REDIS_URL": redis.url, "MYPYPI_REDIS_PREFIX": "readme", "MYPYPI_UPSTREAM_URL": index.url}

    def launch(command: str) -> Daemon:
        daemon = Daemon(command.split()[3], tmp_path / "data", env)
        words = ["tcp:0:interface=127.0.0.1" if word == "tcp:8080" else word for word in command.split()[1:]]
        daemon._command = [sys.executable, "-c", _TWISTD, *words]
        ending.callback(daemon.sweep)
        daemon.launch()
        ending.callback(daemon.stop)
        return daemon

    with ExitStack() as ending:
        server, worker = [launch(command) for command in commands]
        for daemon in (server, worker):
            daemon.wait_for_log("ready: ")
        server.kill()
        launch(commands[0]).wait_for_log("ready: ")
        assert [path.name for path in tmp_path.iterdir()] == ["data"]
