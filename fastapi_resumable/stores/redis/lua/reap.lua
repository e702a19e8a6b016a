-- End what belongs to a worker that is gone. Replies the epochs that were ended, so that only one caller gets each.

local worker, ttl, completed, retention = unpack(ARGV, 1, 4)
local h, reply = load(), {}
local lacking = h.worker == worker and lacks_event(h, 5)
if lacking then return lacking end
for _, item in ipairs(queued(h)) do
    if item.w == worker then
        redis.call('HDEL', H, 'q:' .. item.epoch)
        note_end(worker, item.epoch, 'interrupted')
        table.insert(reply, item.epoch)
    end
end
if h.status == 'in_progress' and h.worker == worker then
    finish(h, 'interrupted', 'producer_lost', completed, retention, 5)
    table.insert(reply, h.epoch)
end
tidy(ttl)
return reply
