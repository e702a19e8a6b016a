-- Say how far a worker's slowest reader is. Replies whom to tell, if the producer waits for that; or `gone`, and why, if
-- there is nothing left to read; or `dropped`, and the tail, if what came after that place is not there any more. The log
-- of an epoch that cannot be found any more goes soon after its last reader.

local worker, offset, keep = unpack(ARGV)
local readers = KEYS[2]
local log = readers:sub(1, -#':readers' - 1)
local f = redis.call('HMGET', H, 'wait', 'worker', 'epoch', 'tail')
local epoch = log:sub(#H + 2)
local is_current, code = f[3] == epoch, redis.call('HGET', H, 'x:' .. epoch)
if offset == '' then
    redis.call('HDEL', readers, worker)
    if not is_current and not slowest_of(readers) then
        redis.call('UNLINK', readers)
        expire(log, PARTING)
    end
elseif not is_current and (f[3] or code) and redis.call('EXISTS', log) == 0 then
    -- Not if Redis knows nothing of it: then it was lost, and its producer may be about to write it again.
    return {'gone', (code or 'replaced'):match('%a+')}
else
    redis.call('HSET', readers, worker, offset .. ' ' .. text(now() + keep))
    redis.call('PEXPIRE', readers, keep)
    if not is_current then expire(log, REMAINS) end
    -- Only what is added is reported to its reader, which would wait for it.
    if is_current and tonumber(f[4] or 0) > tonumber(offset) and redis.call('EXISTS', log) == 1
        and #redis.call('XRANGE', log, '(' .. offset .. '-0', '+', 'COUNT', 1) == 0 then
        return {'dropped', f[4]}
    end
end
if not f[1] or not is_current then return {} end
redis.call('HDEL', H, 'wait')
return {f[2], f[3]}
