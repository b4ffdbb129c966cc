"""``python -m benchmarks NAME`` runs the benchmark in the module of this name."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

NAMES = sorted({path.stem for path in Path(__file__).parent.glob("[!_]*.py")} - {"recorded", "replay", "results"})

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f"usage: python -m benchmarks NAME [OPTION...]\nnames: {', '.join(NAMES)}")
    name = sys.argv.pop(1)
    sys.argv[0] = f"benchmarks.{name}"
    runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
