-- Queue a request, or name its rival, and the worker without which that one is over.

local epoch, worker, idem, rule, requested, ttl = unpack(ARGV)
local h = load()
-- A further attempt, and it was ended after the first, as `BEGIN` will tell; or has begun.
if why_ended(h, epoch) or h.epoch == epoch then return {'queued', 0} end
local list, mine = queued(h), h['q:' .. epoch]
local live = h.status == 'in_progress'
local replaces = live and #list == (mine and 1 or 0) and 1 or 0
if not mine then
    if idem ~= '' then
        if h.idem == idem then return {'follow', h.epoch, live and h.worker or ''} end
        for _, item in ipairs(list) do
            if item.k == idem then return {'wait', item.epoch, item.w} end
        end
    end
    if rule ~= 'replace' and (live or #list > 0) then
        local rival = live and {rule == 'reject' and 'exists' or 'follow', h.epoch, h.worker}
            or {rule == 'reject' and 'exists' or 'wait', list[1].epoch, list[1].w}
        return rival
    end
    local n = redis.call('HINCRBY', H, 'n', 1)
    local item = {n = n, w = worker, t = requested, k = idem}
    redis.call('HSET', H, 'q:' .. epoch, cjson.encode(item))
end
if redis.call('PTTL', H) < tonumber(ttl) then redis.call('PEXPIRE', H, ttl) end
return {'queued', replaces}
