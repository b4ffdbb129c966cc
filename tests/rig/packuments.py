"""The documents of an npm registry: packuments, versions, signatures, attestations.

Knows the npm registry's documentation ("Package Metadata", "ECDSA registry signatures"). Must never know a request.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from urllib.parse import quote

from attrs import define, field, frozen
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .packages import Tarball

FULL = "application/json"
ABBREVIATED = "application/vnd.npm.install-v1+json"

#: The time at which the first package is published.
EPOCH = datetime(2026, 1, 1, tzinfo=timezone.utc)

#: The fields of the "Abbreviated version object", and those that the registry has added since.
_ABBREVIATED_FIELDS = {
    "name", "version", "deprecated", "dependencies", "optionalDependencies", "devDependencies", "bundleDependencies",
    "peerDependencies", "peerDependenciesMeta", "acceptDependencies", "bin", "directories", "dist", "engines",
    "_hasShrinkwrap", "hasInstallScript", "os", "cpu", "libc", "funding",
}  # fmt: skip
_INSTALL_SCRIPTS = {"preinstall", "install", "postinstall"}
_PROVENANCE = "https://slsa.dev/provenance/v1"


@define
class Version:
    """
    A listed version, with its tarball at `url` and the registry's `signature`.

    `extra` and `dist` are added to its document.
    """

    tarball: Tarball
    url: str
    extra: Mapping[str, object]
    dist: Mapping[str, object]
    published: datetime
    signature: Mapping[str, str]
    attestations_url: str = ""

    def document(self) -> dict[str, object]:
        """The version's object: its package.json and the registry's additions."""
        dist: dict[str, object] = {
            "integrity": self.tarball.integrity,
            "shasum": self.tarball.shasum,
            "tarball": self.url,
            "fileCount": 2,
            "unpackedSize": len(self.tarball.content),
            "signatures": [dict(self.signature)],
        }
        if self.attestations_url:
            dist["attestations"] = {"url": self.attestations_url, "provenance": {"predicateType": _PROVENANCE}}
        dist.update(self.dist)
        return {
            **self.tarball.manifest,
            "_id": spec(self.tarball),
            "_nodeVersion": "22.0.0",
            "_npmUser": {"name": "someone", "email": "someone@people.example"},
            "dist": {name: value for name, value in dist.items() if value is not None},
            **self.extra,
        }


@define
class Package:
    """
    A package's versions and tags.

    `extra` holds further fields of its full packument.
    """

    name: str
    modified: datetime
    versions: dict[str, Version] = field(factory=dict)
    tags: dict[str, str] = field(factory=dict)
    extra: dict[str, object] = field(factory=dict)

    def full(self) -> dict[str, object]:
        """The full packument."""
        published = {version: iso(each.published) for version, each in self.versions.items()}
        return {
            "_id": self.name,
            "_rev": "1-0123456789abcdef",
            "name": self.name,
            "dist-tags": dict(self.tags),
            "versions": {version: each.document() for version, each in self.versions.items()},
            "time": {"created": iso(EPOCH), "modified": iso(self.modified), **published},
            "maintainers": [{"name": "someone", "email": "someone@people.example"}],
            "license": "MIT",
            "readme": "# made by a test",
            "readmeFilename": "README.md",
            **self.extra,
        }

    def abbreviated(self) -> dict[str, object]:
        """The abbreviated packument, with the fields that an installer needs."""
        return {
            "name": self.name,
            "dist-tags": dict(self.tags),
            "versions": {version: _abbreviated(each.document()) for version, each in self.versions.items()},
            "modified": iso(self.modified),
        }

    def search_result(self) -> dict[str, object]:
        """The package's entry in a search result."""
        someone = {"username": "someone", "email": "someone@people.example"}
        return {
            "name": self.name,
            "version": self.tags.get("latest"),
            "description": "made by a test",
            "keywords": [],
            "maintainers": [someone],
            "publisher": someone,
            "date": iso(self.modified),
            "links": {},
        }

    def find(self, wanted: str) -> Version | None:
        """Return a version by its number or its tag."""
        return self.versions.get(self.tags.get(wanted, wanted))


@frozen
class Signer:
    """A registry's signing key, generated anew for each registry."""

    _key: ec.EllipticCurvePrivateKey = field(factory=lambda: ec.generate_private_key(ec.SECP256R1()), repr=False)

    def sign(self, tarball: Tarball) -> dict[str, str]:
        """Return an entry of ``dist.signatures``."""
        signature = self._key.sign(f"{spec(tarball)}:{tarball.integrity}".encode(), ec.ECDSA(SHA256()))
        return {"keyid": self._id, "sig": _base64(signature)}

    def keys(self) -> dict[str, object]:
        """The document of ``/-/npm/v1/keys``."""
        kind = "ecdsa-sha2-nistp256"
        key = {"expires": None, "keyid": self._id, "keytype": kind, "scheme": kind, "key": _base64(self._public)}
        return {"keys": [key]}

    @property
    def _public(self) -> bytes:
        return self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def _id(self) -> str:
        return f"SHA256:{_base64(hashlib.sha256(self._public).digest())}"


def attestations(version: Version) -> dict[str, object] | None:
    """
    The attestations of an attested version, without signatures.

    The format is the registry's.
    """
    if not version.attestations_url:
        return None
    subject = {"name": f"pkg:npm/{quote(spec(version.tarball))}"}
    payload = _base64(json.dumps({"subject": [subject], "predicateType": _PROVENANCE}).encode())
    envelope = {"payload": payload, "payloadType": "application/vnd.in-toto+json", "signatures": []}
    bundle = {"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "dsseEnvelope": envelope}
    return {"attestations": [{"predicateType": _PROVENANCE, "bundle": bundle}]}


def spec(tarball: Tarball) -> str:
    """Return ``name@version``."""
    return f"{tarball.name}@{tarball.version}"


def iso(moment: datetime) -> str:
    """A date in JavaScript's format."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _abbreviated(version: Mapping[str, object]) -> dict[str, object]:
    short = {name: value for name, value in version.items() if name in _ABBREVIATED_FIELDS}
    scripts = version.get("scripts")
    if isinstance(scripts, dict) and _INSTALL_SCRIPTS & set(scripts):
        short["hasInstallScript"] = True
    return short


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
