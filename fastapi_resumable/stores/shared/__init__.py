"""What the stores that several workers share have in common.

store    the store protocol, on top of a backend
backend  the requests and streams of a worker, and what every backend does with them
local    a stream as its own worker sees it
outbox   what the backend has yet to get of it
remote   a stream as other workers see it
writes   what streams ask of a backend, and what it replies
queue    the write queue
outage   since when the backend is away
"""
