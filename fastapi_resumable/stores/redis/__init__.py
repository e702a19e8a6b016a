"""The store beyond one process: streams live in Redis Streams, and any worker serves them.

keys         what every key is called
calls        every call about streams, and what Redis replies; the scripts are in `lua`
link         runs calls until they succeed, or the store has been gone for too long
listener     the one blocking read by which a worker hears of everything that others write
worker       the lease of a worker, which says that it lives, and what workers tell one another
transitions  the state changes that requests ask for, and what follows from each
backend      all of these on one event loop: the streams that are recorded here, and those that are followed
"""
