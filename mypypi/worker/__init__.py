"""The worker: takes jobs from the queue and does them.

Knows jobs: uploads, background fetches, sweeps. Must never know HTTP.
"""
