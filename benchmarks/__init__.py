"""What serving costs, measured: run one with ``python -m benchmarks.NAME`` from a checkout."""
