"""Promises seen from outside: real daemons, real Redis and S3, real clients."""
