"""A fake package index on loopback.

It answers like PyPI, or like a simpler index. Knows the Simple Repository API (PEP 503, 629, 658, 691, 700, 714, 740,
792) from the serving side. Must never import the code under test, or its parsers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from attrs import define, field
from packaging.utils import canonicalize_name

from .host import FileHost, compressed, or_not_modified
from .packages import Artifact
from .pages import HTML, JSON, TEXT, Renderer, dump, negotiated, project_html, root_html
from .wire import Reply, Request

_SERIAL = 10_000


@define
class _Listed:
    artifact: Artifact
    host: FileHost
    path: str
    yanked: bool | str
    extra: dict[str, object]
    uploaded: str


@define
class _Project:
    name: str
    serial: int = 0
    files: dict[str, _Listed] = field(factory=dict)
    extra: dict[str, object] = field(factory=dict)


class FakeIndex(FileHost):
    """
    An index with pages under ``/simple/`` and ``/pypi/``, and files under ``/packages/``.

    `json_only` and `html_only` make it send only that form, regardless of Accept. With `plain`, it sends no ETag, 304,
    gzip, core-metadata or provenance, supports no ranges, and ``_last-serial`` is a string. Pages can be changed at any
    time.
    """

    def __init__(
        self,
        *,
        json_only: bool = False,
        html_only: bool = False,
        plain: bool = False,
        ranges: bool = True,
        auth: tuple[str, str] | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        self.json_only = json_only
        self.html_only = html_only
        self._projects: dict[str, _Project] = {}
        self._names: list[str] = []
        self._serial = _SERIAL
        super().__init__(auth=auth, plain=plain, ranges=ranges, address=address)

    # Packages

    def add(
        self,
        artifact: Artifact,
        *,
        at: FileHost | None = None,
        yanked: bool | str = False,
        extra: Mapping[str, object] | None = None,
    ) -> str:
        """
        List a file and serve it; return its URL.

        It is served here or on the host `at`. The fields in `extra` are added to its JSON entry and replace fields of
        the same name: a false digest, for example, or a field that no PEP defines yet.
        """
        host = at or self
        name = hashlib.blake2b(artifact.content, digest_size=32).hexdigest()
        path = f"/packages/{name[:2]}/{name[2:4]}/{name[4:]}/{artifact.filename}"
        with self.changed:
            self._serial += 1
            project = self._projects.setdefault(artifact.project, _Project(artifact.project))
            project.serial = self._serial
            uploaded = f"2026-01-01T00:00:00.{self._serial:06}Z"
            project.files[artifact.filename] = _Listed(artifact, host, path, yanked, dict(extra or {}), uploaded)
        self._put(host, path, artifact)
        return host.url + path

    def add_all(self, *artifacts: Artifact) -> None:
        """List several files and serve them here."""
        for artifact in artifacts:
            self.add(artifact)

    def replace(self, artifact: Artifact) -> str:
        """
        Replace the content of a listed file; return its URL.

        The new artifact has the same file name; its digest replaces the old one.
        """
        listed = self._listed(artifact.filename)
        with self.changed:
            self._serial += 1
            listed.artifact = artifact
            self._projects[artifact.project].serial = self._serial
        self._put(listed.host, listed.path, artifact)
        return listed.host.url + listed.path

    def remove(self, filename: str) -> None:
        """Stop listing and serving this file."""
        listed = self._listed(filename)
        with self.changed:
            self._serial += 1
            project = self._projects[listed.artifact.project]
            project.serial = self._serial
            del project.files[filename]
        listed.host.drop(listed.path)
        listed.host.drop(f"{listed.path}.metadata")

    def remove_project(self, name: str) -> None:
        """Answer 404 for this project's pages, but continue to serve its files."""
        with self.changed:
            del self._projects[canonicalize_name(name)]

    def describe(self, name: str, extra: Mapping[str, object]) -> None:
        """
        Add these fields, such as its status, to a project's JSON page.

        The project is created if there is none.
        """
        with self.changed:
            self._serial += 1
            key = canonicalize_name(name)
            project = self._projects.setdefault(key, _Project(key))
            project.extra.update(extra)
            project.serial = self._serial

    def add_names(self, names: Iterable[str]) -> None:
        """
        Add projects without a page to the root list.

        This makes the list as long as PyPI's.
        """
        with self.changed:
            self._names.extend(names)

    def url_of(self, filename: str) -> str:
        """The absolute URL of a listed file."""
        listed = self._listed(filename)
        return listed.host.url + listed.path

    def path_of(self, filename: str) -> str:
        """The path of a listed file on its host, for `count` and `fault`."""
        return self._listed(filename).path

    def _listed(self, filename: str) -> _Listed:
        with self.changed:
            for project in self._projects.values():
                if filename in project.files:
                    return project.files[filename]
        raise KeyError(filename)

    def _put(self, host: FileHost, path: str, artifact: Artifact) -> None:
        host.put(path, artifact.content)
        if artifact.metadata is not None:
            host.put(f"{path}.metadata", artifact.metadata, encodable=True)

    # Replies

    def answer(self, request: Request) -> Reply:
        """Answer with a page, or else as a file host."""
        if request.method in ("GET", "HEAD"):
            with self.changed:
                match unquote(request.path).split("/")[1:]:
                    case ["simple", ""]:
                        return self._page(request, self._root(), root_html)
                    case ["simple"]:
                        return _moved("/simple/")
                    case ["simple", name] | ["simple", name, ""]:
                        return self._simple(request, name)
                    case ["pypi", name, "json"]:
                        return self._legacy(request, name, None)
                    case ["pypi", name, version, "json"]:
                        return self._legacy(request, name, version)
        return super().answer(request)

    def _simple(self, request: Request, name: str) -> Reply:
        project = self._projects.get(canonicalize_name(name))
        if project is None:
            return Reply.text(404)
        if request.path != f"/simple/{canonicalize_name(name)}/":
            return _moved(f"/simple/{canonicalize_name(name)}/")
        page = {
            "alternate-locations": [],
            "files": [self._entry(listed) for listed in project.files.values()],
            "meta": {"_last-serial": self._serial_of(project.serial), "api-version": "1.4"},
            "name": project.name,
            "project-status": {"status": "active"},
            "versions": sorted({listed.artifact.version for listed in project.files.values()}),
        }
        return self._page(request, page | project.extra, project_html)

    def _entry(self, listed: _Listed) -> dict[str, object]:
        """A file's entry in the JSON page (PEP 691, 700, 714, 740)."""
        artifact = listed.artifact
        entry: dict[str, object] = {
            "filename": artifact.filename,
            "hashes": {"sha256": artifact.sha256},
            "requires-python": artifact.requires_python,
            "size": artifact.size,
            "upload-time": listed.uploaded,
            "url": listed.host.url + listed.path,
            "yanked": listed.yanked,
        }
        if not self.plain:
            digest = None if artifact.metadata is None else hashlib.sha256(artifact.metadata).hexdigest()
            metadata = {"sha256": digest} if digest else False
            entry |= {"core-metadata": metadata, "data-dist-info-metadata": metadata, "provenance": None}
        return entry | listed.extra

    def _root(self) -> dict[str, object]:
        known = [(project.name, project.serial) for project in self._projects.values()]
        listed = [*known, *((name, _SERIAL) for name in self._names)]
        return {
            "meta": {"_last-serial": self._serial_of(self._serial), "api-version": "1.4"},
            "projects": [{"_last-serial": self._serial_of(serial), "name": name} for name, serial in listed],
        }

    def _serial_of(self, serial: int) -> int | str:
        return str(serial) if self.plain else serial

    def _legacy(self, request: Request, name: str, version: str | None) -> Reply:
        """
        A project, or one version of it, in PyPI's older JSON API.

        That API predates PEP 691.
        """
        project = self._projects.get(canonicalize_name(name))
        releases: dict[str, list[dict[str, object]]] = {}
        for listed in project.files.values() if project else ():
            releases.setdefault(listed.artifact.version, []).append(_legacy_entry(listed))
        shown = version or max(releases, default=None)
        if project is None or shown is None or shown not in releases:
            return Reply.text(404)
        document: dict[str, object] = {
            "info": {"name": project.name, "version": shown, "summary": "made by a test", "yanked": False},
            "last_serial": project.serial,
            "urls": releases[shown],
            "vulnerabilities": [],
        }
        if version is None:
            document["releases"] = releases
        return self._finish(request, "application/json", dump(document), project.serial)

    def _page(self, request: Request, page: dict[str, object], render: Renderer) -> Reply:
        form = JSON if self.json_only else TEXT if self.html_only else negotiated(request.headers["Accept"] or "*/*")
        if form is None:
            return Reply.text(406)
        meta = page["meta"]
        assert isinstance(meta, dict)
        if form == JSON:
            return self._finish(request, JSON, dump(page), meta["_last-serial"])
        content_type = HTML if form == HTML else "text/html; charset=utf-8"
        return self._finish(request, content_type, render(page).encode(), meta["_last-serial"])

    def _finish(self, request: Request, content_type: str, body: bytes, serial: object) -> Reply:
        """Add PyPI's headers (validator, freshness, gzip) unless the index is plain."""
        headers = {"Content-Type": content_type, "Content-Length": str(len(body))}
        if self.plain:
            return Reply(200, headers, body)
        etag = hashlib.blake2b(content_type.encode() + body, digest_size=12).hexdigest()
        headers |= {
            "ETag": f'"{etag}"',
            "Cache-Control": "max-age=600, public",
            "X-PyPI-Last-Serial": str(serial),
        }
        return or_not_modified(request, compressed(request, Reply(200, headers, body)))


def _moved(location: str) -> Reply:
    return Reply.text(301, headers={"Location": location})


def _legacy_entry(listed: _Listed) -> dict[str, object]:
    artifact = listed.artifact
    wheel = artifact.filename.endswith(".whl")
    return {
        "digests": {
            "blake2b_256": hashlib.blake2b(artifact.content, digest_size=32).hexdigest(),
            "md5": hashlib.md5(artifact.content, usedforsecurity=False).hexdigest(),
            "sha256": artifact.sha256,
        },
        "filename": artifact.filename,
        "packagetype": "bdist_wheel" if wheel else "sdist",
        "python_version": "py3" if wheel else "source",
        "requires_python": artifact.requires_python,
        "size": artifact.size,
        "upload_time_iso_8601": listed.uploaded,
        "url": listed.host.url + listed.path,
        "yanked": bool(listed.yanked),
        "yanked_reason": listed.yanked if isinstance(listed.yanked, str) else None,
    }
