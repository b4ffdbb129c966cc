"""The promises of `mypypi.settings`: everything is checked at once, and a secret is never shown."""

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

#: One text for every variable which it takes, other than the default, and what it becomes.
TAKEN: dict[str, tuple[str, object]] = {
    "MYPYPI_PACKAGE_TYPE": ("npm", "npm"),
    "MYPYPI_UPSTREAM_URL": ("https://index.example/", "https://index.example"),
    "MYPYPI_UPSTREAM_USERNAME": ("me", "me"),
    "MYPYPI_UPSTREAM_PASSWORD": ("hunter2", Secret("hunter2")),
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
    "MYPYPI_COLD_FILES": ("redirect", "redirect"),
    "MYPYPI_STRICT_WAIT": ("14", 14),
    "MYPYPI_NEGATIVE_CACHE_TIME": ("5", 5),
    "MYPYPI_UPSTREAM_CONCURRENCY": ("3", 3),
    "MYPYPI_UPSTREAM_TIMEOUT": ("30", 30),
    "MYPYPI_LOG_FORMAT": ("json", "json"),
    "MYPYPI_LOG_LEVEL": ("warn", "warn"),
    "MYPYPI_CONNECTIONS_PER_ADDRESS": ("20", 20),
    "MYPYPI_DRAIN_TIME": ("0", 0),
    "MYPYPI_STALE_AFTER": ("1", 1),
    "MYPYPI_HOT_PAGES_BYTES": ("1000000", 1_000_000),
}


def problems(environment: dict[str, str]) -> tuple[str, ...]:
    """What `Settings.load` says is wrong; a test that expects a problem fails here where there is none."""
    with pytest.raises(SettingsError) as caught:
        load_settings(environment)
    return caught.value.problems


class TestDefaults:
    """An empty environment makes the settings of the documentation's tables."""

    def test_without_any_variable(self) -> None:
        """What a user who sets nothing gets from the server and the worker."""
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
        """`twistd mypypi` works on a laptop without a Redis, and nobody else can reach it."""
        settings = load_settings({}, embedded=True)
        assert settings.listen == "tcp:8080:interface=127.0.0.1"
        assert settings.workers == 1
        assert settings.redis_url is None

    def test_embedded_yields_to_what_is_set(self) -> None:
        """The embedded defaults are defaults."""
        given = {"MYPYPI_LISTEN": "tcp:81", "WORKERS": "3", "MYPYPI_REDIS_URL": "redis://redis.example"}
        settings = load_settings(given, embedded=True)
        assert (settings.listen, settings.workers) == ("tcp:81", 3)
        assert settings.redis_url == RedisUrl("tcp", "redis.example")

    @pytest.mark.parametrize("embedded", [False, True])
    def test_an_empty_text_is_as_good_as_none(self, embedded: bool) -> None:  # noqa: FBT001 - pytest's parameter
        """Compose files pass empty texts for variables that nobody set."""
        empty = dict.fromkeys([*TAKEN, "MYPYPI_NO_SUCH_NAME"], "")
        assert load_settings(empty, embedded=embedded) == load_settings({}, embedded=embedded)

    @pytest.mark.parametrize(
        ("package_type", "page"),
        [
            ("pypi", purl2url.get_repo_url("pkg:pypi/x")),
            ("npm", purl2url.get_download_url("pkg:npm/x@1")),
        ],
    )
    def test_the_default_upstream_is_where_purl2url_places_packages(self, package_type: str, page: str) -> None:
        """No registry's host is written down here: packageurl-python knows them."""
        address = urlsplit(default_upstream(package_type))
        assert (address.scheme, address.netloc) == ("https", urlsplit(page).netloc)
        assert address.netloc
        assert (address.path, address.query) == ("", "")

    @pytest.mark.parametrize("package_type", ["pypi", "npm"])
    def test_upstream_is_the_public_one_of_the_package_type(self, package_type: str) -> None:
        """A deployment that says what it serves needs not say whose."""
        settings = load_settings({"MYPYPI_PACKAGE_TYPE": package_type})
        assert settings.upstream_url == default_upstream(package_type)

    def test_the_settings_are_frozen(self) -> None:
        """Nobody changes a setting behind another's back."""
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            load_settings({}).workers = 9


class TestDirectories:
    """Where files lie does not depend on where a later part of the program stands."""

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
        """A relative path of files is taken from the data directory when that is set, else from here."""
        settings = load_settings({"MYPYPI_DATA_DIRECTORY": data, "MYPYPI_FILE_STORAGE_DIRECTORY": files})
        assert settings.data_directory == tmp_path / expected_data
        assert settings.file_storage_directory == tmp_path / expected_files


