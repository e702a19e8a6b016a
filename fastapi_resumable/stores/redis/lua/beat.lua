-- Renew a lease. Replies whether it was still there.

local existed = redis.call('EXISTS', H)
redis.call('SET', H, ARGV[1], 'PX', ARGV[2])
return existed
