-- Ask for a message when a reader advances. Replies where the slowest one is.

if redis.call('HGET', H, 'epoch') ~= ARGV[1] then return false end
redis.call('HSET', H, 'wait', 1)
return slowest_of(KEYS[2] .. ':readers')
