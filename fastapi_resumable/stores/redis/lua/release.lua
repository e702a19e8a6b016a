-- Take a request out of the queue; should it have begun without its worker learning of it, end it.

local epoch, ttl, completed, retention = unpack(ARGV, 1, 4)
local h = load()
local lacking = h.epoch == epoch and lacks_event(h, 5)
if lacking then return lacking end
redis.call('HDEL', H, 'q:' .. epoch)
if h.epoch == epoch and h.status == 'in_progress' then
    finish(h, 'interrupted', 'producer_lost', completed, retention, 5)
end
-- Only its own worker releases an epoch, and writes no more of it from then on.
redis.call('UNLINK', H .. ':' .. epoch .. ':ended')
tidy(ttl)
return {}
