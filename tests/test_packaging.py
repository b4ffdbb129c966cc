"""Tests of an installation: the wheel is built, and installed without a checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = {"mypypi", "mypypi-server", "mypypi-worker"}

_TWISTD = "from twisted.scripts.twistd import run; run()"


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command that must succeed, and return its output. It can reach neither the checkout nor an index."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    clean |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PYTHONNOUSERSITE": "1"}
    done = subprocess.run(
        command, cwd=cwd, env=clean, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist of a copy of the sources. So both have to be complete."""
    source = tmp_path_factory.mktemp("source")
    for name in ("mypypi", "twisted", "tests"):
        copytree(ROOT / name, source / name, ignore=ignore_patterns("__pycache__", "dropin.cache"))
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            copy(file, source)
    built = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", built, source, cwd=built)
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """
    The interpreter of a new environment with this one's packages, except for MyPyPi.

    The packages are links. Twisted's plugin directory is a real one, as in any environment.
    """
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    for here in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        _link(Path(here), site)
    return python


def _link(here: Path, there: Path) -> None:
    there.mkdir(exist_ok=True)
    for entry in here.iterdir():
        if entry.name in ("twisted", "plugins"):
            _link(entry, there / entry.name)
        elif "mypypi" not in entry.name and entry.name not in ("__pycache__", "dropin.cache"):
            (there / entry.name).symlink_to(entry)


def plugins(python: Path, cwd: Path) -> set[str]:
    """Return our plugins that ``twistd --help`` lists."""
    return set(re.findall(r"^ +(mypypi\S*) ", run(python, "-c", _TWISTD, "--help", cwd=cwd), re.MULTILINE))


def test_twistd_lists_the_plugins_after_an_install(wheel: Path, python: Path, tmp_path: Path) -> None:
    """
    After ``pip install``, twistd lists the plugins.

    The packages of the test environment satisfy the wheel's requirements.
    """
    assert plugins(python, tmp_path) == set()
    run(python, "-m", "pip", "install", wheel, cwd=tmp_path)
    assert plugins(python, tmp_path) == PLUGINS


def test_the_command_exists_after_an_install(wheel: Path, python: Path, tmp_path: Path) -> None:
    """After ``pip install``, the command ``mypypi`` is beside the interpreter."""
    run(python, "-m", "pip", "install", wheel, cwd=tmp_path)
    assert "mypypi jobs [-h]" in run(python.with_name("mypypi"), "jobs", "--help", cwd=tmp_path)


def test_the_wheel_adds_only_a_plugin_to_twisted(wheel: Path) -> None:
    """The wheel adds one module to Twisted's plugins. No file of it hides Twisted or its own plugins."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.startswith(("mypypi/", "mypypi-"))]
    assert names == ["twisted/plugins/mypypi_plugins.py"]


def test_the_wheel_is_typed(wheel: Path) -> None:
    """The wheel has the marker for type checkers (PEP 561)."""
    with zipfile.ZipFile(wheel) as archive:
        assert "mypypi/py.typed" in archive.namelist()


def test_the_wheel_has_its_metadata(wheel: Path) -> None:
    """The wheel's metadata has the package's version and extras, and its licence is included."""
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(path))
        licences = [name for name in archive.namelist() if name.endswith("/LICENSE")]
    versions = re.findall(r'^__version__ = "(.+)"$', (ROOT / "mypypi" / "__init__.py").read_text(), re.MULTILINE)
    assert [metadata["Version"]] == versions
    assert metadata["Requires-Python"] == ">=3.10"
    assert set(metadata.get_all("Provides-Extra", [])) == {"embedded", "dev"}
    assert len(licences) == 1
