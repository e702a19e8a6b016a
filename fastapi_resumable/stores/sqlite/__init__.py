"""Streams in one SQLite file, for all workers of one machine, and over restarts.

A worker has two threads for the file, so that its event loop never waits for a disk: one writes, and puts everything
that has come in meanwhile into one transaction; the other reads. Every state change is a transaction, so what a file
holds is always true, and all workers see the same. What other workers change is noticed by `PRAGMA data_version`, which
is looked at the more often the sooner something is expected.
"""
