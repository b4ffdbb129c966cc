"""The image, the Compose files and the systemd units agree with the settings."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mypypi.settings.loading import load_settings
from mypypi.settings.reference import variables

ROOT = Path(__file__).resolve().parents[1]
UNITS = ROOT / "contrib" / "systemd"
ENV = UNITS / "mypypi.env"
COMPOSE, COMPOSE_S3 = ROOT / "docker-compose.yml", ROOT / "docker-compose.s3.yml"
FILES = [ROOT / "Dockerfile", COMPOSE, COMPOSE_S3, *sorted(UNITS.iterdir())]

SETTINGS = {variable.name for variable in variables()}
#: Settings whose values the image fixes; Compose does not pass them.
FIXED_IN_THE_CONTAINER = {"MYPYPI_LISTEN", "MYPYPI_DATA_DIRECTORY", "MYPYPI_FILE_STORAGE_DIRECTORY"}
#: The highest exposure that `systemd-analyze security` may report, in tenths: below 20 it says OK.
MAX_EXPOSURE = "15"


def services(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["services"]
    return found


def unit(name: str) -> list[tuple[str, str, str]]:
    """Return section, name and value of each line of a unit, in order."""
    section, lines = "", []
    for line in (UNITS / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            lines.append((section, key, value))
    return lines


def run_tool(*command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose environment has only PATH and `env`."""
    path = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    return subprocess.run(command, env=path | env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_setting_that_is_named_exists(path: Path) -> None:
    """Every MYPYPI_ variable in these files is a setting. The daemons refuse to start with an unknown one."""
    named = set(re.findall(r"MYPYPI_[A-Z0-9_]+", path.read_text(encoding="utf-8")))
    assert named - SETTINGS == set()


def test_compose_passes_every_setting() -> None:
    """
    Compose passes every setting to server and worker, except those fixed in the container.

    The bucket's settings come from the second file.
    """
    base, s3 = services(COMPOSE), services(COMPOSE_S3)
    for name in ("server", "worker"):
        assert base[name]["environment"]["MYPYPI_MODE"] == name
        passed = {*base[name]["environment"], *s3[name]["environment"]}
        assert passed == SETTINGS - FIXED_IN_THE_CONTAINER
    same = [{**base[name], **s3[name], "environment": ""} for name in ("server", "worker")]
    del same[0]["ports"], same[0]["sysctls"]
    assert same[0] == same[1]


def test_compose_keeps_data_in_volumes() -> None:
    """Server and worker share one volume, and Redis has another. Redis writes every change to disk."""
    found = services(COMPOSE)
    assert found["server"]["volumes"] == found["worker"]["volumes"] == ["data:/data"]
    assert found["redis"]["volumes"] == ["redis:/data"]
    command = found["redis"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert set(yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["volumes"]) == {"data", "redis"}


def test_compose_serves_at_8080() -> None:
    """The server is published on port 8080 by default. No other service publishes a port."""
    found = services(COMPOSE)
    assert found["server"]["ports"] == ["${PUBLISH:-8080}:80"]
    assert [name for name, service in found.items() if "ports" in service] == ["server"]


def test_compose_checks_and_restarts_every_service() -> None:
    """
    Every service has a health check and is restarted.

    The server's check is that of the image. The default Redis is the one that Compose starts.
    """
    found = services(COMPOSE)
    check = found["server"]["healthcheck"]["test"]
    assert check == ["CMD", "python", "-m", "mypypi.daemon.container", "check"]
    assert f"CMD {json.dumps(check[1:])}" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert all("healthcheck" in service and service["restart"] == "unless-stopped" for service in found.values())
    assert found["server"]["environment"]["MYPYPI_REDIS_URL"] == "${MYPYPI_REDIS_URL:-redis://redis:6379}"


def test_compose_limits_every_service() -> None:
    """Every service has bounded logs, enough descriptors, no capability and a read-only root. No one is root."""
    for name, service in services(COMPOSE).items():
        options = service["logging"]["options"]
        assert (options["max-size"], options["max-file"]) == ("20m", "5"), name
        assert service["ulimits"]["nofile"] == {"soft": 65536, "hard": 65536}, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
    assert services(COMPOSE)["redis"]["user"] == "999:1000"
    assert re.search(r"^USER 1000:1000$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)


def test_images_are_pinned() -> None:
    """Images of others have exact versions, so that a new build or start changes nothing by itself."""
    assert re.fullmatch(r"\$\{REDIS_IMAGE:-redis:\d+\.\d+\.\d+-alpine[\d.]+\}", services(COMPOSE)["redis"]["image"])
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE) == ["python:${PYTHON}"] * 2
    assert re.search(r"^ARG PYTHON=\d+\.\d+\.\d+-slim-\w+$", dockerfile, re.MULTILINE)


@pytest.mark.parametrize("more", [(), ("-f", str(COMPOSE_S3))], ids=["local", "s3"])
def test_compose_accepts_its_files(more: tuple[str, ...]) -> None:
    """`docker compose config` accepts the first file, alone and with the second."""
    tool = next((tool for tool in (["docker", "compose"], ["docker-compose"]) if _works(*tool)), None)
    if tool is None:
        pytest.skip("there is no docker compose here")
    done = run_tool(*tool, "-f", COMPOSE, *more, "config", MYPYPI_S3_BUCKET="packages", MYPYPI_CACHE_TIME="7")
    assert done.returncode == 0, done.stderr
    environment = yaml.safe_load(done.stdout)["services"]["worker"]["environment"]
    assert environment["MYPYPI_CACHE_TIME"] == "7"
    assert environment.get("MYPYPI_PUBLIC_URL") is None
    assert environment.get("MYPYPI_S3_BUCKET") == ("packages" if more else None)


def _works(*command: str) -> bool:
    return shutil.which(command[0]) is not None and run_tool(*command, "version").returncode == 0


def test_compose_with_a_bucket_requires_its_name() -> None:
    """The second Compose file requires a bucket's name. Without it, the daemons would end at once."""
    for service in services(COMPOSE_S3).values():
        assert service["environment"]["MYPYPI_S3_BUCKET"].startswith("${MYPYPI_S3_BUCKET:?")


def test_the_build_context_has_only_what_the_install_needs() -> None:
    """The build context contains only the files that the installation needs. So no .env file with secrets gets in."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    allowed = {line[1:] for line in rules if line.startswith("!")}
    assert rules[0] == "*"
    assert allowed == {"LICENSE", "README.rst", "mypypi", "pyproject.toml", "setup.py", "twisted"}


def test_the_example_environment_file_is_valid() -> None:
    """Every line of the example environment file is valid once uncommented."""
    lines = [line.lstrip("#") for line in ENV.read_text(encoding="utf-8").splitlines()]
    example = dict(line.split("=", 1) for line in lines if re.match("[A-Z_0-9]+=", line))
    assert len(example) > 10
    assert load_settings(example).s3_bucket == example["MYPYPI_S3_BUCKET"]


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a command that exists on every machine."""
    for path in UNITS.glob("*.s*"):
        text = path.read_text(encoding="utf-8")
        (tmp_path / path.name).write_text(text.replace("/opt/mypypi/bin/twistd", shutil.which("true") or ""))
    return tmp_path


def test_systemd_accepts_the_units(units: Path) -> None:
    """`systemd-analyze verify` accepts the units without a warning."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    paths = sorted(units.iterdir())
    assert len(paths) == 3
    done = run_tool("systemd-analyze", "verify", "--man=no", *paths)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["mypypi-server.service", "mypypi-worker.service"])
def test_the_units_are_sandboxed(units: Path, name: str) -> None:
    """`systemd-analyze security` rates the sandbox of each unit as tight enough."""
    if shutil.which("systemd-analyze") is None or "--offline" not in run_tool("systemd-analyze", "--help").stdout:
        pytest.skip("there is no systemd-analyze here that looks at files")
    done = run_tool("systemd-analyze", "security", "--offline=true", f"--threshold={MAX_EXPOSURE}", units / name)
    assert done.returncode == 0, done.stdout


def test_both_units_are_alike() -> None:
    """Both units differ only in the command, and in where the server listens."""
    server, worker = unit("mypypi-server.service"), unit("mypypi-worker.service")
    differing = {key for section, key, _ in {*server} ^ {*worker} if section == "Service"}
    assert differing == {"ExecStart", "Environment"}
    for name, lines in (("server", server), ("worker", worker)):
        (command,) = (value for _, key, value in lines if key == "ExecStart")
        assert command == f"/opt/mypypi/bin/twistd --nodaemon --pidfile= mypypi-{name}"


def test_systemd_and_compose_wait_longer_than_a_daemon_drains() -> None:
    """
    The stop timeouts of systemd and Compose exceed MYPYPI_DRAIN_TIME.

    Otherwise daemons would be killed while transfers drain.
    """
    drain_time = load_settings({}).drain_time
    for name in ("mypypi-server.service", "mypypi-worker.service"):
        assert ("Service", "KillMode", "mixed") in unit(name)
        (seconds,) = (int(value) for _, key, value in unit(name) if key == "TimeoutStopSec")
        assert seconds >= drain_time + 15
    for service in ("server", "worker"):
        assert int(services(COMPOSE)[service]["stop_grace_period"].removesuffix("s")) >= drain_time + 15


@pytest.mark.parametrize("name", ["mypypi-server.service", "mypypi-worker.service"])
def test_a_reload_sends_sighup(name: str) -> None:
    """``systemctl reload`` sends SIGHUP to the main process of either daemon."""
    assert ("Service", "ExecReload", "kill -HUP $MAINPID") in unit(name)


def test_the_server_listens_at_the_socket_of_its_unit() -> None:
    """
    The server listens on the socket of its systemd unit.

    Twisted finds it by its name, and it serves both versions of IP.
    """
    socket, server = unit("mypypi-server.socket"), unit("mypypi-server.service")
    (name,) = (value for _, key, value in socket if key == "FileDescriptorName")
    assert ("Socket", "BindIPv6Only", "both") in socket
    assert ("Service", "Environment", f"MYPYPI_LISTEN=systemd:domain=INET6:name={name}") in server
    assert ("Unit", "Requires", "mypypi-server.socket") in server
