-- Say how far a worker's slowest reader is. Replies whom to tell, if the producer waits for that.

local worker, offset, keep = unpack(ARGV)
if offset == '' then
    redis.call('HDEL', KEYS[2], worker)
else
    redis.call('HSET', KEYS[2], worker, offset .. ' ' .. text(now() + keep))
    redis.call('PEXPIRE', KEYS[2], keep)
end
local f = redis.call('HMGET', H, 'wait', 'worker', 'epoch')
if f[1] then redis.call('HDEL', H, 'wait') end
return f[1] and {f[2], f[3]} or {}
