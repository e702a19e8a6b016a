-- Say how far a worker's slowest reader is, or that it has left. Replies what that reader cannot see by itself:
--   `live`     and whether the producer waits for readers to advance
--   `dropped`  and the tail: of what came after its place, nothing is there any more
--   `over`     and the tail: the log has its end
--   `gone`     and why: there is nothing left to read
--   `lost`     Redis has lost the stream; its producer may be about to write it again
-- The log of an epoch that cannot be found any more goes soon after its last reader.

local worker, offset, keep = unpack(ARGV)
local log = KEYS[2]
local readers, ended = log .. ':readers', log .. ':ended'
local epoch = log:sub(#H + 2)
local current, status, tail = unpack(redis.call('HMGET', H, 'epoch', 'status', 'tail'))
if offset == '' then
    redis.call('HDEL', readers, worker)
    -- If the stream is its own, it has taken over how that was ended.
    redis.call('HDEL', ended, worker)
else
    redis.call('HSET', readers, worker, offset .. ' ' .. text(now() + keep))
    redis.call('PEXPIRE', readers, keep)
end
if current == epoch and status == 'in_progress' then
    -- Only what is added is reported to its reader, which would wait for it.
    if offset ~= '' and tonumber(tail) > tonumber(offset) and redis.call('EXISTS', log) == 1
        and #redis.call('XRANGE', log, '(' .. offset .. '-0', '+', 'COUNT', 1) == 0 then
        return {'dropped', tail}
    end
    return {'live', redis.call('HDEL', H, 'wait')}
end
if current ~= epoch then
    if offset == '' and not slowest_of(readers) and redis.call('EXISTS', ended) == 0 then
        redis.call('UNLINK', readers)
        expire(log, PARTING)
    else
        expire(log, REMAINS)
    end
end
local ended_at = end_of(log)
if ended_at then return {'over', ended_at} end
local code = redis.call('HGET', H, 'x:' .. epoch)
if current ~= epoch and (current or code) and redis.call('EXISTS', log) == 0 then
    return {'gone', (code or 'replaced'):match('%a+')}
end
return {'lost'}
