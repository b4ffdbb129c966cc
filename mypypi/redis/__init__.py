"""The data in Redis: the catalog, the queue of jobs, and leases.

Knows Redis commands, keys and the format of records. Must never know what a page means, nor what a job does.
"""
