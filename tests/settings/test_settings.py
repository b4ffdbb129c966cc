"""Tests of the settings: all problems are reported at once, and secrets are never shown."""

from __future__ import annotations

import traceback
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import pytest
from packageurl.contrib import purl2url

from mypypi.settings import loading
from mypypi.settings.loading import SettingsError, load_settings
from mypypi.settings.reference import as_rst_table, describe, variables
from mypypi.settings.settings import default_upstream
from mypypi.settings.types import RedisUrl, Secret

#: A valid text for every variable, other than the default, and the value that it becomes.
EXAMPLES: dict[str, tuple[str, object]] = {
    "MYPYPI_PACKAGE_TYPE": ("npm", "npm"),
    "MYPYPI_UPSTREAM_URL": ("https://index.example/", "https://index.example"),
    "MYPYPI_UPSTREAM_USERNAME": ("me", "me"),
    "MYPYPI_UPSTREAM_PASSWORD": ("hunter2", Secret("hunter2")),
    "MYPYPI_UPSTREAM_TRUST": (
        "Files.example., [fd00::1]:81, 10.0.0.0/8",
        (("files.example", None), (ip_network("fd00::1"), 81), (ip_network("10.0.0.0/8"), None)),
    ),
    "MYPYPI_UPSTREAM_STRICT": ("true", True),
    "MYPYPI_CACHE_TIME": ("1", 1),
    "MYPYPI_DATA_DIRECTORY": ("/srv/mypypi", Path("/srv/mypypi")),
    "MYPYPI_FILE_STORAGE_DRIVER": ("s3", "s3"),
    "MYPYPI_FILE_STORAGE_DIRECTORY": ("/srv/files", Path("/srv/files")),
    "MYPYPI_S3_BUCKET": ("wheels", "wheels"),
    "MYPYPI_S3_PREFIX": ("/cache/pypi/", "cache/pypi"),
    "MYPYPI_S3_ACCESS_KEY": ("AKEXAMPLE", Secret("AKEXAMPLE")),
    "MYPYPI_S3_SECRET_KEY": ("s3cr3t", Secret("s3cr3t")),
    "MYPYPI_S3_ENDPOINT_URL": ("https://s3.example", "https://s3.example"),
    "MYPYPI_S3_REGION": ("eu-central-1", "eu-central-1"),
    "MYPYPI_S3_PUBLIC": ("yes", True),
    "MYPYPI_S3_KEY_TTL": ("61", 61),
    "MYPYPI_S3_SERVE": ("proxy", "proxy"),
    "MYPYPI_DRAFTS_MAX_BYTES": ("5000000", 5_000_000),
    "MYPYPI_REDIS_URL": ("redis://redis.example", RedisUrl("tcp", "redis.example")),
    "MYPYPI_REDIS_PREFIX": ("other", "other"),
    "WORKERS": ("2", 2),
    "MYPYPI_WORKER_CONCURRENCY": ("8", 8),
    "MYPYPI_MODE": ("worker", "worker"),
    "MYPYPI_LISTEN": ("unix:/run/mypypi.sock:mode=660", "unix:/run/mypypi.sock:mode=660"),
    "MYPYPI_PUBLIC_URL": ("https://cache.example/python/", "https://cache.example/python"),
    "MYPYPI_TRUSTED_PROXIES": ("127.0.0.1, 10.0.0.0/8", (ip_network("127.0.0.1"), ip_network("10.0.0.0/8"))),
    "MYPYPI_TRUSTED_HEADERS": ("forwarded", "forwarded"),
    "MYPYPI_COLD_FILES": ("redirect", "redirect"),
    "MYPYPI_CORE_METADATA": ("no", False),
    "MYPYPI_STRICT_WAIT": ("14", 14),
    "MYPYPI_NEGATIVE_CACHE_TIME": ("5", 5),
    "MYPYPI_UPSTREAM_CONCURRENCY": ("3", 3),
    "MYPYPI_UPSTREAM_TIMEOUT": ("30", 30),
    "MYPYPI_UPSTREAM_MIN_RATE": ("0", 0),
    "MYPYPI_RENDER_PROCESSES": ("3", 3),
    "MYPYPI_LOG_FORMAT": ("json", "json"),
    "MYPYPI_LOG_LEVEL": ("warn", "warn"),
    "MYPYPI_MAX_CONNECTIONS": ("500", 500),
    "MYPYPI_CONNECTIONS_PER_ADDRESS": ("20", 20),
    "MYPYPI_DRAIN_TIME": ("0", 0),
    "MYPYPI_STALE_AFTER": ("1", 1),
    "MYPYPI_HOT_PAGES_BYTES": ("1000000", 1_000_000),
}


