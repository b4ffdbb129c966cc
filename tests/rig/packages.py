"""Makes wheels, sdists and npm tarballs that pip, uv and npm install.

The same arguments always give the same bytes. Knows the package formats. Must never know an index, a URL or the
network.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterable, Mapping

from attrs import field, frozen
from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename

#: A build backend without dependencies, so that an sdist installs from an index that has no other package.
_BACKEND = """\
import base64, hashlib, os, zipfile

NAME, METADATA, WHEEL, MODULES = {name!r}, {metadata!r}, {wheel!r}, {modules!r}


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    info = NAME + ".dist-info/"
    files = dict(MODULES)
    files[info + "METADATA"] = METADATA
    files[info + "WHEEL"] = WHEEL
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += "%s,sha256=%s,%d\\n" % (path, digest, len(text.encode()))
    files[info + "RECORD"] = record + info + "RECORD,,\\n"
    with zipfile.ZipFile(os.path.join(wheel_directory, NAME + "-py3-none-any.whl"), "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return NAME + "-py3-none-any.whl"


def build_sdist(sdist_directory, config_settings=None):
    raise NotImplementedError("this is an sdist already")
"""

_PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""

_SETUP = """\
from setuptools import setup

setup(
    name={name!r},
    version={version!r},
    install_requires={requires!r},
    python_requires={python!r},
    py_modules={modules!r},
)
"""


@frozen
class Artifact:
    """
    A package file of a Python project.

    `metadata` is the content of its ``.metadata`` file (PEP 658), or None for an sdist.
    """

    filename: str
    content: bytes = field(repr=False)
    metadata: bytes | None = field(default=None, repr=False)
    requires_python: str | None = None
    sha256: str = field(init=False)

    @sha256.default
    def _sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return len(self.content)

    @property
    def project(self) -> str:
        """The normalised name."""
        return self._name_and_version()[0]

    @property
    def version(self) -> str:
        """The normalised version."""
        return self._name_and_version()[1]

    def _name_and_version(self) -> tuple[str, str]:
        if self.filename.endswith(".whl"):
            name, version, _, _ = parse_wheel_filename(self.filename)
        else:
            name, version = parse_sdist_filename(self.filename)
        return name, str(version)


@frozen
class Tarball:
    """A published npm package: a .tgz, and its package.json as `manifest`."""

    manifest: Mapping[str, object]
    content: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """The name with its scope."""
        return str(self.manifest["name"])

    @property
    def version(self) -> str:
        return str(self.manifest["version"])

    @property
    def filename(self) -> str:
        """The file name that npm gives it, without the scope."""
        return f"{self.name.rpartition('/')[2]}-{self.version}.tgz"

    @property
    def integrity(self) -> str:
        """
        The integrity string with SHA-512, as npm computes it.

        See Subresource Integrity, section 3.5.
        """
        return "sha512-" + base64.b64encode(hashlib.sha512(self.content).digest()).decode()

    @property
    def shasum(self) -> str:
        """SHA-1 in hex, which npm used before `integrity`."""
        return hashlib.sha1(self.content, usedforsecurity=False).hexdigest()


def incompressible(size: int, seed: str = "") -> bytes:
    """Return `size` incompressible bytes; the same seed gives the same bytes."""
    return hashlib.shake_256(seed.encode()).digest(size) if size else b""


def make_wheel(
    name: str,
    version: str = "1.0",
    *,
    requires: Iterable[str] = (),
    requires_python: str | None = None,
    modules: Mapping[str, str] | None = None,
    padding: int = 0,
    tag: str = "py3-none-any",
) -> Artifact:
    """
    Make a wheel with these modules and `padding` more bytes.

    `modules` maps file names to their source. The wheel has the three files of its dist-info.
    """
    stem = f"{_escaped(name)}-{version}"
    metadata = _metadata(name, version, requires, requires_python)
    files = {path: source.encode() for path, source in (modules or {}).items()}
    if padding:
        files[f"{_escaped(name)}_padding.bin"] = incompressible(padding, stem)
    files[f"{stem}.dist-info/METADATA"] = metadata
    files[f"{stem}.dist-info/WHEEL"] = _wheel(tag)
    files[f"{stem}.dist-info/RECORD"] = _record(files, f"{stem}.dist-info/RECORD")
    return Artifact(f"{stem}-{tag}.whl", _zip(files), metadata, requires_python)


def make_sdist(
    name: str,
    version: str = "1.0",
    *,
    requires: Iterable[str] = (),
    requires_python: str | None = None,
    modules: Mapping[str, str] | None = None,
    padding: int = 0,
    legacy: bool = False,
) -> Artifact:
    """
    Make a tar.gz with PKG-INFO and a pyproject.toml.

    It contains its own build backend, so that it installs without any other package. With `legacy`, it has a setup.py
    instead, for which the installing environment needs setuptools.
    """
    requires = list(requires)
    stem = f"{_escaped(name)}-{version}"
    metadata = _metadata(name, version, requires, requires_python)
    modules = dict(modules or {})
    files = {path: source.encode() for path, source in modules.items()} | {"PKG-INFO": metadata}
    if legacy:
        names = [path.removesuffix(".py") for path in modules]
        setup = _SETUP.format(name=name, version=version, requires=requires, python=requires_python, modules=names)
        files["setup.py"] = setup.encode()
    else:
        wheel = _wheel("py3-none-any").decode()
        backend = _BACKEND.format(name=stem, metadata=metadata.decode(), wheel=wheel, modules=modules)
        files |= {"pyproject.toml": _PYPROJECT.encode(), "backend.py": backend.encode()}
    if padding:
        files["padding.bin"] = incompressible(padding, stem)
    return Artifact(f"{stem}.tar.gz", _tar_gz(stem, files), None, requires_python)


def make_tarball(
    name: str,
    version: str = "1.0.0",
    *,
    dependencies: Mapping[str, str] | None = None,
    source: str = "",
    padding: int = 0,
    **manifest: object,
) -> Tarball:
    """
    Make a .tgz with a package.json and an index.js.

    `manifest` holds further fields of the package.json. The index.js exports the version and runs `source`. The tarball
    has `padding` more bytes.
    """
    document = {"name": name, "version": version, "description": "made by a test", "main": "index.js", **manifest}
    if dependencies:
        document["dependencies"] = dict(dependencies)
    files = {
        "package.json": json.dumps(document, indent=2).encode(),
        "index.js": f"module.exports = {json.dumps(version)};\n{source}".encode(),
    }
    if padding:
        files["padding.bin"] = incompressible(padding, f"{name}-{version}")
    return Tarball(document, _tar_gz("package", files))


def _escaped(name: str) -> str:
    """
    A name in the form for file names.

    See the binary distribution format, "Escaping and Unicode".
    """
    return re.sub(r"[-_.]+", "_", canonicalize_name(name))


def _metadata(name: str, version: str, requires: Iterable[str], requires_python: str | None) -> bytes:
    lines = ["Metadata-Version: 2.2", f"Name: {name}", f"Version: {version}", "Summary: made by a test"]
    if requires_python is not None:
        lines.append(f"Requires-Python: {requires_python}")
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    return "\n".join([*lines, ""]).encode()


def _wheel(tag: str) -> bytes:
    return f"Wheel-Version: 1.0\nGenerator: mypypi-tests\nRoot-Is-Purelib: true\nTag: {tag}\n".encode()


def _record(files: Mapping[str, bytes], itself: str) -> bytes:
    lines = [f"{path},sha256={_record_digest(content)},{len(content)}" for path, content in files.items()]
    return "\n".join([*lines, f"{itself},,", ""]).encode()


def _record_digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _zip(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path)  # its default date is 1980, so that the bytes do not depend on the clock
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return buffer.getvalue()


def _tar_gz(directory: str, files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(filename="", fileobj=buffer, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path, content in files.items():
            entry = tarfile.TarInfo(f"{directory}/{path}")
            entry.size = len(content)
            entry.mode = 0o644
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
