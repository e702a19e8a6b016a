"""The state changes of a stream, each one atomic. Every one may be sent again if its reply was lost.

A stream is one hash. Fields of its current epoch: `epoch`, `status`, `worker`, `tail` (offset of the next byte),
`earliest` (the first offset to resume from), `mid` (the log ends within an event), `head`, `sse`, `started`,
`completed`, `expires` (milliseconds), `idem`, `code`, `wait` (the producer waits for readers), `told` (what `BEGIN`
replied). A queued request is a field `q:<epoch>`. What is stopped or replaced, be it queued, live or over, leaves
`x:<epoch>` for a minute, the code and the time: for its worker to find, and for those who wait for it. `gone` is what
`STOP` replied; like `told`, it is there for a caller that lost the reply.

In a log, the entry that ends at offset N has the id `N-0`; the one that ends the log has `N-1`. So an entry cannot be
written twice, and an offset is a place in the log. KEYS[1] is the hash, KEYS[2] the log.
"""

from hashlib import sha1
from typing import NamedTuple


class Script(NamedTuple):
    """A Lua script, and the name Redis knows it by."""

    text: str
    sha: str


_COMMON = """
local H = KEYS[1]
local CURRENT = {'epoch', 'status', 'worker', 'tail', 'earliest', 'mid', 'head', 'sse', 'started', 'completed',
    'expires', 'idem', 'code', 'wait', 'told'}

local function text(number) return string.format('%.0f', number) end

local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function mark(epoch, code) redis.call('HSET', H, 'x:' .. epoch, code .. ' ' .. text(now())) end

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
    local h, left = load(), 0
    for field, value in pairs(h) do
        if field:sub(1, 2) == 'x:' and value:match('%d+$') + 60000 <= now() then
            redis.call('HDEL', H, field)
        elseif field == 'gone' or field:sub(1, 2) == 'x:' then
            left = 60000
        end
    end
    if h.status == 'in_progress' or #queued(h) > 0 then
        left = tonumber(ttl)
    elseif h.epoch then
        left = math.max(1, left, h.expires - now())
    end
    if left > 0 then redis.call('PEXPIRE', H, text(left)) else redis.call('DEL', H) end
end

local function dequeue(epoch, code)
    redis.call('HDEL', H, 'q:' .. epoch)
    mark(epoch, code)
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

-- Whether the terminal event is needed, and was not given: it is the user's to make, so it is made only if it is sent.
local function lacks_event(h, at) return h.status == 'in_progress' and h.sse == '1' and not ARGV[at] end

-- How a log ends that the producer does not end itself. ARGV from `at` on: the terminal event, cut where the ids go;
-- each piece but the last is followed by the distance from its id to the offset that the id names.
local function finish(h, status, code, completed, retention, at)
    local log, tail, event = H .. ':' .. h.epoch, tonumber(h.tail), ''
    if h.sse == '1' and #table.concat(ARGV, '', at) > 0 then
        if h.mid == '1' then event = '\\n\\n' end
        for i = at, #ARGV - 1, 2 do
            event = event .. ARGV[i] .. h.epoch .. '-'
            local fixed = tail + #event + ARGV[i + 1]
            local offset = fixed + 1
            while fixed + #text(offset) ~= offset do offset = fixed + #text(offset) end
            event = event .. text(offset)
        end
        event = event .. ARGV[#ARGV]
        tail = tail + #event
        redis.call('XADD', log, text(tail) .. '-0', 'd', event)
    end
    redis.call('XADD', log, text(tail) .. '-1', 's', status, 'c', code)
    redis.call('PEXPIRE', log, math.max(retention, 60000))
    redis.call('HSET', H, 'status', status, 'code', code, 'completed', completed, 'tail', text(tail),
        'expires', text(now() + retention))
    redis.call('HDEL', H, 'wait')
end
"""


def _script(body: str) -> Script:
    text = _COMMON + body
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


PEEK = _script("""
local flat = {}
for field, value in pairs(load()) do
    table.insert(flat, field)
    table.insert(flat, value)
end
return flat
""")
"""The hash, without what has expired."""

RESERVE = _script("""
local epoch, worker, idem, rule, requested, ttl = unpack(ARGV)
local h = load()
-- A second attempt, and it was stopped after the first, as `BEGIN` will tell; or has begun.
if h['x:' .. epoch] or h.epoch == epoch then return {'queued', 0} end
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
""")
"""Queue a request, or name its rival, and the worker without which that one is over."""

RELEASE = _script("""
local epoch, ttl, completed, retention = unpack(ARGV, 1, 4)
local h = load()
if h.epoch == epoch and lacks_event(h, 5) then return {'event'} end
redis.call('HDEL', H, 'q:' .. epoch)
if h.epoch == epoch and h.status == 'in_progress' then
    finish(h, 'interrupted', 'producer_lost', completed, tonumber(retention), 5)
end
tidy(ttl)
return {}
""")
"""Take a request out of the queue; should it have begun without its worker learning of it, end it."""

