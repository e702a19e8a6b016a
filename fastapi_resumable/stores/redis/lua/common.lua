-- What every script begins with.
--
-- Each script is one change of state, atomic, and may be sent again if its reply was lost. KEYS[1] is the hash of a
-- stream. Fields of its current epoch: `epoch`, `status`, `worker`, `tail` (offset of the next byte), `earliest` (the
-- first offset to resume from), `mid` (the log ends within an event), `head`, `sse`, `started`, `completed`, `expires`
-- (milliseconds), `idem`, `code`, `wait` (the producer waits for readers), `told` (what `begin` replied), `held` (until
-- when nothing is appended, as the terminal event is being made). A queued request is a field `q:<epoch>`. What is
-- stopped or replaced, be it queued, live or over, leaves `x:<epoch>` for a minute, the code and the time: for its worker
-- to find, and for those who wait for it. `gone` is what `stop` replied; like `told`, it is there for a caller that lost
-- the reply.
--
-- KEYS[2] is a log: the entry that ends at offset N has the id `N-0`; the one that ends the log has `N-1`. So an entry
-- cannot be written twice, and an offset is a place in the log.

local H = KEYS[1]
local CURRENT = {'epoch', 'status', 'worker', 'tail', 'earliest', 'mid', 'head', 'sse', 'started', 'completed',
    'expires', 'idem', 'code', 'wait', 'told', 'small', 'packed', 'held'}
-- Milliseconds for which what is left of an epoch stays, for those who read it or wait for it.
local REMAINS = 60000
-- Of how many epochs that are known to be stopped or replaced, the newest: each script reads the whole hash.
local MARKS = 64
-- Milliseconds for which a log without readers stays, for a reader that has found it just now.
local PARTING = 300
-- The most bytes of a live stream that its own worker does not know to be in its log.
local UNACKNOWLEDGED = 262144
-- Milliseconds for which it stays known to a worker that was cut off that a stream or a queued request of its own was
-- ended meanwhile.
local AWAY = 3600000
-- Milliseconds for which nothing is appended to a live stream, while the caller of a script writes its terminal event.
local HOLD = 1000

local function text(number) return string.format('%.0f', number) end

local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function mark(epoch, code) redis.call('HSET', H, 'x:' .. epoch, code .. ' ' .. text(now())) end

-- Notes for a worker, for much longer than a mark stays, that an epoch of its own was ended: `cancelled`, `replaced` or
-- `interrupted`. It must not queue, begin or write it again, however much was forgotten of it.
local function note_end(worker, epoch, code)
    local ended = H .. ':' .. epoch .. ':ended'
    redis.call('HSET', ended, worker, code)
    redis.call('PEXPIRE', ended, AWAY)
end

local function forget() redis.call('HDEL', H, unpack(CURRENT)) end

-- The hash as a table; an epoch past its retention is not in it.
local function load()
    local raw, h = redis.call('HGETALL', H), {}
    for i = 1, #raw, 2 do h[raw[i]] = raw[i + 1] end
    if h.expires and tonumber(h.expires) <= now() then
        for _, field in ipairs(CURRENT) do h[field] = nil end
        forget()
    end
    return h
end

-- Why an epoch was ended, if it is known that it was.
local function why_ended(h, epoch)
    return h['x:' .. epoch] or redis.call('HVALS', H .. ':' .. epoch .. ':ended')[1]
end

local function queued(h)
    local list = {}
    for field, value in pairs(h) do
        if field:sub(1, 2) == 'q:' then
            local item = cjson.decode(value)
            item.epoch = field:sub(3)
            table.insert(list, item)
        end
    end
    table.sort(list, function(a, b) return a.n < b.n end)
    return list
end

-- Sees to it that the hash expires when what it holds does, and goes with the last of it.
local function tidy(ttl)
    local h, at, left, marks = load(), now(), 0, {}
    for field, value in pairs(h) do
        if field == 'gone' then left = REMAINS end
        if field:sub(1, 2) == 'x:' then table.insert(marks, {field, tonumber(value:match('%d+$'))}) end
    end
    table.sort(marks, function(a, b) return a[2] > b[2] end)
    for i, mark in ipairs(marks) do
        if i > MARKS or mark[2] + REMAINS <= at then redis.call('HDEL', H, mark[1]) else left = REMAINS end
    end
    if h.status == 'in_progress' or #queued(h) > 0 then
        left = tonumber(ttl)
    elseif h.epoch then
        left = math.max(1, left, h.expires - at)
    end
    if left > 0 then redis.call('PEXPIRE', H, text(left)) else redis.call('DEL', H) end
