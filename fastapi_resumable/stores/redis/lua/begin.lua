-- Make a queued request the current epoch. Replies whom to tell that they were replaced.

local epoch, worker, head, sse, started, idem, ttl, retention, completed = unpack(ARGV, 1, 9)
local h = load()
if h.epoch == epoch then return h.told and cjson.decode(h.told) or {'begun'} end
local mine = h['q:' .. epoch]
if not mine then
    local code = why_ended(h, epoch)
    return code and {'stopped', code:match('%a+')} or {'unknown'}
end
local lacking = lacks_event(h, 10)
if lacking then return lacking end
mine = cjson.decode(mine)
local reply = {'begun'}
for _, item in ipairs(queued(h)) do
    if item.n < mine.n then dequeue(item, 'replaced', reply) end
end
if h.epoch then remove(h, 'replaced', completed, retention, 10, reply) end
redis.call('HDEL', H, 'q:' .. epoch, 'gone')
redis.call('HSET', H, 'epoch', epoch, 'status', 'in_progress', 'worker', worker, 'tail', 0, 'earliest', 0, 'head', head,
    'sse', sse, 'started', started)
if idem ~= '' then redis.call('HSET', H, 'idem', idem) end
if #reply > 1 then redis.call('HSET', H, 'told', cjson.encode(reply)) end
tidy(ttl)
return reply
