"""Everything kept in Redis: the catalog, the queue of jobs, and leases.

Knows commands, keys and how records are written. Must never know what a page means, or what a job does.
"""