end

-- Takes a request out of the queue; `told` gets its worker and its epoch, as in all that follows.
local function dequeue(item, code, told)
    redis.call('HDEL', H, 'q:' .. item.epoch)
    mark(item.epoch, code)
    note_end(item.w, item.epoch, code)
    table.insert(told, item.w)
    table.insert(told, item.epoch)
end

-- How far the slowest reader is that is at a worker which was heard of lately.
local function slowest_of(readers)
    local at, slowest = now(), nil
    for _, place in ipairs(redis.call('HVALS', readers)) do
        local offset, until_ = place:match('^(%d+) (%d+)$')
        if tonumber(until_) > at then slowest = math.min(slowest or math.huge, offset) end
    end
    return slowest and text(slowest)
end

-- The offset at which a log ends, if it has its end: if not, and the hash is gone, then Redis has lost that alone (by
-- eviction, say).
local function end_of(log)
    local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
    return last and last[1]:match('^(%d+)%-1$')
end

-- The keys that hold the bytes of an epoch: its log, and what was packed.
local function expire(log, milliseconds)
    redis.call('PEXPIRE', log, milliseconds)
    redis.call('PEXPIRE', log .. ':packed', milliseconds)
end

-- Gives back the bytes of an epoch that cannot be found any more. For readers elsewhere they stay until the last one has
-- left; and the end of a log that was live, until its own worker has taken it over.
local function discard(h, was_live)
    local log = H .. ':' .. h.epoch
    if slowest_of(log .. ':readers') then
        expire(log, REMAINS)
    elseif was_live then
        redis.call('UNLINK', log .. ':packed')
        local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
        local tail = last and tonumber(last[1]:match('^%d+')) or 0
        redis.call('XTRIM', log, 'MINID', '=', text(math.max(0, tail - UNACKNOWLEDGED)))
        expire(log, REMAINS)
    else
        expire(log, PARTING)
    end
end

-- The terminal event is the application's to make, and each id in it names a place in the log. So a script that is about
-- to end a live event stream asks for the event first, unless ARGV has it from `at` on: epoch, tail, bytes. Meanwhile the
-- log does not grow, or a busy stream would have another tail each time; should the caller be lost, it goes on after that.
local function lacks_event(h, at)
    if h.status ~= 'in_progress' or h.sse ~= '1' or (ARGV[at] == h.epoch and ARGV[at + 1] == h.tail) then return end
    redis.call('HSET', H, 'held', text(now() + HOLD))
    return {'event', h.epoch, h.tail, h.mid or '0'}
end

-- How a log ends that the producer does not end itself, with the terminal event that ARGV has from `at` on. Its worker
-- has to take that over.
local function finish(h, status, code, completed, retention, at)
    local log, tail, event = H .. ':' .. h.epoch, h.tail, h.sse == '1' and ARGV[at + 2] or ''
    if #event > 0 then
        tail = text(tail + #event)
        redis.call('XADD', log, tail .. '-0', 'd', event)
    end
    redis.call('XADD', log, tail .. '-1', 's', status, 'c', code, 't', completed)
    expire(log, math.max(tonumber(retention), REMAINS))
    note_end(h.worker, h.epoch, code == 'producer_lost' and 'interrupted' or code)
    redis.call('HSET', H, 'status', status, 'code', code, 'completed', completed, 'tail', tail,
        'expires', text(now() + retention))
    redis.call('HDEL', H, 'wait', 'held')
end

-- Has the current epoch found no more; it is ended before, if it is live.
local function remove(h, code, completed, retention, at, told)
    local was_live = h.status == 'in_progress'
    if was_live then
        finish(h, 'cancelled', code, completed, retention, at)
        table.insert(told, h.worker)
        table.insert(told, h.epoch)
    end
    discard(h, was_live)
    mark(h.epoch, code)
    forget()
end