def problems(environment: dict[str, str]) -> tuple[str, ...]:
    """Return the problems that `load_settings` reports; fail if there are none."""
    with pytest.raises(SettingsError) as caught:
        load_settings(environment)
    return caught.value.problems


class TestDefaults:
    """An empty environment gives the defaults of the documentation's tables."""

    def test_without_any_variable(self) -> None:
        """Without any variable, server and worker have these defaults."""
        settings = load_settings({})
        assert (settings.package_type, settings.file_storage_driver, settings.mode) == ("pypi", "local", "server")
        assert (settings.upstream_strict, settings.s3_public, settings.cold_files) == (False, False, "stream")
        assert (settings.cache_time, settings.negative_cache_time, settings.upstream_timeout) == (300, 60, 15)
        assert (settings.s3_key_ttl, settings.strict_wait, settings.upstream_concurrency) == (600, 10, 64)
        assert (settings.listen, settings.workers, settings.redis_prefix) == ("tcp:80", 8, "mypypi")
        assert settings.redis_url == RedisUrl("tcp", "localhost", 6379)
        assert (settings.upstream_username, settings.upstream_password, settings.public_url) == (None, None, None)
        assert (settings.s3_bucket, settings.s3_prefix, settings.s3_region) == (None, "", None)
        assert (settings.s3_access_key, settings.s3_secret_key, settings.s3_endpoint_url) == (None, None, None)

    def test_embedded_listens_on_loopback_with_one_worker_and_a_private_redis(self) -> None:
        """`twistd mypypi` needs no Redis, and listens on loopback only."""
        settings = load_settings({}, embedded=True)
        assert settings.listen == "tcp:8080:interface=127.0.0.1"
        assert settings.workers == 1
        assert settings.redis_url is None

    def test_variables_override_the_embedded_defaults(self) -> None:
        """A variable overrides a default of `twistd mypypi`."""
        given = {"MYPYPI_LISTEN": "tcp:81", "WORKERS": "3", "MYPYPI_REDIS_URL": "redis://redis.example"}
        settings = load_settings(given, embedded=True)
        assert (settings.listen, settings.workers) == ("tcp:81", 3)
        assert settings.redis_url == RedisUrl("tcp", "redis.example")

    @pytest.mark.parametrize("embedded", [False, True])
    def test_an_empty_variable_counts_as_unset(self, embedded: bool) -> None:  # noqa: FBT001 - pytest's parameter
        """An empty variable counts as unset. Compose files pass empty texts for unset variables."""
        empty = dict.fromkeys([*EXAMPLES, "MYPYPI_NO_SUCH_NAME"], "")
        assert load_settings(empty, embedded=embedded) == load_settings({}, embedded=embedded)

    @pytest.mark.parametrize(
        ("package_type", "page"),
        [
            ("pypi", purl2url.get_repo_url("pkg:pypi/x")),
            ("npm", purl2url.get_download_url("pkg:npm/x@1")),
        ],
    )
    def test_the_default_upstream_is_where_purl2url_places_packages(self, package_type: str, page: str) -> None:
        """The default upstream is the host that packageurl-python names. So no registry's host is written here."""
        address = urlsplit(default_upstream(package_type))
        assert (address.scheme, address.netloc) == ("https", urlsplit(page).netloc)
        assert address.netloc
        assert (address.path, address.query) == ("", "")

    @pytest.mark.parametrize("package_type", ["pypi", "npm"])
    def test_upstream_is_the_public_one_of_the_package_type(self, package_type: str) -> None:
        """The package type alone selects its public registry as upstream."""
        settings = load_settings({"MYPYPI_PACKAGE_TYPE": package_type})
        assert settings.upstream_url == default_upstream(package_type)

    @pytest.mark.parametrize(("cores", "processes"), [(None, 2), (1, 2), (3, 3), (4, 4), (64, 4)])
    def test_render_processes_follow_the_cores(
        self, monkeypatch: pytest.MonkeyPatch, cores: int | None, processes: int
    ) -> None:
        """There is a render process per core, but never fewer than two or more than four."""
        monkeypatch.setattr("os.cpu_count", lambda: cores)
        assert load_settings({}).render_processes == processes

    def test_the_settings_are_frozen(self) -> None:
        """A setting can't be changed after loading."""
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            load_settings({}).workers = 9