BEGIN = _script("""
local epoch, worker, head, sse, started, idem, ttl, retention, completed = unpack(ARGV, 1, 9)
local h = load()
if h.epoch == epoch then return h.told and cjson.decode(h.told) or {'begun'} end
local mine = h['q:' .. epoch]
if not mine then
    local code = h['x:' .. epoch]
    return code and {'stopped', code:match('%a+')} or {'unknown'}
end
if lacks_event(h, 10) then return {'event'} end
mine = cjson.decode(mine)
local reply = {'begun'}
for _, item in ipairs(queued(h)) do
    if item.n < mine.n then
        dequeue(item.epoch, 'replaced')
        table.insert(reply, item.w)
        table.insert(reply, item.epoch)
    end
end
if h.epoch then
    if h.status == 'in_progress' then
        finish(h, 'cancelled', 'replaced', completed, tonumber(retention), 10)
        table.insert(reply, h.worker)
        table.insert(reply, h.epoch)
    end
    mark(h.epoch, 'replaced')
    forget()
end
redis.call('HDEL', H, 'q:' .. epoch, 'gone')
redis.call('HSET', H, 'epoch', epoch, 'status', 'in_progress', 'worker', worker, 'tail', 0, 'earliest', 0, 'head', head,
    'sse', sse, 'started', started)
if idem ~= '' then redis.call('HSET', H, 'idem', idem) end
if #reply > 1 then redis.call('HSET', H, 'told', cjson.encode(reply)) end
tidy(ttl)
return reply
""")
"""Make a queued request the current epoch. Replies whom to tell that they were replaced."""

APPEND = _script("""
local function append(epoch, first, last, data, earliest, mid, ttl, anew, look, ending, retention)
    local log = H .. ':' .. epoch
    local f = redis.call('HMGET', H, 'epoch', 'status', 'tail')
    local status, code, completed = ending:match('^(%S+) (%S*) (%S+)$')
    if f[1] ~= epoch then
        return {not f[1] and redis.call('EXISTS', log) == 0 and 'missing' or 'ended'}
    end
    if f[2] ~= 'in_progress' then
        return {f[2] == status and f[3] == last and 'ok' or 'ended'}
    end
    if f[3] ~= first and f[3] ~= last then return {'gap', f[3]} end
    if f[3] ~= last then
        local add = {'XADD', log}
        if anew ~= '1' then add[#add + 1] = 'NOMKSTREAM' end
        if earliest ~= '0' then
            for _, word in ipairs({'MINID', '=', text(earliest + 1)}) do add[#add + 1] = word end
        end
        for _, word in ipairs({last .. '-0', 'd', data}) do add[#add + 1] = word end
        if not redis.call(unpack(add)) then return {'missing'} end
        if anew == '1' then redis.call('PEXPIRE', log, ttl) end
        if earliest == '0' then
            redis.call('HSET', H, 'tail', last, 'mid', mid)
        else
            redis.call('HSET', H, 'tail', last, 'mid', mid, 'earliest', earliest)
        end
    end
    if status then
        redis.call('XADD', log, last .. '-1', 's', status, 'c', code)
        redis.call('PEXPIRE', log, math.max(retention, 60000))
        redis.call('HSET', H, 'status', status, 'code', code, 'completed', completed,
            'expires', text(now() + retention))
        redis.call('HDEL', H, 'wait')
        tidy(ttl)
        return {'ok'}
    end
    return {'ok', look == '1' and slowest_of(log .. ':readers')}
end

local replies = {}
for i, name in ipairs(KEYS) do
    H = name
    replies[i] = append(unpack(ARGV, i * 11 - 10, i * 11))
end
return replies
""")
"""Write bytes, and the end if there is one. Refused unless the epoch is the live one, and goes on at `first`.

For any number of streams: KEYS are their hashes, ARGV eleven words for each, and each gets a reply of its own. Unless
the log is begun `anew`, it has to be there. With `look`, the reply says where the slowest reader elsewhere is. Other
scripts run now and then; this one runs all the time, and calls no more than it must.
"""

RESTORE = _script("""
local epoch, worker, head, sse, started, idem, ttl, offset = unpack(ARGV)
local h = load()
if h.epoch and (h.epoch ~= epoch or h.status ~= 'in_progress') then return {'ended'} end
if not h.epoch and redis.call('EXISTS', KEYS[2]) == 1 then return {'ended'} end
redis.call('HDEL', H, 'q:' .. epoch, 'mid')
redis.call('HSET', H, 'epoch', epoch, 'status', 'in_progress', 'worker', worker, 'tail', offset, 'earliest', offset,
    'head', head, 'sse', sse, 'started', started)
if idem ~= '' then redis.call('HSET', H, 'idem', idem) end
tidy(ttl)
return {'gap', offset}
""")
"""Put a live epoch back that Redis has lost, to be written again from `offset` on."""

