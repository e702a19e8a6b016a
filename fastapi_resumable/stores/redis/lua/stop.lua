-- Stop what is queued or live, forget what has ended. Replies whom to tell.

local epoch, ttl, completed, retention = unpack(ARGV, 1, 4)
local h, reply = load(), {}
local lacking = (epoch == '' or epoch == h.epoch) and lacks_event(h, 5)
if lacking then return lacking end
for _, item in ipairs(queued(h)) do
    if epoch == '' or epoch == item.epoch then dequeue(item, 'cancelled', reply) end
end
if h.epoch and (epoch == '' or epoch == h.epoch) then remove(h, 'cancelled', completed, retention, 5, reply) end
if #reply > 0 then
    redis.call('HSET', H, 'gone', cjson.encode(reply))
elseif h.gone then
    reply = cjson.decode(h.gone)
end
tidy(ttl)
return reply