class TestDirectories:
    """Directories do not depend on later changes of the working directory."""

    @pytest.fixture(autouse=True)
    def _here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize(
        ("data", "files", "expected_data", "expected_files"),
        [
            ("", "", "data", "data/files"),
            ("/srv/mypypi", "", "/srv/mypypi", "/srv/mypypi/files"),
            ("var", "", "var", "var/files"),
            ("", "wheels", "data", "wheels"),
            ("var", "wheels", "var", "var/wheels"),
            ("/srv/mypypi", "wheels", "/srv/mypypi", "/srv/mypypi/wheels"),
            ("/srv/mypypi", "/mnt/wheels", "/srv/mypypi", "/mnt/wheels"),
        ],
    )
    def test_relative_paths(
        self, tmp_path: Path, data: str, files: str, expected_data: str, expected_files: str
    ) -> None:
        """
        A relative directory for files is below MYPYPI_DATA_DIRECTORY, if that is set.

        Otherwise it is below the working directory.
        """
        settings = load_settings({"MYPYPI_DATA_DIRECTORY": data, "MYPYPI_FILE_STORAGE_DIRECTORY": files})
        assert settings.data_directory == tmp_path / expected_data
        assert settings.file_storage_directory == tmp_path / expected_files


class TestOneVariable:
    """A variable accepts its documented values. For other values, the message says which are expected."""

    def test_every_variable_is_read(self) -> None:
        """Every variable sets the field of its name."""
        settings = load_settings({name: text for name, (text, _) in EXAMPLES.items()})
        values = [getattr(settings, name.removeprefix("MYPYPI_").lower()) for name in EXAMPLES]
        assert [value for _, value in EXAMPLES.values()] == values

    @pytest.mark.parametrize("text", ["true", "1", "yes", "on", "TRUE", "Yes"])
    def test_texts_for_true(self, text: str) -> None:
        """Several common texts mean true, in any letter case."""
        assert load_settings({"MYPYPI_UPSTREAM_STRICT": text}).upstream_strict is True

    @pytest.mark.parametrize("text", ["false", "0", "no", "off", "False"])
    def test_texts_for_false(self, text: str) -> None:
        """Several common texts mean false, in any letter case."""
        assert load_settings({"MYPYPI_UPSTREAM_STRICT": text}).upstream_strict is False

    @pytest.mark.parametrize(
        ("name", "text", "expected"),
        [
            ("MYPYPI_PACKAGE_TYPE", "pip", "pypi or npm"),
            ("MYPYPI_UPSTREAM_STRICT", "maybe", "true or false"),
            ("MYPYPI_UPSTREAM_TIMEOUT", "0", "seconds from 1"),
            ("MYPYPI_CACHE_TIME", "-5", "seconds from 0"),
            ("MYPYPI_CACHE_TIME", "5 minutes", "a whole number of seconds"),
            ("MYPYPI_CACHE_TIME", "\u0663", "a whole number of seconds"),
            ("MYPYPI_FILE_STORAGE_DRIVER", "S3", "local or s3"),
            ("MYPYPI_S3_BUCKET", "s3://wheels", "a bucket's name alone"),
            ("MYPYPI_S3_REGION", "eu central", "a region's name"),
            ("MYPYPI_S3_KEY_TTL", "60", "from 61"),
            ("MYPYPI_REDIS_PREFIX", "my*", "letters, digits"),
            ("WORKERS", "0", "a whole number from 1"),
            ("WORKERS", "many", "a whole number from 1"),
            ("MYPYPI_MODE", "both", "server or worker"),
            ("MYPYPI_COLD_FILES", "wait", "stream or redirect"),
            ("MYPYPI_STRICT_WAIT", "15", "from 1 to 14"),
            ("MYPYPI_UPSTREAM_CONCURRENCY", "0", "a whole number from 1"),
            ("MYPYPI_UPSTREAM_TIMEOUT", "1.5", "a whole number of seconds"),
            ("MYPYPI_RENDER_PROCESSES", "0", "a whole number from 1 to 64"),
            ("MYPYPI_STALE_AFTER", "15", "from 1 to 14"),
            ("MYPYPI_HOT_PAGES_BYTES", "64M", "a whole number of bytes from 1000000"),
        ],
    )
    def test_message_has_the_value_and_the_expected_values(self, name: str, text: str, expected: str) -> None:
        """The message has the variable, its value, and the expected values. That is enough to correct the mistake."""
        (problem,) = problems({name: text})
        assert problem.startswith(f"{name} holds {text!r}; expected ")
        assert expected in problem

    @pytest.mark.parametrize("name", ["MYPYPI_UPSTREAM_URL", "MYPYPI_S3_ENDPOINT_URL", "MYPYPI_PUBLIC_URL"])
    @pytest.mark.parametrize(
        "text",
        [
            "index.example",
            "ftp://index.example",
            "https://",
            "https:///path",
            "https://index.example:http",
            "https://index.example:0",
            "https://index.example:70000",
            "https://index .example",
            "https://index.example/\n",
            "https://[index.example",
            "https://index.example/?a=b",
            "https://index.example/#a",
            "https://me@index.example",
        ],
    )
    def test_addresses_must_be_well_formed(self, name: str, text: str) -> None:
        """A malformed address is reported at start, not at the first request."""
        (problem,) = problems({name: text})
        assert problem.startswith(f"{name} holds ")
        assert "http:// or https:// address with a host" in problem

    @pytest.mark.parametrize("text", ["http://127.0.0.1:3141/root/pypi", "https://[::1]:8443", "https://index.example"])
    def test_addresses_that_are_well_formed(self, text: str) -> None:
        """Ports, IPv6 and a path are accepted; trailing slashes are removed."""
        assert load_settings({"MYPYPI_UPSTREAM_URL": f"{text}//"}).upstream_url == text

    def test_credentials_do_not_belong_in_the_upstream_url(self) -> None:
        """
        Credentials in the upstream URL are refused, since logs and links would show them.

        The message names the variables for them, and does not show the credentials.
        """
        (problem,) = problems({"MYPYPI_UPSTREAM_URL": "https://me:hunter2@index.example"})
        assert "hunter2" not in problem
        assert "MYPYPI_UPSTREAM_USERNAME" in problem
        assert "MYPYPI_UPSTREAM_PASSWORD" in problem

    @pytest.mark.parametrize(
        "text", ["tcp:80", "tcp6:80", "unix:/run/mypypi.sock", "systemd:domain=INET:index=0", "ssl:443:privateKey=none"]
    )
    def test_listen_accepts_endpoints_that_this_process_could_not_open(self, text: str) -> None:
        """
        An endpoint that this process could not open is accepted.

        A worker reads the same settings, but has neither the server's sockets nor its certificate.
        """
        assert load_settings({"MYPYPI_LISTEN": text}).listen == text

    @pytest.mark.parametrize(
        "text",
        ["http://x", "a b", "x:0", "x:99999", "user@x", "x/path", "x?y", "a,,b", "*.example", "10.0.0.0/99", "[::1"],
    )
    def test_texts_that_are_no_trusted_hosts(self, text: str) -> None:
        """Only hosts, host:port, addresses and networks can be trusted."""
        (problem,) = problems({"MYPYPI_UPSTREAM_TRUST": text})
        assert "MYPYPI_UPSTREAM_TRUST" in problem
        assert "expected hosts, host:port, addresses or networks" in problem

    @pytest.mark.parametrize("text", ["80", "tcp", "tcp:", "tcp:http", "tcp:80:port=1", "tcp:80\\", "carrier-pigeon:1"])
    def test_listen_is_a_server_endpoint(self, text: str) -> None:
        """An endpoint that Twisted can't parse is reported like other problems."""
        (problem,) = problems({"MYPYPI_LISTEN": text})
        assert problem.startswith(f"MYPYPI_LISTEN holds {text!r}; expected a Twisted server endpoint")

    def test_a_username_has_no_colon(self) -> None:
        """A username with a colon is refused. HTTP basic auth could not tell where the password begins."""
        (problem,) = problems({"MYPYPI_UPSTREAM_USERNAME": "me:too", "MYPYPI_UPSTREAM_PASSWORD": "hunter2"})
        assert "without a colon" in problem

    @pytest.mark.parametrize("end", ["", "\n"])
    def test_a_password_in_the_username_is_not_shown(self, end: str) -> None:
        """A username that holds the password, too, is refused without being shown."""
        (problem,) = problems({"MYPYPI_UPSTREAM_USERNAME": f"me:hunter2{end}", "MYPYPI_UPSTREAM_PASSWORD": "x"})
        assert problem.startswith("MYPYPI_UPSTREAM_USERNAME holds (not shown); expected a user's name")


