"""The worker, which takes jobs from the queue and runs them.

Knows jobs: uploads, background fetches, sweeps. Must never know HTTP.
"""
