-- Write bytes, and the end if there is one. Refused unless the epoch is the live one, and goes on at `first`.
--
-- For any number of streams: KEYS are their hashes, ARGV twelve words for each, and each gets a reply of its own. Unless
-- the log is begun `anew`, it has to be there. With `look`, the reply says where the slowest reader elsewhere is. Other
-- scripts run now and then; this one runs all the time, and calls no more than it must.

-- Pieces smaller than this many bytes cost more than they hold. After so many of them, the log is packed but for the last.
local SMALL, MANY, LEFT = 64, 64, 16

-- Moves what a log holds from `from` on, but for the last pieces, to blocks in the list beside it: its first element says
-- at which offset the blocks begin, and how large each is. Returns the offset at which they end.
local function pack(log, from, block, ttl)
    local packed, pieces, parts = log .. ':packed', redis.call('XRANGE', log, '-', '+'), {}
    for i = 1, #pieces - LEFT do parts[i] = pieces[i][2][2] end
    if #parts == 0 then return from end
    local start = tonumber(pieces[1][1]:match('^%d+')) - #parts[1]
    if start > from then
        -- All that was packed has been dropped, and more.
        redis.call('UNLINK', packed)
        from = start
    end
    local data = table.concat(parts):sub(from - start + 1)
    local count = math.floor(#data / block)
    if count == 0 then return from end
    if redis.call('EXISTS', packed) == 0 then redis.call('RPUSH', packed, text(from) .. ' ' .. text(block)) end
    for i = 0, count - 1 do redis.call('RPUSH', packed, data:sub(i * block + 1, (i + 1) * block)) end
    redis.call('PEXPIRE', packed, ttl)
    redis.call('XTRIM', log, 'MINID', '=', text(from + count * block + 1))
    return from + count * block
end

-- Drops the blocks that end before `dropped`.
local function shed(packed, dropped)
    local from, block = (redis.call('LINDEX', packed, 0) or ''):match('^(%d+) (%d+)$')
    local count = from and math.floor((dropped - from) / block) or 0
    if count > 0 then
        redis.call('LTRIM', packed, count, -1)
        if redis.call('EXISTS', packed) == 1 then
            redis.call('LSET', packed, 0, text(from + count * block) .. ' ' .. block)
        end
    end
end

-- Adds an entry, unless an earlier attempt has done so, which was then refused what comes next.
local function once(add)
    local added = redis.pcall(unpack(add))
    if type(added) == 'table' and not added.err:find('equal or smaller') then redis.call(unpack(add)) end
    return added
end

local function append(epoch, first, last, data, earliest, mid, ttl, anew, look, ending, retention, block)
    local log = H .. ':' .. epoch
    local f = redis.call('HMGET', H, 'epoch', 'status', 'tail', 'small', 'packed', 'held')
    local status, code, completed = ending:match('^(%S+) (%S*) (%S+)$')
    if f[1] ~= epoch then
        local is_lost = not f[1] and not end_of(log) and redis.call('HEXISTS', H, 'x:' .. epoch) == 0
        return {is_lost and 'missing' or 'ended'}
    end
    if f[2] ~= 'in_progress' then
        return {f[2] == status and f[3] == last and 'ok' or 'ended'}
    end
    if (f[3] ~= first and f[3] ~= last) or tonumber(f[6] or 0) > now() then return {'gap', f[3]} end
    local slowest = look == '1' and slowest_of(log .. ':readers')
    if f[3] ~= last then
        -- What a reader on another worker has yet to read stays: one write may be larger than the bound.
        local dropped = slowest and math.min(earliest, slowest) or earliest
        local add = {'XADD', log}
        if anew ~= '1' then add[#add + 1] = 'NOMKSTREAM' end
        if earliest ~= '0' then
            for _, word in ipairs({'MINID', '=', text(dropped + 1)}) do add[#add + 1] = word end
        end
        for _, word in ipairs({last .. '-0', 'd', data}) do add[#add + 1] = word end
        if not once(add) then return {'missing'} end
        if anew == '1' then redis.call('PEXPIRE', log, ttl) end
        local set = {'HSET', H, 'tail', last, 'mid', mid}
        if earliest ~= '0' then
            set[#set + 1], set[#set + 2] = 'earliest', earliest
            if f[5] then shed(log .. ':packed', dropped) end
        end
        if #data < SMALL then
            local small, packed = (f[4] or 0) + 1, tonumber(f[5] or 0)
            if small >= MANY and last - packed >= block + SMALL then
                set[#set + 1], set[#set + 2] = 'packed', text(pack(log, packed, tonumber(block), ttl))
                small = 0
            end
            set[#set + 1], set[#set + 2] = 'small', small
        end
        redis.call(unpack(set))
    end
    if status then
        once({'XADD', log, last .. '-1', 's', status, 'c', code, 't', completed})
        expire(log, math.max(retention, REMAINS))
        redis.call('HSET', H, 'status', status, 'code', code, 'completed', completed,
            'expires', text(now() + retention))
        redis.call('HDEL', H, 'wait', 'held')
        tidy(ttl)
        return {'ok'}
    end
    return {'ok', slowest}
end

local replies = {}
for i, name in ipairs(KEYS) do
    H = name
    replies[i] = append(unpack(ARGV, i * 12 - 11, i * 12))
end
return replies
