"""What the stores that several workers share have in common.

store    the store protocol, on top of a backend
backend  what that needs of a backend
streams  the requests and streams that a worker has
local    a stream as its own worker sees it
outbox   what the backend has yet to get of it
room     how far its producer may run ahead
remote   a stream as other workers see it
writes   what streams ask of a backend, and what it replies
queue    the write queue
outage   since when the backend is away
"""