class TestTogether:
    """Settings that depend on each other are checked, and all problems reported at once."""

    @pytest.mark.parametrize(
        ("present", "absent"),
        [
            ("MYPYPI_UPSTREAM_USERNAME", "MYPYPI_UPSTREAM_PASSWORD"),
            ("MYPYPI_UPSTREAM_PASSWORD", "MYPYPI_UPSTREAM_USERNAME"),
            ("MYPYPI_S3_ACCESS_KEY", "MYPYPI_S3_SECRET_KEY"),
            ("MYPYPI_S3_SECRET_KEY", "MYPYPI_S3_ACCESS_KEY"),
        ],
    )
    def test_half_a_pair_of_credentials(self, present: str, absent: str) -> None:
        """One half of a pair of credentials requires the other."""
        (problem,) = problems({present: "x", absent: ""})
        assert problem.startswith(f"{absent} is not set; expected ")
        assert present in problem

    def test_s3_needs_a_bucket(self) -> None:
        """A missing bucket is reported at start, not at the first upload."""
        (problem,) = problems({"MYPYPI_FILE_STORAGE_DRIVER": "s3"})
        assert problem.startswith("MYPYPI_S3_BUCKET is not set; expected ")
        assert load_settings({"MYPYPI_FILE_STORAGE_DRIVER": "s3", "MYPYPI_S3_BUCKET": "wheels"}).s3_bucket == "wheels"

    @pytest.mark.parametrize("slash", ["", "/"])
    def test_an_upstream_url_with_simple_is_refused(self, slash: str) -> None:
        """
        An upstream URL that ends in /simple is refused.

        Copied from pip's configuration it has that suffix, which would be requested twice.
        """
        text = f"https://index.example/root/simple{slash}"
        (problem,) = problems({"MYPYPI_UPSTREAM_URL": text})
        assert problem == f"MYPYPI_UPSTREAM_URL holds {text!r}; expected the same without the trailing /simple"

    def test_an_npm_registry_may_be_called_simple(self) -> None:
        """An npm registry's URL may end in /simple, since the path has no such meaning there."""
        given = {"MYPYPI_PACKAGE_TYPE": "npm", "MYPYPI_UPSTREAM_URL": "https://registry.example/simple"}
        assert load_settings(given).upstream_url == "https://registry.example/simple"

    @pytest.mark.parametrize(
        ("unknown", "nearest"),
        [
            ("MYPYPI_CACHETIME", "MYPYPI_CACHE_TIME"),
            ("MYPYPI_UPSTREAM", "MYPYPI_UPSTREAM_URL"),
            ("MYPYPI_WORKERS", "WORKERS"),
            ("MYPYPI_S3_SECRETKEY", "MYPYPI_S3_SECRET_KEY"),
        ],
    )
    def test_an_unknown_name(self, unknown: str, nearest: str) -> None:
        """
        An unknown variable is reported with the nearest name, not ignored.

        Its value is not shown: it may be a secret whose name was mistyped.
        """
        (problem,) = problems({unknown: "hunter2"})
        assert problem == f"{unknown} is not a setting; the nearest name is {nearest}"

    def test_variables_of_other_programs_are_ignored(self) -> None:
        """Variables of other programs are ignored."""
        assert load_settings({"HOME": "/", "PYPI_URL": "x", "MYPYPIX": "y"}) == load_settings({})

    def test_variables_that_kubernetes_sets_for_a_service_called_mypypi(self) -> None:
        """
        Variables that Kubernetes sets for a Service called mypypi are ignored.

        A pod beside such a Service gets them, and must start.
        """
        given = {
            "MYPYPI_SERVICE_HOST": "10.0.0.1",
            "MYPYPI_SERVICE_PORT": "80",
            "MYPYPI_SERVICE_PORT_HTTP": "80",
            "MYPYPI_PORT": "tcp://10.0.0.1:80",
            "MYPYPI_PORT_80_TCP": "tcp://10.0.0.1:80",
            "MYPYPI_PORT_80_TCP_ADDR": "10.0.0.1",
            "MYPYPI_REDIS_SERVICE_HOST": "10.0.0.2",
            "MYPYPI_REDIS_PORT": "tcp://10.0.0.2:6379",
        }
        assert load_settings(given) == load_settings({})

    def test_mypypi_port_with_a_number_is_unknown(self) -> None:
        """
        MYPYPI_PORT with a plain number is reported as unknown.

        It does not set the port, as its author may expect.
        """
        (problem,) = problems({"MYPYPI_PORT": "8080"})
        assert problem.startswith("MYPYPI_PORT is not a setting")

    def test_all_problems_at_once_each_on_its_own_line(self) -> None:
        """All problems are reported by one start, each on its own line."""
        given = {
            "MYPYPI_CACHE_TIME": "soon\nlater",
            "WORKERS": "-1",
            "MYPYPI_FILE_STORAGE_DRIVER": "s3",
            "MYPYPI_UPSTREAM_USERNAME": "me",
            "MYPYPI_CASH_TIME": "1",
        }
        with pytest.raises(SettingsError) as caught:
            load_settings(given)
        lines = str(caught.value).splitlines()[1:]
        assert [line.split()[0] for line in lines] == [
            "MYPYPI_CACHE_TIME",
            "WORKERS",
            "MYPYPI_S3_BUCKET",
            "MYPYPI_UPSTREAM_PASSWORD",
            "MYPYPI_CASH_TIME",
        ]
        assert [line.strip() for line in lines] == list(caught.value.problems)


