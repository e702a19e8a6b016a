-- Write bytes, and the end if there is one. Refused unless the epoch is the live one, and goes on at `first`.
--
-- For any number of streams: KEYS are their hashes, ARGV eleven words for each, and each gets a reply of its own. Unless
-- the log is begun `anew`, it has to be there. With `look`, the reply says where the slowest reader elsewhere is. Other
-- scripts run now and then; this one runs all the time, and calls no more than it must.

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
