"""What the stores that several workers share have in common.

store    the store protocol, on top of a backend
backend  the requests and streams of a worker, and what every backend does with them
local    a stream as its own worker sees it
remote   a stream as other workers see it
writes   what streams ask of a backend, what it replies, and what it has yet to get
queue    the write queue
outage   since when the backend is away
"""