class TestSecrets:
    """A secret is in no message, no repr and no traceback."""

    def test_a_secret_shows_only_when_revealed(self) -> None:
        """Only `reveal` shows a secret. So a secret that is logged by mistake stays hidden."""
        secret = Secret("hunter2")
        assert "hunter2" not in f"{secret} {secret!r} {[secret]} {secret:}"
        assert secret.reveal() == "hunter2"

    def test_the_settings_show_no_secret(self) -> None:
        """The settings can be logged without showing a secret."""
        given = {
            "MYPYPI_UPSTREAM_USERNAME": "me",
            "MYPYPI_UPSTREAM_PASSWORD": "hunter2",
            "MYPYPI_S3_ACCESS_KEY": "hunter2",
            "MYPYPI_S3_SECRET_KEY": "hunter2",
            "MYPYPI_REDIS_URL": "redis://me:hunter2@redis.example",
        }
        settings = load_settings(given)
        assert "hunter2" not in f"{settings} {settings!r} {settings.redis_url}"
        assert settings.upstream_password == settings.s3_access_key == settings.s3_secret_key == Secret("hunter2")

    @pytest.mark.parametrize("name", ["MYPYPI_UPSTREAM_PASSWORD", "MYPYPI_S3_ACCESS_KEY", "MYPYPI_S3_SECRET_KEY"])
    def test_a_malformed_secret_is_not_shown(self, name: str) -> None:
        """
        The message about a malformed secret does not show it.

        A line break at the end, as files have it, is the usual mistake.
        """
        problem = problems({name: "hunter2\n"})[0]
        assert problem.startswith(f"{name} holds (not shown); expected text without a line break")

    @pytest.mark.parametrize(
        "text",
        [
            "https://me:hunter2@index.example",
            "https//me:hunter2@index.example",
            "https://me:hunter2",
            "https://index.example/?token=hunter2",
            "https://index.example/#hunter2",
            "https://me:hunter2@index.example/simple",
        ],
    )
    def test_a_malformed_address_with_a_secret_is_not_shown(self, text: str) -> None:
        """A malformed address is not shown if it may contain a password."""
        assert "hunter2" not in "".join(problems({"MYPYPI_UPSTREAM_URL": text}))

    @pytest.mark.parametrize("bad", ["MYPYPI_REDIS_URL", "MYPYPI_UPSTREAM_PASSWORD", "WORKERS"])
    def test_a_traceback_with_local_variables_shows_no_secret(self, bad: str) -> None:
        """
        A traceback with local variables, as error reporters print it, shows no secret.

        Nor does the error have a cause that would show one.
        """
        error: SettingsError | None = None
        try:
            load_settings(
                {
                    "MYPYPI_UPSTREAM_USERNAME": "me",
                    "MYPYPI_UPSTREAM_PASSWORD": "hunter2",
                    "MYPYPI_REDIS_URL": "redis://me:hunter2@redis.example",
                    bad: "redis://:hunter2\n",
                }
            )
        except SettingsError as caught:
            error = caught
        assert error is not None
        assert (error.__cause__, error.__context__) == (None, None)
        shown = [
            summary.locals or {}
            for summary in traceback.TracebackException.from_exception(error, capture_locals=True).stack
            if summary.filename == loading.__file__
        ]
        assert shown
        assert "hunter2" not in repr(shown)


