"""Writes what was measured as a page, ``RESULTS.rst``, and a picture, ``ratios.svg``. Knows figures, not servers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from attrs import frozen

_HEAD = """\
What cached pages cost
======================

Written by ``python -m benchmarks hot --results DIR`` on {date}: one connection asks each server for the same, in turn.
nginx serves the bytes that MyPyPi answers, from files, so it is the limit. The processor time is that of the server
with all its processes, as the kernel accounts it.

{machine}

.. image:: ratios.svg
   :alt: Processor time of a request, as a multiple of nginx's

.. list-table::
   :header-rows: 1
   :widths: auto

   * - Case
     - Server
     - CPU of a request, µs
     - of nginx's
     - median wait, µs
     - 99 % wait, µs
     - bytes
"""
_COLOURS = {"mypypi": "#2a6f97", "proxpi": "#c9a227", "verdaccio": "#a44a3f"}


@frozen
class Row:
    """What one server needed for a request of a case: microseconds, and the bytes of a body."""

    case: str
    server: str
    cost: float
    of_nginx: float
    median: float
    p99: float
    bytes: int

    def __str__(self) -> str:
        """The line in a table of plain text."""
        times = f"{self.median:8.0f} {self.p99:8.0f}"
        return f"{self.case:34} {self.server:10} {self.cost:9.1f} {self.of_nginx:8.2f} {times} {self.bytes:8}"


def write(rows: Sequence[Row], directory: Path, others: Iterable[str]) -> None:
    """Write the page and the picture into a directory. `others` names the versions of the other servers."""
    cells = [
        (
            row.case,
            row.server,
            f"{row.cost:.0f}",
            f"{row.of_nginx:.2f}",
            f"{row.median:.0f}",
            f"{row.p99:.0f}",
            row.bytes,
        )
        for row in rows
    ]
    table = "".join("   * - " + "\n     - ".join(map(str, row)) + "\n" for row in cells)
    date = datetime.now(timezone.utc).strftime("%d %B %Y")
    text = _HEAD.format(date=date, machine=f"Machine: {_machine()}. {', '.join([*_versions(), *others])}.")
    (directory / "RESULTS.rst").write_text(text + table)
    _draw(rows, directory / "ratios.svg")


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{os.cpu_count()} processors ({model}), {platform.system()} {platform.release().partition('-')[0]}"


def _versions() -> list[str]:
    nginx = subprocess.run([shutil.which("nginx") or "nginx", "-v"], capture_output=True, text=True, check=True).stderr  # noqa: S603 - nginx
    found = [f"{name} {version(name)}" for name in ("mypypi", "Twisted")]
    return [*found, f"Python {platform.python_version()}", nginx.partition("version: ")[2].split(" ")[0].strip()]


def _draw(rows: Sequence[Row], file: Path) -> None:
    """Draw the ratios to nginx as bars, on a logarithmic scale."""
    import matplotlib as mpl  # noqa: PLC0415 - only a picture needs it

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    mpl.rcParams["svg.hashsalt"] = "mypypi"  # the same figures give the same file
    cases = list(dict.fromkeys(row.case for row in rows))
    servers = [name for name in _COLOURS if any(row.server == name for row in rows)]
    figure, axes = plt.subplots(figsize=(8, 0.7 * len(cases) + 1), layout="constrained")
    for number, server in enumerate(servers):
        found = {row.case: row.of_nginx for row in rows if row.server == server}
        at = [place + 0.26 * (number - (len(servers) - 1) / 2) for place, case in enumerate(cases) if case in found]
        bars = axes.barh(at, list(found.values()), 0.24, label=server, color=_COLOURS[server])
        axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
    axes.axvline(1, color="#555555", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(cases)), cases)
    axes.invert_yaxis()
    axes.set_xlabel("processor time of a request, as a multiple of nginx's for the same bytes")
    axes.legend(loc="lower right")
    figure.savefig(file, metadata={"Date": None})
