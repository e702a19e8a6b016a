"""The store beyond one process: streams live in Redis Streams, and any worker serves them.

keys         what every key is called
scripts      the state changes, each one atomic, in Lua
link         runs calls until they succeed, or the store has been gone for too long
lease        which workers are alive
listener     the one blocking read by which this worker hears of everything that others write
worker       these together, with an inbox and the tasks that see to them; it knows nothing of streams
state        what Redis says of a key
calls        every call about streams
transitions  the state changes that requests ask for, and what follows from each
writer       for the streams that are recorded here
reader       for the streams that are recorded elsewhere, or have ended
backend      puts the parts together, for the store
"""
