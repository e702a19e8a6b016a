-- Bytes of a log from the entry that holds `offset` on, and how the log ended if that comes into view.

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
