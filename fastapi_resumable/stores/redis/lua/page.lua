-- Bytes of a log from the piece that holds `offset` on, and how the log ended if that comes into view.

local offset, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local first, last, pieces, size = false, false, {}, 0

local function reply(...) return {first and text(first), table.concat(pieces), ...} end

local function add(start, data)
    first, last = first or start, start + #data
    table.insert(pieces, data)
    size = size + #data
end

local packed = KEYS[2] .. ':packed'
local from, block = (redis.call('LINDEX', packed, 0) or ''):match('^(%d+) (%d+)$')
if from then
    local index = math.max(0, math.floor((offset - from) / block))
    local blocks = redis.call('LRANGE', packed, index + 1, index + math.ceil(limit / block))
    for i, data in ipairs(blocks) do add(from + (index + i - 1) * block, data) end
    if size >= limit then return reply() end
end

local after = text(last or offset) .. '-1'
while true do
    local page = redis.call('XRANGE', KEYS[2], after, '+', 'COUNT', 16)
    for _, entry in ipairs(page) do
        local stop, fields = tonumber(entry[1]:match('^%d+')), entry[2]
        if fields[1] == 's' then return reply(fields[2], fields[4], fields[6]) end
        local start, data = stop - #fields[2], fields[2]
        -- Its beginning may be packed already.
        if last and start < last then start, data = last, data:sub(last - start + 1) end
        if last and start ~= last then return reply() end
        add(start, data)
        if size >= limit then return reply() end
        after = '(' .. entry[1]
    end
    if #page < 16 then return reply() end
end
