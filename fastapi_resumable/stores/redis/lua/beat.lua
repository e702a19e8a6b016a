-- Renew a lease. Replies whether it was still there.

-- Redis allows this even when it is out of memory.
if redis.call('PEXPIRE', H, ARGV[2]) == 1 then return 1 end
redis.call('SET', H, ARGV[1], 'PX', ARGV[2])
return 0
