-- Count a stream against its owner's limit. Replies all that count, with their workers, if there is no room.

local epoch, worker, limit, ttl = unpack(ARGV)
if redis.call('HEXISTS', H, epoch) == 0 and redis.call('HLEN', H) >= tonumber(limit) then
    return redis.call('HGETALL', H)
end
redis.call('HSET', H, epoch, worker)
redis.call('PEXPIRE', H, ttl)
return {}