STOP = _script("""
local epoch, ttl, completed, retention = unpack(ARGV, 1, 4)
local h, reply = load(), {}
if (epoch == '' or epoch == h.epoch) and lacks_event(h, 5) then return {'event'} end
for _, item in ipairs(queued(h)) do
    if epoch == '' or epoch == item.epoch then
        dequeue(item.epoch, 'cancelled')
        table.insert(reply, item.w)
        table.insert(reply, item.epoch)
    end
end
if h.epoch and (epoch == '' or epoch == h.epoch) then
    if h.status == 'in_progress' then
        finish(h, 'cancelled', 'cancelled', completed, tonumber(retention), 5)
        table.insert(reply, h.worker)
        table.insert(reply, h.epoch)
    end
    mark(h.epoch, 'cancelled')
    forget()
end
if #reply > 0 then
    redis.call('HSET', H, 'gone', cjson.encode(reply))
elseif h.gone then
    reply = cjson.decode(h.gone)
end
tidy(ttl)
return reply
""")
"""Stop what is queued or live, forget what has ended. Replies whom to tell."""

BURY = _script("""
local worker, ttl, completed, retention = unpack(ARGV, 1, 4)
local h, reply = load(), {}
if h.worker == worker and lacks_event(h, 5) then return {'event'} end
for _, item in ipairs(queued(h)) do
    if item.w == worker then
        redis.call('HDEL', H, 'q:' .. item.epoch)
        table.insert(reply, item.epoch)
    end
end
if h.status == 'in_progress' and h.worker == worker then
    finish(h, 'interrupted', 'producer_lost', completed, tonumber(retention), 5)
    table.insert(reply, h.epoch)
end
tidy(ttl)
return reply
""")
"""End what belongs to a worker that is gone. Replies the epochs that were ended, so that only one caller gets each."""

TOUCH = _script("""
if redis.call('EXISTS', H) == 1 then tidy(ARGV[1]) end
for i = 2, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[1]) end
return redis.call('HGET', H, 'epoch')
""")
"""Keep a live stream from expiring."""

PAGE = _script("""
local offset, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local from, first, last, pieces, size = text(offset) .. '-1', false, false, {}, 0
while true do
    local page = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', 16)
    for _, entry in ipairs(page) do
        local stop, fields = tonumber(entry[1]:match('^%d+')), entry[2]
        if fields[1] == 's' then
            return {first and text(first), table.concat(pieces), fields[2], fields[4]}
        end
        local start = stop - #fields[2]
        if last and start ~= last then return {text(first), table.concat(pieces)} end
        first, last = first or start, stop
        table.insert(pieces, fields[2])
        size = size + #fields[2]
        if size >= limit then return {text(first), table.concat(pieces)} end
        from = '(' .. entry[1]
    end
    if #page < 16 then return {first and text(first), table.concat(pieces)} end
end
""")
"""Bytes of a log from the entry that holds `offset` on, and how the log ended if that comes into view."""

REPORT = _script("""
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
""")
"""Say how far a worker's slowest reader is. Replies whom to tell, if the producer waits for that."""

WAIT = _script("""
if redis.call('HGET', H, 'epoch') ~= ARGV[1] then return false end
redis.call('HSET', H, 'wait', 1)
return slowest_of(KEYS[2])
""")
"""Ask to be told when a reader gets on. Replies where the slowest one is."""

CLAIM = _script("""
local epoch, worker, limit, ttl = unpack(ARGV)
if redis.call('HEXISTS', H, epoch) == 0 and redis.call('HLEN', H) >= tonumber(limit) then
    return redis.call('HGETALL', H)
end
redis.call('HSET', H, epoch, worker)
redis.call('PEXPIRE', H, ttl)
return {}
""")
"""Count a stream against its owner's limit. Replies all that count, with their workers, if there is no room."""

BEAT = _script("""
local existed = redis.call('EXISTS', H)
redis.call('SET', H, ARGV[1], 'PX', ARGV[2])
return existed
""")
"""Renew a lease. Replies whether it was still there."""

POST = _script("""
local keep, most = ARGV[1], ARGV[2]
redis.call('XADD', H, 'MAXLEN', '~', most, '*', unpack(ARGV, 3))
redis.call('PEXPIRE', H, keep)
return 1
""")
"""Add a message to an inbox, or to the changes."""

INDEX = _script("""
local id, ttl = unpack(ARGV)
redis.call('ZREMRANGEBYSCORE', H, '-inf', now())
redis.call('ZADD', H, text(now() + ttl), id)
redis.call('PEXPIRE', H, ttl)
return 1
""")
"""Note an id under a shorter one, of which it is a variant."""
