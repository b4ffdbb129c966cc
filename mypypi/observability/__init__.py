"""What operators see: log lines and metrics.

Knows how events are written and how numbers are counted. Must never know what happens, or why.
"""
