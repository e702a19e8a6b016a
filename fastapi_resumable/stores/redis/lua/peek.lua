-- The hash, without what has expired.

local flat = {}
for field, value in pairs(load()) do
    table.insert(flat, field)
    table.insert(flat, value)
end
return flat
