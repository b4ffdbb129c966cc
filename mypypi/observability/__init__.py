"""Log lines and metrics for operators.

Knows the formats of log lines, and the metrics. Must never know when or why an event happens.
"""
