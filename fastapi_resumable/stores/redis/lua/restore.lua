-- Put a live epoch back that Redis has lost, to be written again from `offset` on.

local epoch, worker, head, sse, started, idem, ttl, offset = unpack(ARGV)
local h = load()
if h.epoch and (h.epoch ~= epoch or h.status ~= 'in_progress') then return {'ended'} end
if not h.epoch then
    if why_ended(h, epoch) or end_of(KEYS[2]) then return {'ended'} end
    -- What is written again need not be cut into the same pieces.
    redis.call('UNLINK', KEYS[2])
end
redis.call('UNLINK', KEYS[2] .. ':packed')
redis.call('HDEL', H, 'q:' .. epoch, 'mid', 'small')
redis.call('HSET', H, 'epoch', epoch, 'status', 'in_progress', 'worker', worker, 'tail', offset, 'earliest', offset,
    'packed', offset,
    'head', head, 'sse', sse, 'started', started)
if idem ~= '' then redis.call('HSET', H, 'idem', idem) end
tidy(ttl)
return {'gap', offset}