class TestRedisUrl:
    """Only the three forms of redis-py's URLs are accepted."""

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("redis://redis.example", RedisUrl("tcp", "redis.example", 6379)),
            ("redis://redis.example:6380/2", RedisUrl("tcp", "redis.example", 6380, db=2)),
            ("redis://redis.example?db=3", RedisUrl("tcp", "redis.example", db=3)),
            ("redis://", RedisUrl("tcp", "localhost", 6379)),
            ("redis://[::1]:6380/", RedisUrl("tcp", "::1", 6380)),
            ("rediss://redis.example", RedisUrl("tls", "redis.example")),
            (
                "rediss://me:p%40ss%2Fword@redis.example/1",
                RedisUrl("tls", "redis.example", db=1, username="me", password=Secret("p@ss/word")),
            ),
            ("redis://:hunter2@redis.example", RedisUrl("tcp", "redis.example", password=Secret("hunter2"))),
            ("unix:///run/redis.sock", RedisUrl("unix", path="/run/redis.sock")),
            (
                "unix://me:hunter2@/run/redis.sock?db=4",
                RedisUrl("unix", path="/run/redis.sock", db=4, username="me", password=Secret("hunter2")),
            ),
        ],
    )
    def test_forms(self, text: str, expected: RedisUrl) -> None:
        """Each part of a URL is parsed and percent-decoded."""
        assert RedisUrl.parse(text) == expected

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "redis.example:6379",
            "http://redis.example",
            "redis://:hunter2",
            "redis://me:hunter2@redis.example:port",
            "redis://me:hunter2@redis.example:0",
            "redis://me:hunter2@[redis.example",
            "redis://me:hunter2@[hunter2]/0",
            "redis://me:hunter2@redis.example/first",
            "redis://me:hunter2@redis.example/-1",
            "redis://me:hunter2@redis.example?password=hunter2",
            "redis://me:hunter2@redis.example?hunter2",
            "redis://me:hun#ter2@redis.example",
            "redis://redis.example#hunter2",
            "redis://me:hunter2\n@redis.example",
            "redis://me@redis.example",
            "unix://",
            "unix://run/redis.sock",
            "unix://me:hunter2@/",
        ],
    )
    def test_malformed_urls_are_reported_without_the_password(self, text: str) -> None:
        """A malformed URL is reported without its password. A chained error would show it, so there is none."""
        with pytest.raises(ValueError, match="expected redis://, rediss:// or unix://") as caught:
            RedisUrl.parse(text)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__context__ is None
        if text:
            (problem,) = problems({"MYPYPI_REDIS_URL": text})
            assert problem.startswith("MYPYPI_REDIS_URL holds (not shown); expected redis://")
            assert "hunter2" not in problem

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("redis://me:hunter2@redis.example/1", "redis://redis.example:6379/1"),
            ("rediss://:hunter2@[::1]", "rediss://[::1]:6379/0"),
            ("unix://me:hunter2@/run/redis.sock?db=4", "unix:///run/redis.sock?db=4"),
        ],
    )
    def test_text_shows_the_address_only(self, text: str, shown: str) -> None:
        """The text of a URL is its address only, for logs and health checks."""
        url = RedisUrl.parse(text)
        assert str(url) == shown
        assert "hunter2" not in repr(url)


