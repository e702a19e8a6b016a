"""The store beyond one process: streams live in Redis Streams, and any worker serves them.

keys      what every key is called
scripts   the state changes, each one atomic, in Lua
link      runs commands until they succeed, or the store has been gone for too long
lease     which workers are alive
appender  writes what the streams of this worker have recorded, in batches
follower  the one blocking read by which this worker hears of everything that others write
recorded  a stream that is recorded here
followed  a stream that is recorded elsewhere, or has ended
store     the protocol, on top of all that
"""