class TestOneVariable:
    """A variable takes what the table says, and says what it expects where it does not."""

    def test_every_variable_is_read(self) -> None:
        """No field is forgotten, and each ends up where its name says."""
        settings = load_settings({name: text for name, (text, _) in TAKEN.items()})
        values = [getattr(settings, name.removeprefix("MYPYPI_").lower()) for name in TAKEN]
        assert [value for _, value in TAKEN.values()] == values

    @pytest.mark.parametrize("text", ["true", "1", "yes", "on", "TRUE", "Yes"])
    def test_ways_to_say_true(self, text: str) -> None:
        """Whoever configures need not remember which of them it was."""
        assert load_settings({"MYPYPI_UPSTREAM_STRICT": text}).upstream_strict is True

    @pytest.mark.parametrize("text", ["false", "0", "no", "off", "False"])
    def test_ways_to_say_false(self, text: str) -> None:
        """As for true; and 'false' is no true text."""
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
            ("MYPYPI_STALE_AFTER", "15", "from 1 to 14"),
            ("MYPYPI_HOT_PAGES_BYTES", "64M", "a whole number of bytes from 1000000"),
        ],
    )
    def test_says_what_it_holds_and_what_is_expected(self, name: str, text: str, expected: str) -> None:
        """The message is enough to mend the mistake."""
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
        """A typing mistake in an address shows at the start and not at the first request."""
        (problem,) = problems({name: text})
        assert problem.startswith(f"{name} holds ")
        assert "http:// or https:// address with a host" in problem

    @pytest.mark.parametrize("text", ["http://127.0.0.1:3141/root/pypi", "https://[::1]:8443", "https://index.example"])
    def test_addresses_that_are_well_formed(self, text: str) -> None:
        """Ports, IPv6 and a path belong to an address; slashes at its end don't."""
        assert load_settings({"MYPYPI_UPSTREAM_URL": f"{text}//"}).upstream_url == text

    def test_credentials_do_not_belong_in_the_upstream_url(self) -> None:
        """They would show in logs and links; the message says where they belong, and does not show them."""
        (problem,) = problems({"MYPYPI_UPSTREAM_URL": "https://me:hunter2@index.example"})
        assert "hunter2" not in problem
        assert "MYPYPI_UPSTREAM_USERNAME" in problem
        assert "MYPYPI_UPSTREAM_PASSWORD" in problem

    @pytest.mark.parametrize(
        "text", ["tcp:80", "tcp6:80", "unix:/run/mypypi.sock", "systemd:domain=INET:index=0", "ssl:443:privateKey=none"]
    )
    def test_listen_takes_endpoints_that_this_process_could_not_open(self, text: str) -> None:
        """A worker reads the settings too, and has neither the server's sockets nor its certificate."""
        assert load_settings({"MYPYPI_LISTEN": text}).listen == text

    @pytest.mark.parametrize("text", ["80", "tcp", "tcp:", "tcp:http", "tcp:80:port=1", "tcp:80\\", "carrier-pigeon:1"])
    def test_listen_is_a_server_endpoint(self, text: str) -> None:
        """What Twisted could not parse is reported together with everything else."""
        (problem,) = problems({"MYPYPI_LISTEN": text})
        assert problem.startswith(f"MYPYPI_LISTEN holds {text!r}; expected a Twisted server endpoint")

    def test_a_username_has_no_colon(self) -> None:
        """HTTP basic auth could not tell where the password begins."""
        (problem,) = problems({"MYPYPI_UPSTREAM_USERNAME": "me:too", "MYPYPI_UPSTREAM_PASSWORD": "hunter2"})
        assert "without a colon" in problem


