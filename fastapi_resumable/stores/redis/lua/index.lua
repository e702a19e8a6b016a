-- Note an id under a shorter one, of which it is a variant.

local id, ttl = unpack(ARGV)
redis.call('ZREMRANGEBYSCORE', H, '-inf', now())
redis.call('ZADD', H, text(now() + ttl), id)
redis.call('PEXPIRE', H, ttl)
return 1