class TestDocumentation:
    """The help and the README's table are generated from the fields. So neither can be out of date."""

    def test_every_variable_has_help_of_one_sentence(self) -> None:
        """Every variable has help of one sentence. Without help, users would not find it."""
        for variable in variables():
            assert variable.help.endswith("."), variable.name
            assert ". " not in variable.help, variable.name

    def test_the_names_are_those_of_the_tables(self) -> None:
        """The variables are exactly these. A renamed or forgotten field would change what users must write."""
        assert [variable.name for variable in variables()] == list(EXAMPLES)

    def test_the_table_has_a_row_for_each_variable(self) -> None:
        """The table has a row per variable: name, purpose, default."""
        head, *rows = as_rst_table().split("   * - ")[1:]
        assert head.split("\n     - ") == ["Name", "What it sets", "Default\n"]
        assert [row.split("``")[1] for row in rows] == list(EXAMPLES)
        assert {row.count("\n     -") for row in rows} == {2}
        assert (
            "   * - ``WORKERS``\n     - Server processes to spawn.\n     - ``8``; ``mypypi``: ``1``\n" in as_rst_table()
        )

    def test_the_help_has_a_paragraph_for_each_variable(self) -> None:
        """The help has a paragraph per variable, as plain text that fits a terminal."""
        lines = describe().splitlines()
        assert [line for line in lines if not line.startswith(" ")] == list(EXAMPLES)
        assert max(map(len, lines)) < 80
        assert "WORKERS\n    Server processes to spawn. Default: 8; mypypi: 1.\n" in describe()
        assert "`" not in describe()