class TestTogether:
    """What variables say about one another is checked, and all that is wrong is said at once."""

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
        """Neither half means anything alone."""
        (problem,) = problems({present: "x", absent: ""})
        assert problem.startswith(f"{absent} is not set; expected ")
        assert present in problem

    def test_s3_needs_a_bucket(self) -> None:
        """Not the first upload, but the start, says so."""
        (problem,) = problems({"MYPYPI_FILE_STORAGE_DRIVER": "s3"})
        assert problem.startswith("MYPYPI_S3_BUCKET is not set; expected ")
        assert load_settings({"MYPYPI_FILE_STORAGE_DRIVER": "s3", "MYPYPI_S3_BUCKET": "wheels"}).s3_bucket == "wheels"

    @pytest.mark.parametrize("slash", ["", "/"])
    def test_the_upstream_of_an_index_is_named_without_simple(self, slash: str) -> None:
        """Copied from pip's configuration it ends in /simple, which would be asked for twice."""
        text = f"https://index.example/root/simple{slash}"
        (problem,) = problems({"MYPYPI_UPSTREAM_URL": text})
        assert problem == f"MYPYPI_UPSTREAM_URL holds {text!r}; expected the same without the trailing /simple"

    def test_an_npm_registry_may_be_called_simple(self) -> None:
        """In npm mode the path means nothing of the kind."""
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
        """A mistyped name is no silent default; its value may be a secret whose name was mistyped."""
        (problem,) = problems({unknown: "hunter2"})
        assert problem == f"{unknown} is not a setting; the nearest name is {nearest}"

    def test_other_programs_variables_are_none_of_ours(self) -> None:
        """An environment is full of them."""
        assert load_settings({"HOME": "/", "PYPI_URL": "x", "MYPYPIX": "y"}) == load_settings({})

    def test_variables_that_kubernetes_sets_for_a_service_called_mypypi(self) -> None:
        """A pod beside such a Service gets them unasked, and must start."""
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

    def test_a_port_that_a_person_set_is_unknown(self) -> None:
        """MYPYPI_PORT=8080 does not do what whoever wrote it thinks."""
        (problem,) = problems({"MYPYPI_PORT": "8080"})
        assert problem.startswith("MYPYPI_PORT is not a setting")

    def test_all_problems_at_once_each_on_its_own_line(self) -> None:
        """One start is enough to learn all that is wrong."""
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
        """Whoever logs one by mistake logs nothing."""
        secret = Secret("hunter2")
        assert "hunter2" not in f"{secret} {secret!r} {[secret]} {secret:}"
        assert secret.reveal() == "hunter2"

    def test_the_settings_show_none_of_theirs(self) -> None:
        """The settings can be logged as they are."""
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
    def test_a_bad_one_is_reported_without_it(self, name: str) -> None:
        """A line break at the end, as files have it, is the usual mistake."""
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
    def test_a_bad_address_is_not_shown_where_it_may_hold_one(self, text: str) -> None:
        """People put passwords into addresses."""
        assert "hunter2" not in "".join(problems({"MYPYPI_UPSTREAM_URL": text}))

    @pytest.mark.parametrize("bad", ["MYPYPI_REDIS_URL", "MYPYPI_UPSTREAM_PASSWORD", "WORKERS"])
    def test_a_traceback_with_local_variables_shows_none(self, bad: str) -> None:
        """Error reporters print every frame's variables, and what an error was raised from."""
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
    """The three forms of redis-py's URLs, and nothing that looks like them."""

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
        """Each part is where its users look for it, percent-decoded."""
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
    def test_others_are_reported_without_the_password(self, text: str) -> None:
        """Not in the message, nor in an error which it came from."""
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
    def test_shows_the_address_alone(self, text: str, shown: str) -> None:
        """So that it can stand in logs and health checks."""
        url = RedisUrl.parse(text)
        assert str(url) == shown
        assert "hunter2" not in repr(url)


class TestDocumentation:
    """The help and the README's table are made of the fields, so neither can be out of step."""

    def test_every_variable_has_help_of_one_sentence(self) -> None:
        """A field without help would be a setting that nobody finds."""
        for variable in variables():
            assert variable.help.endswith("."), variable.name
            assert ". " not in variable.help, variable.name

    def test_the_names_are_those_of_the_tables(self) -> None:
        """A renamed or forgotten field changes what users must write."""
        assert [variable.name for variable in variables()] == list(TAKEN)

    def test_the_table_has_a_row_for_each(self) -> None:
        """Three cells each: name, what it sets, default."""
        head, *rows = as_rst_table().split("   * - ")[1:]
        assert head.split("\n     - ") == ["Name", "What it sets", "Default\n"]
        assert [row.split("``")[1] for row in rows] == list(TAKEN)
        assert {row.count("\n     -") for row in rows} == {2}
        assert (
            "   * - ``WORKERS``\n     - Server processes to spawn.\n     - ``8``; ``mypypi``: ``1``\n" in as_rst_table()
        )

    def test_the_help_has_a_paragraph_for_each(self) -> None:
        """Plain text, which fits a terminal."""
        lines = describe().splitlines()
        assert [line for line in lines if not line.startswith(" ")] == list(TAKEN)
        assert max(map(len, lines)) < 80
        assert "WORKERS\n    Server processes to spawn. Default: 8; mypypi: 1.\n" in describe()
        assert "`" not in describe()
